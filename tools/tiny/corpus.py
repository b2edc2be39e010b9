"""English prose that the packages of requirements-dev.txt carry, as documents for a small language model.

Docstrings, other long strings and comments of Python files (read, never imported), CMake's manual, the topics of
Python's manual. Kept are paragraphs of sentences; code, tables, doctests and lists of parameters go. A paragraph goes
too where much of it stood in an earlier one, names and numbers aside: the splits, drawn by file, share no text.

    python tools/tiny/corpus.py FOLDER    writes train.jsonl, test.jsonl and corpus.json
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import pydoc_data.topics
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

STANDARD_LIBRARY = "python"
# Module folders by licence.
LICENCES = {
    "PSF-2.0": (STANDARD_LIBRARY,),
    "BSD-3-Clause": ("cmake", "mpmath", "networkx", "numpy", "pandas", "scipy", "sklearn", "sympy", "torch"),
    "Matplotlib": ("matplotlib",),
    "Apache-2.0": (
        "accelerate", "datasets", "huggingface_hub", "peft", "pyarrow", "sentence_transformers", "transformers",
    ),
    "MIT": ("_pytest", "fontTools", "mypy", "setuptools", "triton"),
}  # fmt: skip
LEFT_OUT = re.compile(r"(^|/)(site-packages|tests?|idlelib|pydoc_data|_?vendor|externals|release)/")
TEST_PERCENT = 3  # of the files
MAX_WORDS = 150  # of a document: a longer one is cut between paragraphs
SHINGLE, KNOWN = 8, 0.3  # words that make a run; the share of known runs from which on a paragraph is a copy

COMMON = frozenset(
    "a an and are as at be been but by can do does for from has have if in into is it its may must no not of on one"
    " only or other same should so such than that the their them then there these they this to used when where which"
    " will with you".split()
)
COMMENT = re.compile(r"(?m)(?:^[ \t]*#.*\n){2,}")
UNDERLINE = re.compile(r"[-=~^*\"+]{3,}$")
DIRECTIVE = re.compile(r"\s*(\.\. |:\w[\w ]*:|#)|" + UNDERLINE.pattern)
ITEM = re.compile(r"(\s*)([-*•]|\d{1,2}[.)]|\(\d\))(\s+)")
MARKUP = [
    (re.compile(r":[\w:+.-]+:`[~!]?\.?(?:[^`<>]*?<)?([^`<>]+?)>?`"), r"\1"),  # :class:`~torch.nn.Linear`
    (re.compile(r"`([^`<>]+?)\s*<[^`>]*>`__?"), r"\1"),  # `text <address>`_
    (re.compile(r"!?\[([^\]]+)\]\([^)]*\)"), r"\1"),  # [text](address)
    (re.compile(r"\s*\[[\w ,]{1,12}\]_"), ""),  # [1]_
    (re.compile(r"\[`?([^\]`]+)`?\](?!\w)"), r"\1"),  # [`Trainer`]
    (re.compile(r"\*\*(\S[^*]*?)\*\*|(?<![\w*])\*(\S[^*]*?)\*(?![\w*])"), r"\1\2"),
    (re.compile(r"`+_*"), ""),
    (re.compile(r"\\([ _*`|])"), r"\1"),
    (re.compile(r"[\u2018\u2019]"), "'"),
    (re.compile(r"[\u201c\u201d]"), '"'),
    (re.compile(r"\s+"), " "),
]
SENTENCE_START = re.compile(r"[\"'(]?[A-Z]")
SENTENCE_END = re.compile(r"[.!?][\"')]*(?=\s|$)")
REFERENCE = re.compile(r"\b(vol|pp|Vol|no|et al|Proc|Journal|Press|Trans|arXiv|doi|Copyright|License)\b")
STRANGE = re.compile(r"[^A-Za-z0-9 .,;:'\"()!?-]")


def blocks(text: str) -> Iterator[str]:
    """Runs of lines of one indentation; a marked item of a list is a run. No doctest, fenced or literal block."""
    run: list[str] = []
    indent, literal, fenced, doctest = 0, None, False, False
    for line in [*inspect.cleandoc(text).splitlines(), ""]:
        stripped = line.strip()
        depth = len(line) - len(line.lstrip())
        if stripped.startswith(("```", "~~~")):
            fenced, stripped = not fenced, ""
        if literal is not None and stripped:
            if depth > literal:
                continue
            literal = None
        if UNDERLINE.match(stripped):
            run = []  # the line above is a heading
        doctest = bool(stripped) and (doctest or stripped.startswith((">>>", "In [", "$ ")))
        item = ITEM.match(line)
        if item:
            depth = item.end()
        if run and (not stripped or item or depth != indent):
            if run[-1].endswith("::"):
                literal = indent
            yield " ".join(run)
            run = []
            if literal is not None and depth > literal:
                continue
        if stripped and not (fenced or doctest or DIRECTIVE.match(line)):
            run.append(line[item.end() :].strip() if item else stripped)
            indent = depth


def prose(block: str) -> str:
    """The sentences of a block without markup; empty when it is not prose."""
    for pattern, replacement in MARKUP:
        block = pattern.sub(replacement, block)
    ends = [match.end() for match in SENTENCE_END.finditer(block)]
    if not ends or not SENTENCE_START.match(block) or REFERENCE.search(block):
        return ""
    block = block[: ends[-1]]
    words = block.split()
    common = sum(word.lower().strip(".,;:()") in COMMON for word in words)
    sane = 0.2 * len(words) <= common and len(STRANGE.findall(block)) <= 0.02 * len(block)
    return block if sane and len(words) >= 5 and max(map(len, words)) <= 40 else ""


def strings(source: bytes) -> Iterator[str]:
    """The long strings of a Python file, docstrings among them, then its comments of several lines."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 60:
            yield node.value
    for comment in COMMENT.findall(source.decode("utf-8", "replace")):
        yield re.sub(r"(?m)^[ \t]*# ?", "", comment)


