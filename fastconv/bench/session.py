"""Starts the workers, has them take turns, and keeps what they measured."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from fastconv.bench.contenders import CONTENDERS, AnyCase
from fastconv.bench.worker import MACHINE
from fastconv.info import last_level_cache

SETTLE_SECONDS = 0.01  # between turns: other pools' threads stop spinning
PEAK_SECONDS = 0.03
SLOW_SECONDS = 0.25  # a call that takes longer is timed in the first round only
THREAD_VARIABLES = ("FASTCONV_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
                    "MKL_NUM_THREADS")


class ContenderFailed(OSError):
    """A worker gave a wrong result, raised, or died."""


@dataclass(frozen=True)
class Measurement:
    """Times of one path on one case, or why there are none."""

    case: AnyCase  # as asked for
    path: str
    ran: AnyCase  # with the batch that the path could run
    rounds: tuple[tuple[float, ...], ...] = ()  # seconds of each call
    error: float = 0.0  # largest difference from the reference
    bound: float = 0.0  # and what it may be
    extra_bytes: int | None = None  # memory beside arguments and result
    peak_gflops: float = 0.0  # of multiply-adds between its rounds
    skipped: str = ""

    @property
    def round_seconds(self) -> list[float]:
        """Each round's median."""
        return [statistics.median(times) for times in self.rounds]

    @property
    def seconds(self) -> float:
        """Median of the rounds' medians."""
        return statistics.median(self.round_seconds)

    @property
    def gflops(self) -> float:
        """Useful 10^9 floating-point operations a second."""
        return self.ran.flops / self.seconds / 1e9

    @property
    def gbytes(self) -> float:
        """10^9 bytes a second, every tensor counted once."""
        return self.ran.bytes / self.seconds / 1e9

    @property
    def image_seconds(self) -> float:
        """Seconds an image: comparable where a path ran a smaller batch."""
        return self.seconds / self.ran.images


class WorkerProcess:
    """A contender's process and the pipe to it."""

    def __init__(self, path: str, threads: int) -> None:
        self.path = path
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastconv.bench.worker", path, str(threads)], text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The worker's answer; ContenderFailed where there is none."""
        process = self._process
        assert process.stdin and process.stdout
        try:
            print(json.dumps({"do": do, **request}), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ContenderFailed(f"the process of path {self.path} ended: {self._last_words()}")
        answer = json.loads(line)
        if "failed" in answer:
            raise ContenderFailed(answer["failed"])
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"status {self._process.returncode}")

    def close(self) -> None:
        """End the process by ending its input."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it is dead already
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._errors.close()


class Session:
    """A worker for each path, and one for the machine's peaks; a context manager."""

    def __init__(self, paths: Sequence[str], threads: int) -> None:
        self.paths = tuple(paths)
        self.threads = threads
        self.workers = {path: WorkerProcess(path, threads) for path in (*self.paths, MACHINE)}
        self._peaks: dict[str, float] = {}  # best rate a second, by loop
        self._work: dict[str, int] = {}  # of one call

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers.values():
            worker.close()

    def measure(self, case: AnyCase, paths: Sequence[str] | None = None, rounds: int = 5, seconds: float = 0.1,
                on_turn: Callable[[str], None] = lambda path: None) -> list[Measurement]:
        """Every path on ``case``, in turns, for ``rounds`` rounds of about ``seconds`` a path.

        A wrong result, or a worker that dies, raises ContenderFailed; a path that cannot run the case is skipped.
        """
        found = self._prepare(case, paths or self.paths)
        times: dict[str, list[tuple[float, ...]]] = {path: [] for path in found}
        peaks = []
        for _ in range(rounds):
            peaks.append(self._measure_peaks(case.dtype))
            for path, measurement in found.items():
                on_turn(path)
                slow = bool(times[path]) and min(map(min, times[path])) > SLOW_SECONDS
                if not measurement.skipped and not slow:
                    time.sleep(SETTLE_SECONDS)
                    times[path].append(tuple(self.workers[path].ask("round", seconds=seconds)["seconds"]))
        peak = statistics.median(peaks)
        return [self._finish(measurement, tuple(times[path]), peak) for path, measurement in found.items()]

    def _prepare(self, case: AnyCase, paths: Sequence[str]) -> dict[str, Measurement]:
        """Has every path make its arrays and prove its result; the reference is computed once a batch size."""
        found = {path: Measurement(case, path, case.for_path(path), skipped=CONTENDERS[path].why_not(case))
                 for path in paths}
        able = {path: m for path, m in found.items() if not m.skipped}
        with tempfile.TemporaryDirectory() as folder:
            files = {ran: Path(folder) / f"{ran.text}.npy" for ran in {m.ran for m in able.values()}}
            for ran, file in files.items():
                np.save(file, ran.expected())
            for path, m in able.items():
                answer = self.workers[path].ask("prepare", case=m.ran.as_json(), expected=str(files[m.ran]))
                found[path] = replace(m, **answer)
        return found

    def _finish(self, measurement: Measurement, rounds: tuple[tuple[float, ...], ...], peak: float) -> Measurement:
        if measurement.skipped:
            return measurement
        extra = self.workers[measurement.path].ask("memory")["bytes"]
        return replace(measurement, rounds=rounds, extra_bytes=extra, peak_gflops=peak)

    def _measure_peaks(self, dtype: str) -> float:
        """Multiply-adds now, in GFLOP/s; the best rates are kept."""
        worker, now = self.workers[MACHINE], {}
        array_bytes = max(64 << 20, 2 * (last_level_cache() or 0))  # beyond every cache
        for what in (dtype, "triad"):
            if what not in self._peaks:
                answer = worker.ask("prepare_peak", what=what, dtype=dtype, array_bytes=array_bytes)
                self._peaks[what], self._work[what] = 0.0, answer["work"]
            time.sleep(SETTLE_SECONDS)
            times = worker.ask("round", seconds=PEAK_SECONDS, what=what)["seconds"]
            self._peaks[what] = max(self._peaks[what], self._work[what] / min(times))
            now[what] = self._work[what] / statistics.median(times)
        return now[dtype] / 1e9

    def peak_gflops(self, dtype: str) -> float:
        """Best multiply-add rate seen in this session, in GFLOP/s."""
        return self._peaks.get(dtype, 0.0) / 1e9

    @property
    def peak_gbytes(self) -> float:
        """Best triad rate seen in this session, in GB/s."""
        return self._peaks.get("triad", 0.0) / 1e9
