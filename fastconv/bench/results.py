"""What a session measured: tables for people, JSON for machines."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastconv import info
from fastconv.bench.contenders import AnyCase
from fastconv.bench.session import Measurement, Session
from fastconv.terminal import size

OURS = "jit"
HEADERS = ("problem", "path", "time", "GFLOP/s", "of peak", "GB/s", "of bandwidth", "extra memory", "jit is")
TEXT_COLUMNS = 2
UNSTEADY = 1.5

Group = tuple[str, str, str]  # operation, layout, dtype


def group_of(case: AnyCase) -> Group:
    """Cases of one group stand in one table."""
    return case.op, case.layout, case.dtype


@dataclass(frozen=True)
class Results:
    """All measurements of a session, and the machine's peaks in it."""

    measurements: tuple[Measurement, ...]
    threads: int
    peak_gflops: dict[str, float]  # by dtype
    peak_gbytes: float

    @classmethod
    def of(cls, session: Session, measurements: Sequence[Measurement]) -> Results:
        """What the session has measured."""
        dtypes = sorted({measurement.case.dtype for measurement in measurements})
        peaks = {dtype: session.peak_gflops(dtype) for dtype in dtypes}
        return cls(tuple(measurements), session.threads, peaks, session.peak_gbytes)

    @property
    def measured(self) -> list[Measurement]:
        """Those that have times."""
        return [m for m in self.measurements if not m.skipped]

    def groups(self) -> dict[Group, list[Measurement]]:
        """What was measured, by group, in the order of the run."""
        found: dict[Group, list[Measurement]] = {}
        for m in self.measured:
            found.setdefault(group_of(m.case), []).append(m)
        return found

    def speedup(self, other: Measurement) -> float | None:
        """How many times as fast as ``other`` our path is, by time an image; None where it was not run."""
        ours = next((m for m in self.measured if m.path == OURS and m.case == other.case), None)
        return other.image_seconds / ours.image_seconds if ours else None

    def row(self, m: Measurement) -> tuple[str, ...]:
        """The cells of a table's row, under HEADERS."""
        speedup = None if m.path == OURS else self.speedup(m)
        return (
            m.ran.name,
            m.path,
            duration(m.seconds),
            f"{m.gflops:,.3g}" if m.case.flops else "",
            f"{m.gflops / m.peak_gflops:.0%}" if m.case.flops else "",
            f"{m.gbytes:.3g}" if m.case.bytes else "",
            f"{m.gbytes / self.peak_gbytes:.0%}" if m.case.bytes else "",
            "unknown" if m.extra_bytes is None else size(m.extra_bytes),
            "" if speedup is None else f"{times(speedup)} as fast",
        )

    def summary(self) -> list[str]:
        """Sentences: the means and losses against each path, what was skipped, how to read the numbers."""
        others = dict.fromkeys(m.path for m in self.measured if m.path != OURS)
        peaks = [f"{gflops:.0f} GFLOP/s {dtype}" for dtype, gflops in self.peak_gflops.items()]
        return [
            *filter(None, map(self._against, others)),
            *self._skipped(),
            *self._unsteady(),
            f"Peaks in this run, {self.threads} threads: {', '.join(peaks)} of multiply-adds, "
            f"{self.peak_gbytes:.3g} GB/s from memory; tensors that stay in a cache can pass the latter.",
            "Times are medians, as is the peak between the same rounds that a path reaches its share of; useful work "
            "counts padding, and every tensor once; extra memory is the growth of the process beside arguments and "
            "result.",
        ]

    def _against(self, path: str) -> str:
        """Geometric mean of the speed-ups over one path, by operation, and where we are slower."""
        ratios = [(m.case, ratio) for m in self.measured if m.path == path and (ratio := self.speedup(m))]
        if not ratios:
            return ""
        means = ", ".join(
            f"{op} {times(statistics.geometric_mean(r for case, r in ratios if case.op == op))}"
            for op in dict.fromkeys(case.op for case, _ in ratios))
        losses = ", ".join(f"{case.op} {case.name} {case.layout} ({times(r)})" for case, r in ratios if r < 1)
        return f"{OURS} against {path}, geometric means: {means}; " + (
            f"slower on {losses}." if losses else "slower nowhere.")

    def _skipped(self) -> list[str]:
        reasons: dict[tuple[str, str], dict[str, None]] = {}
        for m in self.measurements:
            if m.skipped:
                reasons.setdefault((m.path, m.skipped), {})[m.case.op] = None
        return [f"{path} skipped {', '.join(ops)}: {reason}." for (path, reason), ops in reasons.items()]

    def _unsteady(self) -> list[str]:
        """A warning where rounds of one measurement differ as they do on a busy machine."""
        unsteady = [m for m in self.measured if max(m.round_seconds) > UNSTEADY * min(m.round_seconds)]
        if not unsteady:
            return []
        return [f"{len(unsteady)} of {len(self.measured)} measurements differ by more than {UNSTEADY:g}x between "
                "rounds: the machine was busy with other things, so measure again."]

    def as_json(self) -> dict[str, Any]:
        """Everything, with machine, versions, commit and date."""
        return {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": info.commit(),
            "versions": info.versions(),
            "machine": info.machine(),
            "threads": self.threads,
            "peak_gflops": self.peak_gflops,
            "peak_gbytes": self.peak_gbytes,
            "results": [self._record(m) for m in self.measurements],
        }

    def _record(self, m: Measurement) -> dict[str, Any]:
        case = m.ran
        record = {"op": case.op, "name": m.case.name, "problem": case.text, "layout": case.layout,
                  "dtype": case.dtype, "path": m.path}
        if m.skipped:
            return {**record, "skipped": m.skipped}
        return {
            **record,
            "seconds": m.seconds,
            "round_seconds": m.round_seconds,
            "fastest_seconds": min(map(min, m.rounds)),
            "calls": sum(map(len, m.rounds)),
            "gflops": m.gflops,
            "peak_gflops": m.peak_gflops,
            "gbytes": m.gbytes,
            "extra_bytes": m.extra_bytes,
            "im2col_bytes": case.im2col_bytes,
            "largest_error": m.error,
            "error_bound": m.bound,
            "jit_is_times_as_fast": self.speedup(m),
        }


def duration(seconds: float) -> str:
    """Seconds for people: 12.3 us, 4.56 ms."""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def times(ratio: float) -> str:
    """A ratio for people: 0.83x, 12.5x, 4,710x."""
    return f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.{2 if ratio < 10 else 1}f}x"
