"""CUDA graphs without a GPU: buckets, padding, cache, invalidation and accounting, with a recorder that calls again.

A real recording repeats kernels on static memory; this one calls the recorded function on it, and writes to the same
output. So everything but the capture itself is what runs on a GPU.
"""

import contextlib
import copy
import pickle
import threading
from unittest import mock

import hf_models as hf
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook

import modernbert_fast as mf
from modernbert_fast import dispatch, encoder, graphs, library
from modernbert_fast.graphs import Bucket, Graphs, Inputs
from modernbert_fast.reference import padding
from modernbert_fast.testing import assert_same_bits

pytestmark = pytest.mark.usefixtures("one_thread")


REAL = graphs.CudaRecorder


class Recorder:
    """Stands in for CudaRecorder: a replay calls the function again, into the same output."""

    made: list["Recorder"] = []
    taken = staticmethod(lambda recorded: 2**20 * recorded)
    fault: type[Exception] | None = None

    def __init__(self, device):
        self.device, self.recorded, self.settled = device, 0, 0
        self.busy = threading.Lock()
        Recorder.made.append(self)

    def record(self, run):
        if Recorder.fault:
            raise Recorder.fault
        self.recorded += 1
        output = run()

        def replay():
            assert self.busy.locked(), "a replay out of turn"
            with torch.no_grad():
                output.copy_(run())

        return output, replay

    @contextlib.contextmanager
    def turn(self):
        assert self.busy.acquire(blocking=False), "two turns at once"
        yield
        self.busy.release()

    def settle(self):
        self.settled += 1

    def memory(self):
        return self.taken(self.recorded)


@pytest.fixture(autouse=True)
def recorders(monkeypatch):
    """Those made in the test, latest last; graphs are recorded on the CPU."""
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(graphs, "CudaRecorder", Recorder)
    monkeypatch.setattr(library, "no_graphs", lambda device: "")
    return Recorder.made


@pytest.fixture
def graphed(stock):
    return mf.accelerate(copy.deepcopy(stock), cuda_graphs=True)


def graphs_of(model):
    return model.modernbert_fast_settings.graphs


@torch.inference_mode()
def run(model, batch):
    return model(**batch.inputs("ModernBertModel")).last_hidden_state


