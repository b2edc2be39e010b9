"""The commands of modernbert-fast; each has `help`, `add_arguments(parser)` and `run(args) -> exit code`."""

import importlib
from types import ModuleType


class CommandError(Exception):
    """The request cannot be served; the message says why and what to do. Exit code 2, no traceback."""


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional dependency, or tells the user which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CommandError(
            f"this needs {module}, which is missing here: pip install 'modernbert-fast[{extra}]'"
        ) from error
