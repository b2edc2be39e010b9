"""Embeds texts on a Ray cluster: each actor holds a model, Ray Data brings it blocks of texts, and a block of an actor
that dies goes to another.

Texts are packed without padding, so an actor's time grows with the tokens it gets, and its memory with those of a block
alone. A vector does not depend on the other texts of its block, so neither the cluster nor a death shows in the result.
`modernbert-fast encode --ray ADDRESS` does the same for a file, to disk, and goes on where it was stopped.
"""

import os
import pydoc_data.topics

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import torch
from transformers import AutoTokenizer

import modernbert_fast as mf
from modernbert_fast.ops import pooling  # `mf.ops` in the class would make Ray pickle torch.ops, which cannot be
from modernbert_fast.tiny import FOLDER


class Embedder:
    """Loads the model once; then called with every block that its actor gets."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = mf.ModernBert.from_pretrained(folder).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, block):
        ids = self.tokenizer(list(block["text"]), truncation=True)["input_ids"]
        batch = mf.PackedBatch.from_lists(ids, device=self.model.final_norm.weight.device)
        with torch.inference_mode():
            vectors = pooling(self.model(batch), batch.cu_seqlens, mode="mean", normalize=True)
        return {**block, "vector": vectors.float().cpu().numpy()}


def main(texts=None, actors=2):
    if not ray.is_initialized():
        ray.init(num_cpus=actors, include_dashboard=False)  # of a cluster: ray.init("auto")
    texts = texts or [" ".join(text.split()[:60]) for text in pydoc_data.topics.topics.values()]
    embedded = ray.data.from_items([{"number": i, "text": text} for i, text in enumerate(texts)]).map_batches(
        Embedder,
        fn_constructor_args=[FOLDER],
        batch_size=32,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if torch.cuda.is_available() else 0,
    )
    rows = sorted(embedded.iter_rows(), key=lambda row: row["number"])  # or embedded.write_parquet(folder)
    print(f"{len(rows)} vectors of {len(rows[0]['vector'])} from {actors} actors")
    return rows


if __name__ == "__main__":
    main()
