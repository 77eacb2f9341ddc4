"""One contender's process: ``python -m fastconv.bench.worker PATH THREADS``.

It reads a request a line from standard input, as JSON, and answers with a line; in between it sleeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastconv import memory
from fastconv.bench.contenders import CONTENDERS, AnyCase, case_from_json, prepare
from fastconv.kernels import peak, scratch

MACHINE = "machine"  # the path that measures peaks instead of a contender
STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Worker:
    """Answers requests: the methods are their names."""

    def __init__(self, path: str, threads: int) -> None:
        self.path = path
        self.threads = threads
        self.calls: dict[str, Callable[[], Any]] = {}
        self.case: AnyCase | None = None

    def prepare(self, case: dict[str, Any], expected: str) -> dict[str, Any]:
        """Make the arrays, run once, and hold the result against the array in the file ``expected``."""
        self.calls.clear()
        gc.collect()
        self.case = case_from_json(case)
        prepared = prepare(self.path, self.case, _settled(self.case.arrays()), self.threads)
        result = prepared.array(prepared.call())
        right = np.load(expected, mmap_mode="r")
        if result.shape != right.shape or result.dtype != right.dtype:
            raise ValueError(f"{self.path} gives {result.dtype} {result.shape} for {self.case}, "
                             f"not {right.dtype} {right.shape}")
        error, allowed = float(np.abs(result - right).max(initial=0)), self.case.bound(right)
        if not error <= allowed:
            raise ValueError(f"{self.path} is wrong on {self.case}: off by {error:.3g}, "
                             f"where at most {allowed:.3g} is right")
        self.calls["case"] = prepared.call
        return {"error": error, "bound": allowed}

    def prepare_peak(self, what: str, dtype: str = "float32", array_bytes: int = 0) -> dict[str, Any]:
        """The multiply-add or triad loop; ``work`` is its floating-point operations or bytes a call."""
        if what == "triad":
            call, work = peak.triad_call(self.threads, array_bytes)
        else:
            call, multiply_adds = peak.multiply_add_call(self.threads, dtype)
            work = 2 * multiply_adds
        call()
        self.calls[what] = call
        return {"work": work}

    def round(self, seconds: float, what: str = "case") -> dict[str, Any]:
        """Times of single calls, at least one, after one that warms up."""
        call, clock = self.calls[what], time.perf_counter
        result = call()
        times: list[float] = []
        while not times or sum(times) < seconds:
            started = clock()
            result = call()  # noqa: F841 - kept until the next one is there, as in a user's loop
            times.append(clock() - started)
        return {"seconds": times}

    def memory(self) -> dict[str, Any]:
        """Bytes of memory one call takes beyond its result, where the system tells (Linux).

        Pool and scratch are emptied for it.
        """
        assert self.case
        memory.release()
        scratch.release()
        grown = None if CONTENDERS[self.path].keeps_memory else _peak_growth(self.calls["case"])
        return {"bytes": None if grown is None else max(0, grown - self.case.result_bytes)}


def _settled(arrays: SimpleNamespace) -> SimpleNamespace:
    """The arrays in memory of one kind for every contender: huge pages where they are large."""
    def moved(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        copy = memory.empty(value.shape, value.dtype)
        copy[...] = value
        return copy

    return SimpleNamespace(**{name: moved(value) for name, value in vars(arrays).items()})


def _peak_growth(call: Callable[[], Any]) -> int | None:
    """Bytes by which the resident memory of this process rose at most, during the call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        RESET_PEAK.write_text("5")
        before = _status("VmRSS")
        call()
        return _status("VmHWM") - before
    except OSError:
        return None


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10


def serve(path: str, threads: int) -> None:
    """Answer requests until the input ends; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(path, threads)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
