"""Searches patients' notes by what they say anywhere: a vector for every token, none averaged away, filtered by ward.

A note is encoded whole, whatever its length; its vectors lie on disk in an index that is searched exactly. Its size and
the time of a search grow with the tokens: 192 bytes each here, in int8.
The notes are made up; the small model of the package stands in for one that was trained for search.
"""

import tempfile

import torch
from transformers import AutoModel, AutoTokenizer

import modernbert_fast as mf
from modernbert_fast.retrieval import Index, IndexWriter
from modernbert_fast.tiny import FOLDER
from modernbert_fast.training.flatten import flatten

ROUTINE = "The patient slept well. Blood pressure and temperature are normal. "
NOTES = {  # id: ward, note
    "n1": ("A", ROUTINE * 30 + "In the morning a rash on the left arm was found. " + ROUTINE * 30),
    "n2": ("A", ROUTINE * 5 + "The broken leg heals; the cast is removed next week. " + ROUTINE * 20),
    "n3": ("B", ROUTINE * 50 + "A new rash was found on the arm after penicillin. " + ROUTINE * 10),
    "n4": ("B", ROUTINE * 40 + "The patient asks for a vegetarian diet. "),
}


def vectors(model, tokenizer, texts):
    """A vector of length 1 for every token, (T, C), and the bounds of the texts."""
    batch = flatten(tokenizer(list(texts), truncation=False)["input_ids"])
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden - hidden.mean(0), dim=1), batch["cu_seq_lens_q"]


def main():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = mf.accelerate(AutoModel.from_pretrained(FOLDER)).eval()
    with tempfile.TemporaryDirectory() as folder:
        notes, bounds = vectors(model, tokenizer, [note for _, note in NOTES.values()])
        with IndexWriter(folder, dim=notes.shape[1], dtype="int8") as writer:
            writer.add(list(NOTES), notes, bounds, [{"ward": ward} for ward, _ in NOTES.values()])
        index, found = Index(folder), []
        for query, where in (("a rash on the arm", None), ("a rash on the arm", {"ward": "A"}), ("a broken leg", None)):
            hits = index.search(*vectors(model, tokenizer, [query]), k=2, where=where)[0]
            print(f"{query}, {where or 'all wards'}: {', '.join(f'{hit.id} ({hit.score:.1f})' for hit in hits)}")
            found.append([hit.id for hit in hits])
    return found


if __name__ == "__main__":
    main()
