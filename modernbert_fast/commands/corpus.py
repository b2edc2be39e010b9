"""English text that every Python carries: a real job without a download."""

import pydoc_data.topics


def manual_texts() -> list[str]:
    """The topics of Python's own manual, by name: from a paragraph to a chapter."""
    return [text for _, text in sorted(pydoc_data.topics.topics.items())]


def manual_paragraphs(shortest: int = 80, longest: int = 600) -> list[tuple[str, str]]:
    """(topic, paragraph) of the manual's prose, each paragraph on one line; lengths are in characters."""
    found: dict[str, str] = {}  # some topics repeat others
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        for block in text.split("\n\n"):
            paragraph = " ".join(block.split())
            if shortest <= len(paragraph) <= longest and paragraph[0].isupper() and paragraph.endswith("."):
                found.setdefault(paragraph, topic)
    return [(topic, paragraph) for paragraph, topic in found.items()]