def sources() -> Iterator[tuple[str, str, Iterator[str]]]:
    """(package, file, its texts), in a fixed order."""
    for name, text in sorted(pydoc_data.topics.topics.items()):
        yield STANDARD_LIBRARY, f"topics/{name}", iter([text])
    for name in (name for names in LICENCES.values() for name in names):
        root = _root(name)
        for path in sorted([*root.rglob("*.py"), *root.rglob("*.rst")]):
            file = path.relative_to(root).as_posix()
            if not LEFT_OUT.search(file):
                read = path.read_bytes()
                yield name, file, strings(read) if path.suffix == ".py" else iter([read.decode("utf-8", "replace")])


def _root(name: str) -> Path:
    if name == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        raise SystemExit(f"the corpus needs {name}: make build installs it")
    return Path(spec.origin).parent


class Seen:
    """Which runs of words have been met."""

    def __init__(self) -> None:
        self._shingles: set[int] = set()

    def share(self, paragraph: str) -> float:
        """How much of a paragraph stood in earlier ones; from now on all of it has."""
        words = re.sub(r"\w*[\d_]\w*|[a-z]+[A-Z]\w*|[A-Z]\w*[A-Z]\w*", "x", paragraph)  # names differ in copies
        words = re.findall(r"[a-z]+", words.lower())
        runs = [" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))]
        hashes = [int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little") for run in runs]
        known = sum(number in self._shingles for number in hashes)
        self._shingles.update(hashes)
        return known / len(hashes)


def split_of(package: str, file: str) -> str:
    """test for TEST_PERCENT of the files, else train."""
    digest = hashlib.blake2b(f"{package}/{file}".encode(), digest_size=4).digest()
    return "test" if int.from_bytes(digest, "little") % 100 < TEST_PERCENT else "train"


def documents() -> Iterator[tuple[str, str, str]]:
    """(package, split, text): the paragraphs of a string, a comment or a manual page, one after another on one line."""
    seen = Seen()
    for package, file, texts in sources():
        split = split_of(package, file)
        for text in texts:
            kept = [found for block in blocks(text) if (found := prose(block)) and seen.share(found) < KNOWN]
            part: list[str] = []
            words = 0
            for paragraph in [*kept, ""]:
                count = len(paragraph.split())
                if part and (not paragraph or words + count > MAX_WORDS):
                    yield package, split, " ".join(part)
                    part, words = [], 0
                part.append(paragraph)
                words += count


def main(folder: str) -> int:
    """Writes the splits, and what they are made of."""
    warnings.simplefilter("ignore", SyntaxWarning)
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    words: Counter[tuple[str, str]] = Counter()
    with open(output / "train.jsonl", "w") as train, open(output / "test.jsonl", "w") as test:
        files = {"train": train, "test": test}
        for package, split, text in documents():
            files[split].write(json.dumps({"text": text, "package": package}) + "\n")
            words[package, split] += len(text.split())
    made_of = [
        {
            "package": name,
            "version": platform.python_version() if name == STANDARD_LIBRARY else _version(name),
            "licence": licence,
            "train_words": words[name, "train"],
            "test_words": words[name, "test"],
        }
        for licence, names in LICENCES.items()
        for name in names
    ]
    (output / "corpus.json").write_text(json.dumps(made_of, indent=1) + "\n")
    for row in made_of:
        print(*row.values(), sep="  ")
    train_words, test_words = (sum(words[row["package"], split] for row in made_of) for split in ("train", "test"))
    print(f"{train_words:,} words to train on, {test_words:,} to test")
    return 0


def _version(module: str) -> str:
    distribution = importlib.metadata.packages_distributions()[module][0]
    return f"{distribution} {importlib.metadata.version(distribution)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
