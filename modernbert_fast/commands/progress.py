"""How far a long command is, on stderr."""

import sys
import time
from typing import Any


class Progress:
    """tqdm on a terminal that has it; otherwise a plain line every ten seconds and one at the end."""

    def __init__(self, total: int):
        self.total, self.done, self.start, self.printed = total, 0, time.perf_counter(), time.perf_counter()
        self.bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm

                self.bar = tqdm(total=total, unit="text")
            except ImportError:
                pass

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, texts: int) -> None:
        self.done += texts
        if self.bar is not None:
            self.bar.update(texts)
        elif time.perf_counter() - self.printed > 10 or self.done == self.total:
            self.printed = time.perf_counter()
            print(
                f"{self.done}/{self.total} texts, {self.printed - self.start:.0f} s",
                file=sys.stderr,
                flush=True,
            )
