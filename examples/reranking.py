"""Reranks what a search by one vector a text found: every token of the query now looks for its best token of the text.

One good passage is enough, so a long text needs no chunks: it is read once, whole, however many ask. Candidates of 40
and of 1,700 tokens lie end to end: memory and the time of scoring grow with their tokens, not with the longest; reading
costs more for each token of a longer text in the global layers alone. Queries are the first lines of Python's own
documentation, texts what follows them; the small model of the package was not trained for search.
"""

import importlib
import inspect

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

import modernbert_fast as mf
from modernbert_fast.tiny import FOLDER
from modernbert_fast.training.flatten import flatten

MODULES = """argparse asyncio collections csv datetime decimal difflib fractions functools heapq itertools json logging
math operator os pathlib random re shutil socket statistics string struct subprocess tempfile threading zipfile"""


def documentation(words=40):
    """First line of what a module offers, and the rest: {query: text}."""
    found = {}
    for module in map(importlib.import_module, MODULES.split()):
        for _, thing in inspect.getmembers(module, lambda thing: inspect.isclass(thing) or inspect.isroutine(thing)):
            query, _, text = (inspect.getdoc(thing) or "").partition("\n\n")
            if len(query.split()) > 5 and len(text.split()) >= words:
                found.setdefault(query, text)
    return found


def vectors(model, tokenizer, texts):
    """A vector for each token of each text, of length 1 (T, C), and one for each text (B, C)."""
    with torch.inference_mode():
        hidden = [model(**flatten([tokenizer(text)["input_ids"]])).last_hidden_state[0] for text in texts]
    mean, bounds = torch.cat(hidden).mean(0), torch.tensor([0, *map(len, hidden)]).cumsum(0).int()
    pooled = mf.ops.pooling(torch.cat(hidden) - mean, bounds, mode="mean", normalize=True)
    return [normalize(rows - mean, dim=1) for rows in hidden], pooled


def main(candidates=10):
    pairs, tokenizer, right = documentation(), AutoTokenizer.from_pretrained(FOLDER), []
    model = mf.accelerate(AutoModel.from_pretrained(FOLDER, dtype=torch.float32)).eval()
    (queries, query_means), (texts, text_means) = (vectors(model, tokenizer, some) for some in (pairs, pairs.values()))
    for wanted, found in enumerate((query_means @ text_means.T).topk(candidates).indices.tolist()):
        if wanted in found:  # else no order helps
            groups = [queries[wanted]], [texts[i] for i in found]
            bounds = [torch.tensor([0, *map(len, group)]).cumsum(0).int() for group in groups]
            scores = mf.ops.maxsim(*map(torch.cat, groups), *bounds)
            right.append((found[0] == wanted, found[int(scores.argmax())] == wanted))
    before, after = (sum(column) / len(right) for column in zip(*right, strict=True))
    print(f"{len(right)} of {len(pairs)} texts are candidates: first {before:.0%}, reranked {after:.0%} of them")
    return before, after


if __name__ == "__main__":
    main()
