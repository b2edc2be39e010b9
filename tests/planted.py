"""Files of GLUE and SuperGLUE as they are published, small, with a planted rule: a marker word decides the label."""

import json
import random

FILL = "the a of to and is in it be as by on with for from if not are or an this that can when".split()
MARKERS = ("class", "return", "import", "method", "object", "string")
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


NLI = ("entailment", "neutral", "contradiction")
TWO_WAY = ("entailment", "not_entailment")
BINARY = ("0", "1")
SCORES = ("0.000", "1.000", "2.000", "3.000", "4.000", "5.000")
GLUE_LABELS = {
    "CoLA": BINARY,
    "SST-2": BINARY,
    "MRPC": BINARY,
    "QQP": BINARY,
    "STS-B": SCORES,
    "MNLI": NLI,
    "QNLI": TWO_WAY,
    "RTE": TWO_WAY,
    "WNLI": BINARY,
}
PAIR = ("index", "sentence1", "sentence2")
MRPC = ("#1 ID", "#2 ID", "#1 String", "#2 String")
PARSES = ("sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse")
MNLI = ("index", "promptID", "pairID", "genre", *PARSES, "sentence1", "sentence2")
STSB = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2")
GLUE_HEADERS = {  # of train and dev, and of test
    "CoLA": (None, ("index", "sentence")),
    "SST-2": (("sentence", "label"), ("index", "sentence")),
    "MRPC": (("Quality", *MRPC), ("index", *MRPC)),
    "QQP": (("id", "qid1", "qid2", "question1", "question2", "is_duplicate"), ("id", "question1", "question2")),
    "STS-B": ((*STSB, "score"), STSB),
    "MNLI": ((*MNLI, "label1", "gold_label"), MNLI),
    "QNLI": (("index", "question", "sentence", "label"), ("index", "question", "sentence")),
    "RTE": ((*PAIR, "label"), PAIR),
    "WNLI": ((*PAIR, "label"), PAIR),
}


def glue_row(name, split, n, label, first, second):
    """A row of a task's file, in the columns of its header."""
    test = "test" in split
    if name == "CoLA":
        return [n, f"{first} {second}"] if test else ["gj04", label, "*" * (label == "0"), f"{first} {second}"]
    if name == "SST-2":
        text = f'{first} "{second} '  # a quote that nothing closes, and the blank that SST-2 ends with
        return [n, text] if test else [text, label]
    if name == "MRPC":
        return [n if test else label, *(f"{split}{n}{side}" for side in "ab"), first, second]
    if name == "QQP":
        return [n, first, second] if test else [n, 2 * n, 2 * n + 1, first, second, label]
    if name == "STS-B":
        row = [n, "main-news", "headlines", 2013, f"{n:04}", "none", "none", first, second]
    elif name == "MNLI":
        row = [n, f"{n}p", f"{n}q", "fiction", *"bbpp", first, second]
        return row if test else [*row, label, label]
    else:
        row = [n, first, second]
    return row if test else [*row, label]


def glue_rows(name, split):
    """Rows of a split, and their labels."""
    words, labels, rows, truth = Words(split), GLUE_LABELS[name], [], []
    for number in words.rows:
        label, marker = words.label(len(labels))
        texts = [words.text(marker), words.text()]
        words.draw.shuffle(texts)
        truth.append(labels[label])
        rows.append(glue_row(name, split, number, labels[label], *texts))
    return rows, truth


def write_glue(folder):
    """Every file of GLUE."""
    for name, (header, test_header) in GLUE_HEADERS.items():
        two = ("dev_matched", "dev_mismatched", "test_matched", "test_mismatched")
        for split in ("train", *(two if name == "MNLI" else ("dev", "test"))):
            write_tsv(
                folder / name / f"{split}.tsv", glue_rows(name, split)[0], test_header if "test" in split else header
            )
    diagnostic = [[row[0], *row[-2:]] for row in glue_rows("MNLI", "test")[0]]
    write_tsv(folder / "diagnostic" / "diagnostic.tsv", diagnostic, PAIR)


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
    return {
        "premise": words.text(),
        "choice1": first,
        "choice2": second,
        "question": question,
        "label": label,
        "idx": number,
    }


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
    text = f"{words.text()} {names[0]} {words.text()} {names[1]} and {names[2]}\n@highlight\n{words.text()}"
    entities = [{"start": text.index(name), "end": text.index(name) + len(name) - 1} for name in names]
    answers = [{**entities[names.index("Python")], "text": "Python"}]
    asked = [
        {
            "query": f"{words.text(low=1, high=2)} @placeholder {words.text(low=1, high=2)}",
            "idx": idx,
            "answers": answers,
        }
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


def superglue_rows(name, split):
    """Rows of a split, labels and all."""
    words = Words(split)
    many = 4 if name in ("MultiRC", "ReCoRD") else 1  # questions a row
    return [SUPERGLUE[name](words, number) for number in words.rows[: len(words.rows) // many]]


def write_superglue(folder):
    """Every file of SuperGLUE."""
    for name in SUPERGLUE:
        for split, file in (("train", "train"), ("dev", "val"), ("test", "test")):
            rows = superglue_rows(name, split)
            write_jsonl(folder / name / f"{file}.jsonl", without_labels(rows) if split == "test" else rows)
    rows = without_labels(superglue_rows("RTE", "test"))
    write_jsonl(folder / "AX-g" / "AX-g.jsonl", rows)
    renamed = [{"sentence1": row["premise"], "sentence2": row["hypothesis"], "idx": row["idx"]} for row in rows]
    write_jsonl(folder / "AX-b" / "AX-b.jsonl", renamed)
