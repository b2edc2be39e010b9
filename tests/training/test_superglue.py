"""SuperGLUE from its published files: every task learns a planted rule and writes the file that the server takes."""

import json

import planted
import pytest

from modernbert_fast import cli
from modernbert_fast.training import superglue, superglue_hub

pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("keep_threads")

CPU = ("--device", "cpu", "--threads", "1")
QUICK = ("--learning-rate", "2e-3", "--epochs", "6", "--batch-size", "16", "--evaluations", "2", "--patience", "9")
WORDS = {  # the server's, for the labels of the files
    "BoolQ": {False: "false", True: "true"},
    "WiC": {False: "false", True: "true"},
    "WSC": {False: "False", True: "True"},
    "COPA": {0: 0, 1: 1},
    "CB": {label: label for label in planted.NLI},
    "RTE": {label: label for label in planted.TWO_WAY},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("superglue")
    planted.write_superglue(folder)
    return folder


@pytest.fixture(scope="module")
def output(data, tiny_checkpoint, tmp_path_factory):
    """All of SuperGLUE, trained once."""
    folder = tmp_path_factory.mktemp("tuned")
    given = ["--data", str(data), "--model", str(tiny_checkpoint), "--output", str(folder)]
    assert cli.main(["finetune", "superglue", *given, *QUICK, *CPU]) == 0
    return folder


@pytest.mark.parametrize("task", planted.SUPERGLUE)
def test_a_planted_rule_is_learned(output, task):
    (metrics,) = json.loads((output / "results.json").read_text())[task]
    assert min(metrics.values()) > 0.95, metrics
    assert len(metrics) == {"CB": 2, "MultiRC": 2, "ReCoRD": 2}.get(task, 1)


def submission(output, name):
    return [json.loads(line) for line in (output / "submission" / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", [*WORDS, "AX-b", "AX-g"])
def test_the_submission_is_what_the_server_takes(output, name):
    lines = submission(output, name)
    truth = planted.superglue_rows(name if name in WORDS else "RTE", "test")
    assert [set(line) for line in lines] == [{"idx", "label"}] * len(truth)
    assert [line["idx"] for line in lines] == [row["idx"] for row in truth]
    words = WORDS.get(name, WORDS["RTE"])
    assert all(
        line["label"] in words.values() and type(line["label"]) is type(next(iter(words.values()))) for line in lines
    )
    right = sum(line["label"] == words[row["label"]] for line, row in zip(lines, truth, strict=True))
    assert right > 0.95 * len(truth)


def test_the_submission_of_multirc(output):
    """Nested as the test set is: paragraphs, questions, answers, each by its idx, an answer's label 0 or 1."""
    truth = planted.superglue_rows("MultiRC", "test")
    expected = [
        {
            "idx": row["idx"],
            "passage": {
                "questions": [
                    {
                        "idx": question["idx"],
                        "answers": [{"idx": answer["idx"], "label": answer["label"]} for answer in question["answers"]],
                    }
                    for question in row["passage"]["questions"]
                ]
            },
        }
        for row in truth
    ]
    assert submission(output, "MultiRC") == expected


def test_the_submission_of_record(output):
    """A line a query, its idx and the text of an entity of the passage."""
    queries = {asked["idx"] for row in planted.superglue_rows("ReCoRD", "test") for asked in row["qas"]}
    lines = submission(output, "ReCoRD")
    assert len(lines) == len(queries) and {line["idx"] for line in lines} == queries
    assert all(line["label"] == "Python" for line in lines)


def test_spans_are_marked():
    wic = {
        "word": "bank",
        "sentence1": "The bank.",
        "start1": 4,
        "end1": 8,
        "sentence2": "Banks",
        "start2": 0,
        "end2": 5,
    }
    (example,) = superglue.TASKS["WiC"].build({**wic, "idx": 0, "label": True}, test=False)
    assert example.texts == ("The * bank *.", "* Banks *") and example.label == "True"
    target = {"span1_index": 1, "span1_text": "big dog", "span2_index": 4, "span2_text": "it"}
    (example,) = superglue.TASKS["WSC"].build(
        {"text": "The big dog said it barks", "target": target, "idx": 3}, test=True
    )
    assert example.texts == ("The * big dog * said # it # barks",) and example.label is None


def test_candidates_of_record_are_the_distinct_entities():
    entities = [{"start": start, "end": start + 2} for start in (0, 8, 24)]
    row = {
        "idx": 0,
        "passage": {"text": "Ann met Bob.\n@highlight\nAnn won", "entities": entities},
        "qas": [{"idx": 5, "query": "@placeholder lost", "answers": [{"start": 8, "end": 10, "text": "Bob"}]}],
    }
    examples = superglue.TASKS["ReCoRD"].build(row, test=False)
    assert [(example.texts[0], example.label, example.key) for example in examples] == [
        ("Ann lost", "0", (5, "Ann")),
        ("Bob lost", "1", (5, "Bob")),
    ]


MALFORMED = {
    "not JSON": ("BoolQ", lambda row: '{"question": ', "not JSON"),
    "no object": ("BoolQ", lambda row: "[1, 2]", "is list, not an object"),
    "no label": ("BoolQ", lambda row: {k: v for k, v in row.items() if k != "label"}, "no field 'label' among"),
    "label of another type": ("BoolQ", lambda row: {**row, "label": 1}, "field 'label' is int, not bool"),
    "unknown label": ("CB", lambda row: {**row, "label": "maybe"}, "'maybe' is none of the labels"),
    "unknown question": ("COPA", lambda row: {**row, "question": "why"}, "'why' is none of"),
    "third choice": ("COPA", lambda row: {**row, "label": 2}, "2 is none of the labels 0, 1"),
    "passage": ("MultiRC", lambda row: {**row, "passage": None}, "field 'passage' is NoneType, not dict"),
    "entity": (
        "ReCoRD",
        lambda row: {**row, "passage": {**row["passage"], "entities": [{"start": 3, "end": 9999}]}},
        "an entity lies outside the passage",
    ),
    "no entity": (
        "ReCoRD",
        lambda row: {**row, "passage": {**row["passage"], "entities": []}},
        "the passage has no entities",
    ),
    "word": ("WiC", lambda row: {**row, "end1": 9999}, "outside sentence1"),
    "span": ("WSC", lambda row: {**row, "target": {**row["target"], "span2_index": 9999}}, "span2_index is 9999"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_row_is_named_and_nothing_else_is_lost(data, tmp_path, what):
    name, change, complaint = MALFORMED[what]
    lines = (data / name / "train.jsonl").read_text().splitlines()
    original = superglue.read(superglue.TASKS[name], str(data), "train")
    bad = change(json.loads(lines[0]))
    lines.insert(3, bad if isinstance(bad, str) else json.dumps(bad))
    path = tmp_path / name / "train.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError) as error:
        superglue.read(superglue.TASKS[name], str(tmp_path), "train")
    assert str(error.value).startswith(f"{path}, line 4: ") and complaint in str(error.value)
    said = []
    assert superglue.read(superglue.TASKS[name], str(tmp_path), "train", said.append) == original
    assert said == [str(error.value)]


HUB_LABELS = {
    "BoolQ": ["False", "True"],
    "CB": ["entailment", "contradiction", "neutral"],
    "COPA": ["choice1", "choice2"],
    "MultiRC": ["False", "True"],
    "ReCoRD": None,
    "RTE": ["entailment", "not_entailment"],
    "WiC": ["False", "True"],
    "WSC": ["False", "True"],
}


def hub_rows(name, row):
    """A published row as the hub has it: lists laid flat, classes by number."""
    if name == "WSC":
        return [{"text": row["text"], **row["target"], "idx": row["idx"], "label": int(row["label"])}]
    passage, number = row.get("passage"), row["idx"]
    if name == "MultiRC":
        return [
            {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "idx": {"paragraph": number, "question": question["idx"], "answer": answer["idx"]},
                "label": answer["label"],
            }
            for question in passage["questions"]
            for answer in question["answers"]
        ]
    if name == "ReCoRD":
        text = passage["text"]
        names = [text[entity["start"] : entity["end"] + 1] for entity in passage["entities"]]
        return [
            {
                "passage": text,
                "query": asked["query"],
                "entities": names,
                "answers": [answer["text"] for answer in asked["answers"]],
                "idx": {"passage": number, "query": asked["idx"]},
            }
            for asked in row["qas"]
        ]
    labels = HUB_LABELS[name]
    label = row["label"] if name == "COPA" else labels.index(str(row["label"]))
    return [{**row, "label": label}]


@pytest.mark.parametrize("name", planted.SUPERGLUE)
def test_from_a_dataset_of_hugging_face(name, data, monkeypatch):
    """Its rows become the examples of the published files."""
    datasets = pytest.importorskip("datasets")
    rows = [flat for row in planted.superglue_rows(name, "dev") for flat in hub_rows(name, row)]
    asked = []

    def load(*path, split):
        asked.append((*path, split))
        table = datasets.Dataset.from_list(rows)
        labels = HUB_LABELS[name]
        return table.cast_column("label", datasets.ClassLabel(names=labels)) if labels else table

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = superglue.TASKS[name]
    assert superglue.read(task, "hf:aps/super_glue", "dev") == superglue.read(task, str(data), "dev")
    assert asked == [("aps/super_glue", {"WSC": "wsc.fixed"}.get(name, name.lower()), "validation")]


@pytest.mark.parametrize("name", planted.SUPERGLUE)
def test_a_row_of_hugging_face_that_lacks_a_field_is_malformed(name):
    """ValueError, which the reader takes for the row's fault, whichever field is missing or null."""
    row = hub_rows(name, planted.superglue_rows(name, "dev")[0])[0]
    names = HUB_LABELS[name]
    row |= {"label": names[row["label"]]} if names else {}
    build, seldom = superglue.TASKS[name].build, {"word", "version"}
    assert build(superglue_hub.published(name, row), test=False)
    for field in row.keys() - seldom:
        for bad in ({key: value for key, value in row.items() if key != field}, {**row, field: None}):
            with pytest.raises(ValueError):
                build(superglue_hub.published(name, bad), test=False)
    for key in row["idx"] if isinstance(row["idx"], dict) else ():
        bad = {**row, "idx": {other: n for other, n in row["idx"].items() if other != key}}
        with pytest.raises(ValueError, match=f"no field '{key}'"):
            build(superglue_hub.published(name, bad), test=False)
