"""Which cases are measured: a named suite, or given problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from fastconv import problems
from fastconv.bench.case import OPERATIONS, Case
from fastconv.kernels.plan import ConvProblem

CONVOLUTIONS = tuple(name for name, operation in OPERATIONS.items() if operation.is_convolution)
POOLS = tuple(name for name in OPERATIONS if name not in CONVOLUTIONS)
NETWORKS = ("digits.", "cifar.")


class Part(NamedTuple):
    """Operations on the problems of a packaged list, those whose names begin so."""

    file: str
    operations: tuple[str, ...]
    prefixes: tuple[str, ...] = ("",)

    def problems(self) -> dict[str, ConvProblem]:
        """The problems by name."""
        listed = problems.packaged(self.file)
        return {name: problem for name, problem in listed.items() if name.startswith(self.prefixes)}


SUITES = {
    "networks": (Part("reference", CONVOLUTIONS, NETWORKS), Part("pools", POOLS, NETWORKS)),
    "reference": (Part("reference", CONVOLUTIONS),),
    "pools": (Part("pools", POOLS),),
}


def suite(name: str, operations: Sequence[str] = (), layouts: Sequence[str] = ("NCHW",),
          dtypes: Sequence[str] = ("float32",)) -> list[Case]:
    """The cases of a suite, only those of ``operations`` where any is given."""
    return [case for part in SUITES[name]
            for case in cases(part.problems(), [op for op in part.operations if op in (operations or OPERATIONS)],
                              layouts, dtypes)]


def cases(listed: Mapping[str, ConvProblem], operations: Iterable[str], layouts: Iterable[str] = ("NCHW",),
          dtypes: Iterable[str] = ("float32",)) -> list[Case]:
    """A case for each operation, layout, type and problem; a pool has as many channels out as in."""
    return [
        Case(op, name, problem if op in CONVOLUTIONS else replace(problem, k=problem.c, groups=problem.c),
             layout, dtype)
        for op in operations for layout in layouts for dtype in dtypes for name, problem in listed.items()
    ]
