"""Which cases are measured: a named suite, or given problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from fastconv import problems
from fastconv.bench.case import OPERATIONS, Case
from fastconv.bench.contenders import CONVOLUTIONS, AnyCase
from fastconv.bench.training import InferenceCase, TrainingCase
from fastconv.kernels.plan import ConvProblem

POOLS = tuple(name for name in OPERATIONS if name not in CONVOLUTIONS)
NETWORKS = ("digits.", "cifar.")


# networks and batches
TRAINING = {"digits": (64, 512), "cifar": (64, 256), "vgg8": (32,), "resnet18": (16,)}
INFERENCE = {"digits": (1,), "cifar": (1,), "vgg8": (1,), "resnet18": (1,)}


class Part(NamedTuple):
    """Operations on the problems of a packaged list, those whose names begin so."""

    file: str
    operations: tuple[str, ...]
    prefixes: tuple[str, ...] = ("",)

    def problems(self) -> dict[str, ConvProblem]:
        """The problems by name."""
        listed = problems.packaged(self.file)
        return {name: problem for name, problem in listed.items() if name.startswith(self.prefixes)}

    def cases(self, layouts: Sequence[str], dtypes: Sequence[str]) -> list[Case]:
        """The cases, by operation."""
        return cases(self.problems(), self.operations, layouts, dtypes)


class NetworkPart(NamedTuple):
    """Whole networks, on each of their batches."""

    kind: type[TrainingCase] | type[InferenceCase]
    networks: Mapping[str, Sequence[int]]

    def cases(self, layouts: Sequence[str], dtypes: Sequence[str]) -> list[TrainingCase | InferenceCase]:
        """The cases, by layout."""
        return [self.kind(model, images, layout, dtype) for layout in layouts for dtype in dtypes
                for model, batches in self.networks.items() for images in batches]


SUITES: dict[str, tuple[Part | NetworkPart, ...]] = {
    "networks": (Part("reference", CONVOLUTIONS, NETWORKS), Part("pools", POOLS, NETWORKS)),
    "reference": (Part("reference", CONVOLUTIONS),),
    "pools": (Part("pools", POOLS),),
    "training": (NetworkPart(TrainingCase, TRAINING),),
    "inference": (NetworkPart(InferenceCase, INFERENCE),),
    "overhead": (Part("small", CONVOLUTIONS),),
    "scaling": (Part("reference", CONVOLUTIONS),),
}


def suite(name: str, operations: Sequence[str] = (), layouts: Sequence[str] = ("NCHW",),
          dtypes: Sequence[str] = ("float32",)) -> list[AnyCase]:
    """The cases of a suite, only those of ``operations`` where any is given."""
    found = [case for part in SUITES[name] for case in part.cases(layouts, dtypes)]
    return [case for case in found if not operations or case.op in operations]


def cases(listed: Mapping[str, ConvProblem], operations: Iterable[str], layouts: Iterable[str] = ("NCHW",),
          dtypes: Iterable[str] = ("float32",)) -> list[Case]:
    """A case for each operation, layout, type and problem; a pool has as many channels out as in."""
    return [
        Case(op, name, problem if op in CONVOLUTIONS else replace(problem, k=problem.c, groups=problem.c),
             layout, dtype)
        for op in operations for layout in layouts for dtype in dtypes for name, problem in listed.items()
    ]
