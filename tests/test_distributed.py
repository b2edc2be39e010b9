"""Two processes on gloo: DDP and FSDP2 of an accelerated model have the gradients of one process."""

import hf_models as hf
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import modernbert_fast as mf

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo"),
]

WORLD = 2


def model(wrap, architecture):
    tied = wrap is not shard_every_level  # FSDP does not take one parameter in two groups
    stock = hf.build(architecture, hf.tiny_config(tie_word_embeddings=tied))
    return mf.accelerate(stock, loss_only=architecture == hf.PRETRAINING)


def shares(architecture, rank=None):
    """The batch of one rank, or of all: ids, mask and labels, as many labels a rank."""
    batch = hf.batch("right")
    labels = batch.ids.masked_fill(~batch.mask, -100)
    labels[:, 2:] = -100
    labels[:, 1] = torch.where(batch.mask[:, 1], labels[:, 1], -100)
    labels[0, 1] = -100  # five labels in all would not share out
    rows = slice(None) if rank is None else slice(rank, None, WORLD)
    order = {"sentence_order_label": torch.tensor([0, 1, 1, 1])[rows]} if architecture == hf.PRETRAINING else {}
    return {"input_ids": batch.ids[rows], "attention_mask": batch.mask[rows].long(), "labels": labels[rows], **order}


def wrap_in_ddp(fast):
    return DistributedDataParallel(fast)


def shard_layers_and_root(fast):
    for layer in fast.model.layers:
        fully_shard(layer)
    return fully_shard(fast)


def shard_every_level(fast):
    heads = [fast.order_head, fast.order_classifier] if hasattr(fast, "order_head") else []
    for part in (*fast.model.layers, fast.model, fast.head, *heads):
        fully_shard(part)
    return fully_shard(fast)


def shard_and_checkpoint(fast):
    fast.gradient_checkpointing_enable({"use_reentrant": False})
    return shard_layers_and_root(fast).train()


WAYS = (wrap_in_ddp, shard_layers_and_root, shard_every_level, shard_and_checkpoint)


def worker(rank, folder, wrap, architecture):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    try:
        run(rank, folder, wrap, architecture)
    finally:
        dist.destroy_process_group()


def run(rank, folder, wrap, architecture):
    """In a frame of its own: what is wrapped must be gone before the group, whose last owner waits with the GIL."""
    wrapped = wrap(model(wrap, architecture))
    loss = wrapped(**shares(architecture, rank)).loss
    loss.backward()
    grads = {
        name.removeprefix("module."): gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        for name, gradient in hf.gradients(wrapped).items()
    }
    total = loss.detach().clone()
    dist.all_reduce(total)
    if rank == 0:
        torch.save((total / WORLD, grads), f"{folder}/result.pt")
    if wrap is not wrap_in_ddp:
        with pytest.raises(ValueError, match="before FSDP"):
            mf.accelerate(wrapped)


@pytest.mark.parametrize(
    "architecture, wrap",
    [(hf.MLM, wrap) for wrap in WAYS] + [(hf.PRETRAINING, wrap) for wrap in (wrap_in_ddp, shard_every_level)],
)
def test_gradients_are_those_of_one_process(architecture, wrap, tmp_path):
    counts = [int((shares(architecture, rank)["labels"] != -100).sum()) for rank in range(WORLD)]
    assert counts[0] == counts[1] > 0, counts
    single = model(wrap, architecture)
    expected = single(**shares(architecture)).loss
    expected.backward()
    multiprocessing.start_processes(worker, (str(tmp_path), wrap, architecture), WORLD, start_method="fork")
    loss, grads = torch.load(tmp_path / "result.pt")
    assert hf.relative(loss, expected) <= 1e-5
    assert grads.keys() == hf.gradients(single).keys()
    for name, gradient in hf.gradients(single).items():
        assert hf.relative(grads[name], gradient) <= 1e-4, name
