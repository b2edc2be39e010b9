"""Where sentences of prose begin: punctuation, abbreviations and empty lines, no model."""

from __future__ import annotations

import re

# A full stop ends a sentence where a space and no small letter follow; in East Asian writing without a space.
# A match starts where a run of full stops does: tried from each of them, a long run would take quadratic time.
END = re.compile(r"(?<![.!?…])([.!?…]+)[\"')\]”’»]*\s+(?=[\"'(\[“‘«]*(\w))|[。！？]+[」』”’]*\s*|\n\s*\n\s*")
LAST_WORD = re.compile(r"(?:^|(?<=[\s(\[\"'“‘—-]))[^\s(\[\"'“‘—-]+$")
WORD = 24  # characters looked at before a full stop
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev hon st sr jr messrs mme mlle capt col gen lt sgt gov sen rep pres "
    "vs cf al ed eds vol vols pp p no nos fig figs eq sec ch chap art viz approx dept est inc ltd co corp "
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun "
    "e.g i.e a.m p.m u.s u.k b.c a.d ph.d op cit ibid ca".split()
)


def sentence_starts(text: str) -> list[int]:
    """Characters at which sentences begin: 0, then rising. A text of one sentence gives [0]."""
    starts = [0]
    for match in END.finditer(text):
        stop, after = match.groups()
        if after is not None and (after.islower() or (stop == "." and _goes_on(text, match.start()))):
            continue
        if match.end() < len(text):
            starts.append(match.end())
    return starts


def _goes_on(text: str, stop: int) -> bool:
    """Whether the full stop at `stop` belongs to an abbreviation, an initial or the number of a list's item."""
    first = max(0, stop - WORD)
    found = LAST_WORD.search(text[first:stop])
    if found is None:
        return False
    word, begin = found[0], first + found.start()
    if word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I"):
        return True
    return word.isdigit() and (begin == 0 or text[begin - 1] == "\n")
