"""Stages of a stream that overlap: what a thread does ahead, and the time that each stage takes."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """The items, made by a thread that is at most `depth` of them ahead.

    An exception of `items` is raised here, in its place.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, iterator, _END) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(next, iterator, _END))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)


def behind(work: Callable[[T], object], items: Iterable[T], depth: int) -> Iterator[T]:
    """The items, each after a thread has called `work` with it; the thread is at most `depth` of them behind.

    An exception of `work` is raised here, at most `depth` items later.
    """
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[tuple[T, Future[object]]] = deque()
        for item in items:
            waiting.append((item, thread.submit(work, item)))
            if len(waiting) > depth:
                yield _done(*waiting.popleft())
        for pair in waiting:
            yield _done(*pair)


def _done(item: T, call: Future[object]) -> T:
    call.result()
    return item


class Times:
    """Seconds by stage, as `seconds`; a stage belongs to one thread at a time."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """What happens inside is added to the stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items; what it takes to get them is added to the stage."""
        iterator = iter(items)
        while True:
            with self.of(stage):
                item = next(iterator, _END)
            if item is _END:
                return
            yield item
