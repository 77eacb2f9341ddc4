"""The same convolutions on one thread and on all, beside what the roofline model says of them and of many cores."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from fastconv.bench.case import Case
from fastconv.bench.results import Results, duration
from fastconv.bench.roofline import Roofline
from fastconv.bench.session import Measurement

MANY_CORES = 64
HEADERS = ("operation", "problem", "1 thread", "model", "{threads} threads", "model", "times as fast", "tasks",
           "{cores} cores", "which need")
TEXT_COLUMNS = 2


class Pair(NamedTuple):
    """One case on one thread and on several: measured, and by the model."""

    one: Measurement
    many: Measurement
    roofline: Roofline
    one_model: float
    many_model: float
    needed_gbytes: float  # for MANY_CORES to be busy

    @property
    def times_as_fast(self) -> float:
        """What the threads gain."""
        return self.one.seconds / self.many.seconds


class Scaling:
    """Two runs of our path, on one thread and on several."""

    def __init__(self, one: Results, many: Results) -> None:
        self.one, self.many = one, many
        single = {m.case: m for m in one.measured}
        self.pairs = [self._pair(single[m.case], m) for m in many.measured]

    def _pair(self, one: Measurement, many: Measurement) -> Pair:
        assert isinstance(one.case, Case)
        roofline, dtype = Roofline.of(one.case), one.case.dtype
        core = self.one.peak_gflops[dtype]
        return Pair(one, many, roofline, roofline.seconds(1, dtype, core, self.one.peak_gbytes),
                    roofline.seconds(self.many.threads, dtype, core, self.many.peak_gbytes),
                    roofline.gbytes_for(MANY_CORES, dtype, core))

    def headers(self) -> tuple[str, ...]:
        """Of the table."""
        return tuple(header.format(threads=self.many.threads, cores=MANY_CORES) for header in HEADERS)

    def rows(self) -> list[tuple[str, ...]]:
        """Of the table."""
        return [(pair.many.case.op, pair.many.case.name, duration(pair.one.seconds), duration(pair.one_model),
                 duration(pair.many.seconds), duration(pair.many_model), f"{pair.times_as_fast:.2f}x",
                 f"{pair.roofline.tasks:,}", f"{pair.roofline.speedup(MANY_CORES):.0f}x",
                 f"{pair.needed_gbytes:,.0f} GB/s") for pair in self.pairs]

    def summary(self) -> list[str]:
        """The geometric mean, the cases that fall short, how good the model is, what many cores would have to do."""
        threads, wanted = self.many.threads, 0.8 * self.many.threads
        mean = statistics.geometric_mean(pair.times_as_fast for pair in self.pairs)
        ratios = sorted(pair.one.seconds / pair.one_model for pair in self.pairs)
        few = [f"{pair.many.case.op} {pair.many.case.name} ({pair.roofline.speedup(MANY_CORES):.0f}x)"
               for pair in self.pairs if pair.roofline.speedup(MANY_CORES) < MANY_CORES / 2]
        short = [f"{pair.many.case.op} {pair.many.case.name} ({pair.times_as_fast:.2f}x)"
                 for pair in self.pairs if pair.times_as_fast < wanted]
        return [
            f"{threads} threads against 1, geometric mean: {mean:.2f}x; below {wanted:g}x: {_listed(short)}.",
            f"One thread took {ratios[0]:.2f} to {ratios[-1]:.2f} times as long as the model says, "
            f"in the middle {statistics.median(ratios):.2f}.",
            f"{MANY_CORES} cores: too few or uneven tasks to gain half of that: {_listed(few)}.",
            *self.many.summary()[-2:],
        ]

    def as_json(self) -> dict[str, Any]:
        """Both runs, and the model."""
        return {"scaling": [self._record(pair) for pair in self.pairs],
                "runs": [self.one.as_json(), self.many.as_json()]}

    def _record(self, pair: Pair) -> dict[str, Any]:
        case = pair.many.case
        return {"op": case.op, "name": case.name, "layout": case.layout, "dtype": case.dtype,
                "times_as_fast": pair.times_as_fast, "model_seconds": [pair.one_model, pair.many_model],
                "tasks": pair.roofline.tasks, f"times_as_fast_on_{MANY_CORES}": pair.roofline.speedup(MANY_CORES),
                f"gbytes_for_{MANY_CORES}": pair.needed_gbytes}


def _listed(found: list[str]) -> str:
    return ", ".join(found) or "none"
