"""English text that every Python carries: a real job without a download."""

import pydoc_data.topics


def manual_texts() -> list[str]:
    """The topics of Python's own manual, by name: from a paragraph to a chapter."""
    return [text for _, text in sorted(pydoc_data.topics.topics.items())]