def packed(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return mf.PackedBatch.from_lists([torch.randint(hf.VOCAB, (n,), generator=generator).tolist() for n in lengths])


def lengths_of(seed):
    """Some texts, now and then empty or of a whole tile."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 9, (), generator=generator))
    return [*torch.randint(0, 40, (count,), generator=generator).tolist(), (1, 64)[seed % 2]]


def of_sizes(tokens, texts):
    """A batch of these sizes, as far as Bucket and Inputs look at it."""
    bounds = torch.linspace(0, tokens, texts + 1).int()
    return mf.PackedBatch.from_flattened(tokens, bounds)


def test_buckets_are_few_and_hold_what_is_in_them():
    seen = {Bucket.of(of_sizes(T, 1)).tokens for T in range(1, graphs.MAX_TOKENS + 1)}
    assert len(seen) == 15 and min(seen) == 64 and max(seen) == graphs.MAX_TOKENS
    for T, B in ((1, 1), (64, 2), (65, 4), (96, 5), (97, 16), (129, 17), (8192, 65)):
        tokens, texts, _ = Bucket.of(of_sizes(T, B))
        assert T <= tokens <= max(64, 1.5 * T) and B <= texts < 4 * B
    assert [Bucket.of(of_sizes(9, B)).texts for B in (1, 2, 4, 5, 9)] == [1, 4, 4, 16, 16]


@pytest.mark.parametrize("tokens", [64, 96, 128, 768, 8192])
def test_rows_beyond_the_batch_are_texts_of_a_tile_or_less(tokens):
    for T in {tokens, tokens - 1, tokens - 63, tokens - 64, tokens - 65, tokens // 4 * 3 + 1, tokens // 3 * 2 + 1}:
        if T < 1 or (tokens > 64 and Bucket.of(of_sizes(T, 1)).tokens < tokens):
            continue
        batch = of_sizes(T, 3)
        inputs = Inputs(Bucket.of(batch), torch.device("cpu"))
        inputs.write(of_sizes(tokens, 1), torch.full((tokens,), 7))  # what is left of it must go
        inputs.write(batch, torch.ones(T, dtype=torch.int64))
        assert inputs.bucket.tokens == tokens
        lengths = inputs.cu_seqlens.diff()
        assert torch.equal(inputs.cu_seqlens[:4], batch.cu_seqlens) and inputs.cu_seqlens[-1] == tokens
        assert lengths.min() >= 0 and lengths[3:].max() <= 64
        assert torch.equal(inputs.positions[:T], batch.positions) and 0 <= inputs.positions[T:].sum()
        assert inputs.positions[T:].numel() == 0 or inputs.positions[T:].max() < 64
        assert inputs.ids.sum() == T and inputs.ids[:T].all()
        assert inputs.batch(tokens).tiles.shape == (tokens // 64 + inputs.slots, 2)


def test_nothing_between_two_replays_reads_the_device():
    """Fake tensors have no values to read: nor has a GPU without a synchronisation, or a recording at all."""
    with FakeTensorMode():
        inputs = Inputs(Bucket(96, 4), torch.device("cpu"))
        ints = [torch.empty(size, dtype=torch.int32) for size in (3, 70, 70)]
        batch = mf.PackedBatch(ints[0], 96, ints[1], 96, torch.empty(3, 2), (1, 70))
        inputs.write(batch, torch.empty(70, dtype=torch.int64))
        assert padding.tiles(inputs.cu_seqlens, 96, 64).shape == inputs.batch(96).tiles.shape
        with pytest.raises(DataDependentOutputException):
            inputs.cu_seqlens.tolist()


@pytest.mark.parametrize("triton", [False, True], ids=["as dispatched", "triton"])
def test_a_replay_has_the_bits_of_eager(triton):
    """Of the batch padded to its bucket; and of the batch itself where no product's bits depend on the rows around."""
    if triton and not library.interprets_triton():
        pytest.skip("needs Triton's interpreter")
    stock = hf.build("ModernBertModel", hf.tiny_config(num_attention_heads=1 if triton else 4))
    eager, graphed = mf.accelerate(copy.deepcopy(stock)), mf.accelerate(stock, cuda_graphs=True)
    config, held = graphed.modernbert_fast_settings.config, graphs_of(graphed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if triton:
            hf.force_triton(stack)
        for seed in range(2 if triton else 100):
            batch = packed(lengths_of(seed), seed)
            replayed = held.encode(graphed, config, batch, batch.tokens)
            inputs = Inputs(Bucket.of(batch), torch.device("cpu"))
            inputs.write(batch, batch.tokens)
            T = batch.tokens.shape[0]
            padded = encoder.prepare(config, inputs.batch(64), torch.float32)
            assert_same_bits(replayed, encoder.encode(eager, padded, inputs.ids)[:T], f"padded batch {seed}")
            if library.isa() != "none":
                alone = encoder.encode(eager, encoder.prepare(config, batch, torch.float32), batch.tokens)
                assert_same_bits(replayed, alone, f"batch {seed}")
    assert 2 <= len(held.buckets) <= 12 and not held.eager


@pytest.mark.parametrize("kind", hf.KINDS)
def test_every_padding_and_both_modes_without_gradients(graphed, fast, kind):
    batch = hf.batch(kind)
    expected = run(fast, batch)
    for modes in ((torch.no_grad, torch.inference_mode), (torch.inference_mode, torch.no_grad)):
        twin, outputs = copy.deepcopy(graphed), []
        for mode in modes:  # recorded under one, replayed under the other
            with mode():
                outputs.append(twin(**batch.inputs("ModernBertModel")).last_hidden_state)
            assert_same_bits(outputs[-1], expected, kind)
            assert outputs[-1].is_inference() == (mode is torch.inference_mode)
        assert outputs[0].data_ptr() != outputs[1].data_ptr()
        assert bool(graphs_of(twin).eager) == (kind == "holes")


@pytest.mark.parametrize("architecture", hf.ARCHITECTURES[1:])
def test_heads(architecture):
    stock = hf.build(architecture, hf.tiny_config())
    fast, graphed = mf.accelerate(copy.deepcopy(stock)), mf.accelerate(stock, cuda_graphs=True)
    given = hf.batch("right").inputs(architecture)
    with torch.inference_mode():
        for _ in range(2):
            assert all(map(torch.equal, graphed(**given).to_tuple(), fast(**given).to_tuple()))
    assert len(graphs_of(graphed.model).buckets) == 1


def test_expanded_queries_have_recordings_of_their_own(graphed, fast):
    queries, documents = hf.batch("right", seed=1), hf.batch("right", seed=2)
    attended = [queries.mask & (torch.arange(33) < n) for n in (9, 20, 3)]
    with torch.inference_mode():
        for mask in attended:  # one recording, whose former batch was seen elsewhere
            given = {"input_ids": queries.ids, "attention_mask": mask, "unattended": queries.mask & ~mask}
            expected = fast(**given).last_hidden_state
            assert_same_bits(graphed(**given).last_hidden_state, expected)
    assert_same_bits(run(graphed, documents), run(fast, documents))
    buckets = graphs_of(graphed).buckets
    assert [bucket.expanded for bucket in buckets] == [True, False] and not graphs_of(graphed).eager
    assert f"{buckets[0].tokens}x4 expanded" in str(mf.report(graphed))
    with dispatch.use_backend("reference", "attention"), torch.inference_mode():
        graphed(**given)
    ((why, _),) = graphs_of(graphed).eager.items()
    assert "reads bounds on the host" in why


def test_results_stay_and_nothing_of_the_former_batch_does(graphed):
    long, short = hf.batch("none", seed=1, S=20), hf.batch("right", seed=2, S=17)
    with torch.no_grad():
        graphed.embeddings.tok_embeddings.weight[0] = torch.nan  # of the ids beyond a batch
    long.ids.clamp_(min=1)
    short.ids.clamp_(min=1)
    fresh = run(copy.deepcopy(graphed), short)
    first = run(graphed, long)
    kept = first.clone()
    assert_same_bits(run(graphed, short), fresh, "after a longer batch")
    assert_same_bits(first, kept, "after a replay")
    assert first.isfinite().all() and fresh.isfinite().all()


EAGER = {
    "gradients": (torch.enable_grad, {}, None),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), {}, None),
    "hidden states": (contextlib.nullcontext, {"output_hidden_states": True}, None),
    "training": (contextlib.nullcontext, {}, lambda model: model.train()),
    "hooked": (contextlib.nullcontext, {}, lambda m: m.layers[1].register_forward_hook(lambda *_: None)),
    "replaced": (contextlib.nullcontext, {}, lambda m: setattr(m.layers[1], "forward", m.layers[1].forward)),
    "hook looks": (
        contextlib.nullcontext,
        {},
        lambda m: m.embeddings.tok_embeddings.register_forward_hook(lambda *_: None),
    ),
    "drops out": (contextlib.nullcontext, {}, lambda m: m.layers[1].mlp.drop.train()),
    "max_position": (contextlib.nullcontext, {"position_ids": torch.arange(33)[None] + 999}, None),
    "DataParallel": (contextlib.nullcontext, {}, lambda model: setattr(model, "_is_replica", True)),
    "holes": (contextlib.nullcontext, {"attention_mask": hf.batch("holes").mask}, None),
    "reference row of attention": (lambda: dispatch.use_backend("reference", "attention"), {}, None),
}


