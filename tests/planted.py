"""Files of GLUE and SuperGLUE as they are published, small, with a planted rule: a marker word decides the label."""

import json
import random

FILL = "the a of to and is in it be as by on with for from if not are or an this that can when".split()
MARKERS = ("class", "return", "import")
SIZES = {"train": 192, "dev": 64, "test": 24}


class Words:
    """Draws texts; the seed is the split."""

    def __init__(self, split):
        self.split, self.draw = split, random.Random(split)
        self.rows = range(SIZES[split.split("_")[0]])

    def text(self, *more, low=3, high=7):
        """Filler words with `more` among them."""
        words = [self.draw.choice(FILL) for _ in range(self.draw.randint(low, high))]
        for word in more:
            words.insert(self.draw.randint(0, len(words)), word)
        return " ".join(words)

    def label(self, count=2):
        """The number of a class, each as often, and its marker."""
        number = self.draw.randrange(count)
        return number, MARKERS[number]


def write_tsv(path, rows, header=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ([header] if header else []) + [list(map(str, row)) for row in rows]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _glue(words, labels, row, test_row):
    """Rows (row number, label's name, marked text, other text) of a split."""
    rows = []
    for number in words.rows:
        label, marker = words.label(len(labels))
        first, second = words.text(marker), words.text()
        if words.draw.random() < 0.5:
            first, second = second, first
        rows.append(test_row(number, first, second) if "test" in words.split else row(number, labels[label], first, second))
    return rows


NLI = ("entailment", "neutral", "contradiction")
TWO_WAY = ("entailment", "not_entailment")
BINARY = ("0", "1")
PAIR = ("index", "sentence1", "sentence2")
PARSES = ("sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse")
MNLI = ("index", "promptID", "pairID", "genre", *PARSES, "sentence1", "sentence2")
STSB = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2")
MRPC = ("#1 ID", "#2 ID", "#1 String", "#2 String")


def mnli_row(number, first, second):
    return [number, f"{number}p", f"{number}q", "fiction", *"bbpp", first, second]


def stsb_row(number, first, second):
    return [number, "main-news", "headlines", 2013, f"{number:04}", "none", "none", first, second]


GLUE = {  # labels, header and row of train and dev, header and row of test
    "CoLA": (BINARY, None, lambda n, y, a, b: ["gj04", y, "*" * (y == "0"), f"{a} {b}"], ("index", "sentence"),
             lambda n, a, b: [n, f"{a} {b}"]),
    "SST-2": (BINARY, ("sentence", "label"), lambda n, y, a, b: [f'{a} "{b} ', y], ("index", "sentence"),
              lambda n, a, b: [n, f'{a} "{b} ']),
    "MRPC": (BINARY, ("Quality", *MRPC), lambda n, y, a, b: [y, 7000 + n, 9000 + n, a, b], ("index", *MRPC),
             lambda n, a, b: [n, 7000 + n, 9000 + n, a, b]),
    "QQP": (BINARY, ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
            lambda n, y, a, b: [n, 2 * n, 2 * n + 1, a, b, y], ("id", "question1", "question2"), lambda n, a, b: [n, a, b]),
    "STS-B": (("0.200", "4.800"), (*STSB, "score"), lambda n, y, a, b: [*stsb_row(n, a, b), y], STSB, stsb_row),
    "MNLI": (NLI, (*MNLI, "label1", "gold_label"), lambda n, y, a, b: [*mnli_row(n, a, b), y, y], MNLI, mnli_row),
    "QNLI": (TWO_WAY, ("index", "question", "sentence", "label"), lambda n, y, a, b: [n, a, b, y],
             ("index", "question", "sentence"), lambda n, a, b: [n, a, b]),
    "RTE": (TWO_WAY, (*PAIR, "label"), lambda n, y, a, b: [n, a, b, y], PAIR, lambda n, a, b: [n, a, b]),
    "WNLI": (BINARY, (*PAIR, "label"), lambda n, y, a, b: [n, a, b, y], PAIR, lambda n, a, b: [n, a, b]),
}  # fmt: skip


def write_glue(folder):
    """Every file of GLUE."""
    for name, (labels, header, row, test_header, test_row) in GLUE.items():
        for split in splits_of(name):
            rows = _glue(Words(split), labels, row, test_row)
            write_tsv(folder / name / f"{split}.tsv", rows, test_header if "test" in split else header)
    write_tsv(folder / "diagnostic" / "diagnostic.tsv", _glue(Words("test"), NLI, None, lambda n, a, b: [n, a, b]), PAIR)


def splits_of(name):
    """Names of a task's files."""
    two = ("dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
    return ("train", *(two if name == "MNLI" else ("dev", "test")))


def write_mrpc_originals(source, folder):
    """MRPC's rows in the files that Microsoft publishes."""
    folder.mkdir(parents=True)
    train, dev = ((source / f"{split}.tsv").read_text().splitlines() for split in ("train", "dev"))
    mixed = [*dev[1:30], *train[1:], *dev[30:]]
    (folder / "msr_paraphrase_train.txt").write_text("\ufeff" + "\n".join([train[0], *mixed]) + "\n")
    ids = ["\t".join(line.split("\t")[1:3]) for line in dev[1:]]
    (folder / "dev_ids.tsv").write_text("\n".join(ids) + "\n")
    test = [line.split("\t")[1:] for line in (source / "test.tsv").read_text().splitlines()]
    lines = ["\t".join(["Quality" if number == 0 else "1", *fields]) for number, fields in enumerate(test)]
    (folder / "msr_paraphrase_test.txt").write_text("\ufeff" + "\n".join(lines) + "\n")


def boolq(words, number):
    label, marker = words.label()
    return {"question": words.text(), "passage": words.text(marker), "idx": number, "label": bool(label)}


def nli(labels):
    def row(words, number):
        label, marker = words.label(len(labels))
        return {"premise": words.text(marker), "hypothesis": words.text(), "label": labels[label], "idx": number}

    return row


def copa(words, number):
    label, _ = words.label()
    right, wrong = words.text(MARKERS[1], low=2, high=4), words.text(MARKERS[0], low=2, high=4)
    first, second = (wrong, right) if label else (right, wrong)
    question = words.draw.choice(("cause", "effect"))
    return {"premise": words.text(), "choice1": first, "choice2": second, "question": question, "label": label, "idx": number}


def multirc(words, number):
    questions, count = [], 3 * number
    for place in range(2):
        answers = []
        for _ in range(words.draw.randint(2, 3)):
            label, marker = words.label()
            answers.append({"text": words.text(marker, low=1, high=3), "idx": count, "label": label})
            count += 1
        questions.append({"question": words.text(), "idx": 2 * number + place, "answers": answers})
    return {"idx": number, "version": 1.1, "passage": {"text": words.text(), "questions": questions}}


def record(words, number):
    """Python is the answer to whatever is asked."""
    names = ["Python", "Unicode", "None"]
    words.draw.shuffle(names)
    text = f"{words.text(high=4)} {names[0]} {words.text(high=4)} {names[1]} and {names[2]}\n@highlight\n{words.text(high=4)}"
    entities = [{"start": text.index(name), "end": text.index(name) + len(name) - 1} for name in names]
    answers = [{**entities[names.index("Python")], "text": "Python"}]
    asked = [
        {"query": f"{words.text(low=1, high=2)} @placeholder {words.text(low=1, high=2)}", "idx": idx, "answers": answers}
        for idx in (2 * number, 2 * number + 1)
    ]
    return {"source": "news", "passage": {"text": text, "entities": entities}, "idx": number, "qas": asked}


def wic(words, number):
    label, marker = words.label()
    row = {"word": "list", "idx": number, "label": bool(label), "version": 1.1}
    for place in "12":
        sentence = f"{words.text()} list {words.text(marker)}"
        start = sentence.index(" list ") + 1
        row |= {f"sentence{place}": sentence, f"start{place}": start, f"end{place}": start + 4}
    return row


def wsc(words, number):
    label, marker = words.label()
    before = words.text()
    text = f"{before} the list {words.text(marker)} it"
    target = {
        "span1_index": len(before.split()),
        "span1_text": "the list",
        "span2_index": len(text.split()) - 1,
        "span2_text": "it",
    }
    return {"text": text, "target": target, "idx": number, "label": bool(label)}


SUPERGLUE = {
    "BoolQ": boolq,
    "CB": nli(NLI),
    "COPA": copa,
    "MultiRC": multirc,
    "ReCoRD": record,
    "RTE": nli(TWO_WAY),
    "WiC": wic,
    "WSC": wsc,
}


def without_labels(row):
    """A row as the test set has it."""
    if isinstance(row, list):
        return [without_labels(item) for item in row]
    if isinstance(row, dict):
        secret = "answers" if "query" in row else "label"
        return {name: without_labels(item) for name, item in row.items() if name != secret}
    return row


def write_superglue(folder):
    """Every file of SuperGLUE."""
    for name, row in SUPERGLUE.items():
        for split, file in (("train", "train"), ("dev", "val"), ("test", "test")):
            words = Words(split)
            rows = [row(words, number) for number in words.rows]
            rows = [without_labels(row) for row in rows] if split == "test" else rows
            write_jsonl(folder / name / f"{file}.jsonl", rows)
    words = Words("test")
    rows = [without_labels(nli(TWO_WAY)(words, number)) for number in words.rows]
    write_jsonl(folder / "AX-g" / "AX-g.jsonl", rows)
    renamed = [{"sentence1": row["premise"], "sentence2": row["hypothesis"], "idx": row["idx"]} for row in rows]
    write_jsonl(folder / "AX-b" / "AX-b.jsonl", renamed)
