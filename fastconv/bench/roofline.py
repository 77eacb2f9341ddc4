"""A model of how long a convolution takes on any number of cores: arithmetic, tasks, memory.

    seconds = max(cycles / (frequency cores) * imbalance, bytes / bandwidth)

``cycles`` is the plan's own estimate for one core, the one that algorithms are chosen by; the frequency, of vector
multiply-adds, and the bandwidth are measured. Tasks are whole: the imbalance is that of the last round of them.
"""

from __future__ import annotations

from typing import NamedTuple

from fastconv.bench.case import Case
from fastconv.kernels import algorithms
from fastconv.kernels.simd import vector_unit


class Roofline(NamedTuple):
    """What a case asks of a machine."""

    cycles: float  # of one core
    tasks: int  # independent ones
    bytes: int  # every tensor once

    @classmethod
    def of(cls, case: Case) -> Roofline:
        """Of the algorithm that would run it."""
        problem, layout, dtype = case.problem, case.layout, case.dtype
        algorithm = algorithms.choose(case.op, problem, layout, dtype)
        plan = algorithms.runner(case.op, problem, layout, dtype).plan
        return cls(algorithm.cycles(problem, layout, dtype), int(plan.tasks), case.bytes)

    def speedup(self, cores: int) -> float:
        """Of several cores over one where memory does not limit them."""
        return self.tasks / -(-self.tasks // cores)

    def seconds(self, cores: int, dtype: str, core_gflops: float, gbytes: float) -> float:
        """With ``core_gflops`` of multiply-adds a core, and ``gbytes`` a second from memory for all cores."""
        frequency = core_gflops * 1e9 / (2 * vector_unit().lanes(dtype))
        return max(self.cycles / frequency / self.speedup(cores), self.bytes / (gbytes * 1e9))

    def gbytes_for(self, cores: int, dtype: str, core_gflops: float) -> float:
        """10^9 bytes a second from memory that keep that many cores busy."""
        return self.bytes / 1e9 / self.seconds(cores, dtype, core_gflops, float("inf"))