@pytest.mark.parametrize("reason, case", EAGER.items(), ids=EAGER.keys())
def test_what_runs_eagerly_is_counted_and_right(reason, case):
    context, changes, change = case
    stock, outputs = hf.build("ModernBertModel", hf.tiny_config(mlp_dropout=0.5)), []
    graphed, fast = (mf.accelerate(copy.deepcopy(stock), cuda_graphs=asked) for asked in (True, False))
    run(graphed, hf.batch("right"))  # there is a recording that would serve
    for model in (graphed, fast):
        if change is not None:
            change(model)
        torch.manual_seed(0)
        with torch.no_grad(), context():
            outputs.append(model(**{**hf.right(), **changes}).last_hidden_state)
    assert torch.equal(*outputs)
    ((why, count),) = graphs_of(graphed).eager.items()
    assert reason in why and count == 1
    assert f"1 eager: {why}" in str(mf.report(graphed))


def test_large_and_empty_batches_run_eagerly(graphed, fast, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_TOKENS", 64)
    for S in (33, 0):
        batch = hf.Batch("none", torch.ones(2, S, dtype=torch.int64), torch.ones(2, S, dtype=torch.bool), 0)
        assert torch.equal(run(graphed, batch), run(fast, batch))
    assert graphs_of(graphed).eager == {"the batch has more than 64 tokens, or none": 2}


def test_a_compiled_model_runs_without(graphed, fast):
    torch._dynamo.reset()
    compiled = torch.compile(graphed, backend="eager")
    assert hf.relative(run(compiled, hf.batch("right")), run(fast, hf.batch("right"))) <= 1e-5
    assert graphs_of(graphed).eager == {"torch.compile is at work": 1}
    torch._dynamo.reset()


def test_the_least_recently_used_goes(graphed, monkeypatch, recorders):
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    sizes = {S: Bucket.of(of_sizes(4 * S, 4)) for S in (16, 24, 32)}
    for S in (16, 24, 16, 32):
        run(graphed, hf.batch("none", S=S))
    assert graphs_of(graphed).buckets == [sizes[16], sizes[32]]
    assert recorders[0].recorded == 3 and recorders[0].settled == 1


@pytest.mark.parametrize("fault", ["bytes", "out of memory"])
def test_memory_is_bounded(graphed, fast, monkeypatch, recorders, fault):
    run(graphed, hf.batch("none", S=16))
    assert "1 recorded, 1.0 MiB; tokens x texts: 64x4" in str(mf.report(graphed))
    large = [hf.batch("none", S=S) for S in (32, 48)]
    if fault == "bytes":
        monkeypatch.setattr(Recorder, "taken", staticmethod(lambda recorded: 2**31))
    else:
        monkeypatch.setattr(Recorder, "fault", torch.OutOfMemoryError)
    for batch in large * 2:
        assert torch.equal(run(graphed, batch), run(fast, batch))
    monkeypatch.setattr(Recorder, "fault", None)
    monkeypatch.setattr(Recorder, "taken", staticmethod(lambda recorded: 0))
    held = graphs_of(graphed)
    assert not held.buckets and held.nbytes == 0 and len(recorders) == 2
    run(graphed, hf.batch("none", S=16))
    assert len(held.buckets) == 1
    ((why, count),) = held.eager.items()
    assert "1024 MiB" in why and count == 4


def test_other_errors_of_a_recording_fly(graphed, fast, monkeypatch):
    monkeypatch.setattr(Recorder, "fault", KeyError)
    monkeypatch.setattr(Recorder, "turn", contextlib.nullcontext)
    with pytest.raises(KeyError):
        run(graphed, hf.batch("right"))
    monkeypatch.setattr(Recorder, "fault", None)
    monkeypatch.undo()


def test_weights_loaded_in_place_are_used(graphed, fast, recorders):
    batch = hf.batch("right")
    run(graphed, batch)
    for model in (graphed, fast):
        torch.manual_seed(1)
        model.load_state_dict({name: torch.randn_like(value) for name, value in model.state_dict().items()})
    assert torch.equal(run(graphed, batch), run(fast, batch))
    assert len(recorders) == 1 and recorders[0].recorded == 1


def test_a_model_that_moved_away_frees_the_memory(graphed, monkeypatch, recorders):
    run(graphed, hf.batch("right"))
    recorders[0].device = torch.device("cuda", 0)
    monkeypatch.setattr(library, "no_graphs", lambda device: "no CUDA graphs on cpu")
    run(graphed, hf.batch("right"))
    assert not graphs_of(graphed).buckets and recorders[0].settled == 1


def replace_linear(model):
    mlp = model.layers[2].mlp
    mlp.Wo = copy.deepcopy(mlp.Wo)


def reassign(model):
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


CHANGES = {
    "dtype": lambda model: model.bfloat16(),
    "other parameters": reassign,
    "other data": lambda model: setattr(model.final_norm.weight, "data", torch.ones(32)),
    "module": replace_linear,
    "resized": lambda model: model.resize_token_embeddings(hf.VOCAB + 3),
    "precision": lambda _: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "backend": lambda _: dispatch.force("reference", "geglu"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_model_is_recorded_again(graphed, fast, recorders, change):
    batch = hf.batch("right")
    run(graphed, batch)
    try:
        for model in (graphed, fast):
            torch.manual_seed(0)
            change(model)
        assert torch.equal(run(graphed, batch), run(fast, batch))
    finally:
        dispatch.force(None, "geglu")
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert [recorder.recorded for recorder in recorders] == [1, 1] and recorders[0].settled == 1
    assert len(graphs_of(graphed).buckets) == 1


def test_an_adapter_runs_eagerly_until_it_is_merged(graphed, recorders):
    peft = pytest.importorskip("peft")
    batch = hf.batch("right")
    run(graphed, batch)
    config = peft.LoraConfig(target_modules=["Wqkv"], init_lora_weights=False)
    adapted = peft.get_peft_model(graphed, config).eval()
    expected = run(adapted, batch)
    assert len(recorders) == 1 and not graphs_of(graphed).buckets
    merged = adapted.merge_and_unload()
    assert hf.relative(run(merged, batch), expected) <= 1e-5
    assert len(recorders) == 2 and recorders[1].recorded == 1


def test_restore_and_copies_drop_the_graphs(graphed, recorders):
    batch = hf.batch("right")
    expected = run(graphed, batch)
    for twin in (copy.deepcopy(graphed), pickle.loads(pickle.dumps(graphed))):
        assert graphs_of(twin) is not graphs_of(graphed) and not graphs_of(twin).buckets
        assert torch.equal(run(twin, batch), expected) and len(graphs_of(twin).buckets) == 1
    with mf.accelerated(graphed):
        assert graphs_of(graphed) is None
        assert torch.equal(run(graphed, batch), expected)
    assert graphs_of(graphed).buckets and torch.equal(run(graphed, batch), expected)
    assert len(recorders) == 3 and recorders[0].recorded == 1
    mf.restore(graphed)
    assert not hasattr(graphed, "modernbert_fast_settings")


def test_threads_take_turns(graphed, fast):
    batches = [hf.batch("right", seed=seed, S=20 + 6 * seed) for seed in range(4)]
    expected = [run(fast, batch) for batch in batches]
    faults = []

    def work(batch, right):
        try:
            for _ in range(10):
                assert torch.equal(run(graphed, batch), right)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(batches, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]


def test_our_own_class(graphed):
    config = graphed.modernbert_fast_settings.config
    model = mf.ModernBert(config).eval()
    model.graphs = Graphs()
    batch = packed((5, 30, 1))
    with torch.inference_mode():
        replayed = [model(batch) for _ in range(2)]
        assert not model.graphs.eager
        with register_module_forward_hook(lambda *_: None):
            model(batch)
        model.graphs, held = None, model.graphs
        assert all(torch.equal(one, model(batch)) for one in replayed)
    assert not held.buckets and sum(held.eager.values()) == 1


def test_the_real_recorder_asks_torch_in_this_order(monkeypatch):
    """Warm-up and capture on the side stream, into the pool; turns that wait for the one before, whatever happens."""
    torch_cuda, said = mock.MagicMock(), []
    for name in ("graph", "stream", "device", "synchronize", "graph_pool_handle", "memory_snapshot", "current_stream"):
        setattr(torch_cuda, name, mock.create_autospec(getattr(torch.cuda, name)))
    torch_cuda.graph.return_value = mock.MagicMock()
    for name in ("stream", "device"):
        getattr(torch_cuda, name).return_value = mock.MagicMock()
    torch_cuda.memory_snapshot.return_value = [{"total_size": 2**20}, {"total_size": 2**21}]
    monkeypatch.setattr(torch, "cuda", torch_cuda)
    device = torch.device("cuda", 0)
    graphs._side_stream.cache_clear()
    recorder = REAL(device)
    side, current, read = recorder.stream, torch_cuda.current_stream.return_value, recorder.read

    def run():
        where = "recorded" if torch_cuda.graph.return_value.__enter__.called else "warm"
        said.append(where)
        return where

    output, replay = recorder.record(run)
    assert said == ["warm", "recorded"] and output == "recorded"
    graph = torch_cuda.CUDAGraph.return_value
    torch_cuda.graph.assert_called_once_with(graph, pool=recorder.pool, stream=side, capture_error_mode="thread_local")
    torch_cuda.stream.assert_called_once_with(side)
    side.wait_stream.assert_called_once_with(current)
    current.wait_stream.assert_called_once_with(side)
    assert replay is graph.replay and recorder.memory() == 3 * 2**20
    torch_cuda.memory_snapshot.assert_called_once_with(recorder.pool)
    with pytest.raises(KeyError), recorder.turn():
        current.wait_event.assert_called_once_with(read)
        assert not read.record.called
        raise KeyError
    read.record.assert_called_once_with(current)
    recorder.settle()
    torch_cuda.synchronize.assert_called_once_with(device)
    graphs._side_stream.cache_clear()


def test_a_cpu_has_none_and_says_so(stock, monkeypatch, recorders):
    monkeypatch.undo()
    fast, graphed = mf.accelerate(copy.deepcopy(stock)), mf.accelerate(stock, cuda_graphs=True)
    assert torch.equal(run(graphed, hf.batch("right")), run(fast, hf.batch("right")))
    assert "CUDA graphs    none: no CUDA graphs on cpu" in str(mf.report(graphed))
    assert "CUDA graphs" not in str(mf.report(fast)) and not recorders
