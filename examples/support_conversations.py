"""Finds the turn of a long support conversation that answers a question, though the turn alone does not say enough.

The conversation is encoded in one pass, so "it works now" knows what "it" is, hundreds of turns back if need be; then
each turn keeps its own vectors. A new turn costs one pass over the conversation so far, up to 8,192 tokens of it.
The conversations are made up; the small model of the package stands in for one that was trained for search.
"""

import tempfile

import torch
from transformers import AutoModel, AutoTokenizer

import modernbert_fast as mf
from modernbert_fast.retrieval import Index, IndexWriter
from modernbert_fast.tiny import FOLDER
from modernbert_fast.training.flatten import flatten

CONVERSATIONS = {
    "printer": ("The printer prints empty pages.", "Please clean the print head.", "It works now, thank you."),
    "network": ("The network connection is lost every hour.", "Update the driver of the card.", "It works now."),
    "account": ("I cannot log in with my password.", "We sent you a link to set a new password.", "I am in."),
}


def turns(model, tokenizer, conversation):
    """A vector of length 1 for every token (T, C) and the bounds of the turns, all encoded together."""
    pieces = [tokenizer(f" {turn}", add_special_tokens=False)["input_ids"] for turn in conversation]
    batch = flatten([[token for piece in pieces for token in piece]])
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state[0]
    bounds = torch.tensor([0, *map(len, pieces)]).cumsum(0).int()
    return torch.nn.functional.normalize(hidden - hidden.mean(0), dim=1), bounds


def main():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = mf.accelerate(AutoModel.from_pretrained(FOLDER)).eval()
    found = []
    with tempfile.TemporaryDirectory() as folder, IndexWriter(folder, dim=model.config.hidden_size) as writer:
        for name, conversation in CONVERSATIONS.items():
            vectors, bounds = turns(model, tokenizer, conversation)
            ids = [f"{name}-{number}" for number in range(len(conversation))]
            attributes = [{"conversation": name, "turn": turn} for turn in conversation]
            writer.add(ids, vectors, bounds, attributes)  # a new turn is searched as soon as it is there
        index = Index(folder)
        for question in ("empty pages", "driver of the network card", "set a new password"):
            query, bounds = turns(model, tokenizer, [question])
            hit = index.search(query, bounds, k=1)[0][0]
            print(f"{question}: turn {hit.id}: {hit.attributes['turn']}")
            found.append(hit.id)
    return found


if __name__ == "__main__":
    main()
