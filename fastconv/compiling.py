"""Notices when kernels are compiled, which happens once on a machine, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numba.core import event


class CompileWatch(event.Listener):
    """Counts kernels compiled and the seconds it took; those read from the cache do not count."""

    def __init__(self, on_first: Callable[[], None] | None = None) -> None:
        self.kernels = 0
        self.seconds = 0.0
        self._on_first = on_first
        self._depth = 0  # a helper is compiled inside the kernel that calls it
        self._started = 0.0

    def on_start(self, event: event.Event) -> None:
        if self._depth == 0:
            self._started = time.perf_counter()
            if self.kernels == 0 and self._on_first:
                self._on_first()
            self.kernels += 1
        self._depth += 1

    def on_end(self, event: event.Event) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._started


@contextmanager
def watch_compiling(on_first: Callable[[], None] | None = None) -> Iterator[CompileWatch]:
    """Watch the block; ``on_first`` is called before the first kernel is compiled, if any is."""
    watch = CompileWatch(on_first)
    with event.install_listener("numba:compile", watch):
        yield watch
