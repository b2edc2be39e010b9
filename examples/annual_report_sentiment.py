"""Tells whether a whole annual report sounds good or bad, wherever in its many pages the telling sentences are.

Of chunks most would say nothing; here one pass reads all and the mean vector decides. Window layers cost as much a
token of a longer report, global layers more; memory grows with the tokens. Reports are made up: six of seven sentences
are neutral, a fifth of the rest disagree. A linear classifier learns from vectors of the package's small model.
"""

import random
from time import perf_counter as clock

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

import modernbert_fast as mf
from modernbert_fast.tiny import FOLDER
from modernbert_fast.training.flatten import flatten

NEUTRAL = ("The board met {} times.", "Note {} explains {}.", "See page {} for {} by region.", "We have {} offices.")
BAD = ("We saw a weak year: {1} fell by {0} percent.", "Losses of {} million reduced {}.", "{1} became worse.")
GOOD = ("We saw a strong year: {1} rose by {0} percent.", "Gains of {} million increased {}.", "{1} became better.")


def report(tokenizer, draw, tokens):
    """Token ids, and whether the report is a good one."""
    good, ids = draw.randrange(2), []
    while len(ids) < tokens:
        tells = (BAD, GOOD)[good if draw.random() < 0.8 else 1 - good]
        sentence = draw.choice(tells if draw.random() < 0.15 else NEUTRAL)
        ids += tokenizer(f" {sentence.format(draw.randint(2, 99), 'sales')}", add_special_tokens=False)["input_ids"]
    return ids, good


def read(model, reports):
    """The mean vector of each report (B, C), four of them laid end to end at a time, and which are good."""
    vectors = []
    for i in range(0, len(reports), 4):
        batch = flatten([ids for ids, _ in reports[i : i + 4]])
        with torch.inference_mode():
            vectors.append(mf.ops.pooling(model(**batch).last_hidden_state[0], batch["cu_seq_lens_q"], mode="mean"))
    return torch.cat(vectors), [good for _, good in reports]


def main(learn=72, held_out=20, lengths=((500, 1500), (1500, 2500))):
    draw, tokenizer = random.Random(0), AutoTokenizer.from_pretrained(FOLDER)
    model = mf.accelerate(AutoModel.from_pretrained(FOLDER, dtype=torch.float32)).eval()
    classifier, shares = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)), []
    classifier.fit(*read(model, [report(tokenizer, draw, draw.randint(500, 2500)) for _ in range(learn)]))
    for shortest, longest in lengths:
        reports, start = [report(tokenizer, draw, draw.randint(shortest, longest)) for _ in range(held_out)], clock()
        shares.append(classifier.score(*read(model, reports)))
        each = 1e6 * (clock() - start) / sum(len(ids) for ids, _ in reports)
        print(f"{shortest} to {longest} tokens: {shares[-1]:.0%} of {held_out} right, {each:.0f} microseconds a token")
    return shares


if __name__ == "__main__":
    main()
