"""The same cases on one thread and on all: how much faster the threads together are."""

from __future__ import annotations

import statistics
from typing import Any

from fastconv.bench.results import Results, duration

HEADERS = ("operation", "problem", "1 thread", "{} threads", "times as fast", "of ideal")
TEXT_COLUMNS = 2


class Scaling:
    """Two runs of our path, on one thread and on several."""

    def __init__(self, one: Results, many: Results) -> None:
        self.one, self.many = one, many
        single = {(m.case, m.path): m for m in one.measured}
        self.pairs = [(single[m.case, m.path], m) for m in many.measured]

    def ratios(self) -> list[float]:
        """Times as fast, for each case."""
        return [before.seconds / after.seconds for before, after in self.pairs]

    def headers(self) -> tuple[str, ...]:
        """Of the table."""
        return tuple(header.format(self.many.threads) for header in HEADERS)

    def rows(self) -> list[tuple[str, ...]]:
        """Of the table."""
        return [(after.case.op, after.case.name, duration(before.seconds), duration(after.seconds), f"{ratio:.2f}x",
                 f"{ratio / self.many.threads:.0%}") for (before, after), ratio in zip(self.pairs, self.ratios())]

    def summary(self) -> list[str]:
        """The geometric mean, and the cases that fall short."""
        mean, threads = statistics.geometric_mean(self.ratios()), self.many.threads
        short = ", ".join(f"{after.case.op} {after.case.name} ({ratio:.2f}x)"
                          for (_, after), ratio in zip(self.pairs, self.ratios()) if ratio < 0.8 * threads)
        return [f"{threads} threads against 1, geometric mean: {mean:.2f}x; "
                + (f"below {0.8 * threads:g}x: {short}." if short else f"nowhere below {0.8 * threads:g}x."),
                *self.many.summary()[-2:]]

    def as_json(self) -> dict[str, Any]:
        """Both runs."""
        return {"scaling": [{"op": after.case.op, "name": after.case.name, "layout": after.case.layout,
                             "dtype": after.case.dtype, "times_as_fast": ratio}
                            for (_, after), ratio in zip(self.pairs, self.ratios())],
                "runs": [self.one.as_json(), self.many.as_json()]}
