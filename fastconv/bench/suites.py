"""Which cases are measured: a named suite, or given problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from fastconv import problems
from fastconv.bench.case import AVERAGE_POOLS, CONVOLUTIONS, MAX_POOLS, Case
from fastconv.bench.contenders import AnyCase
from fastconv.bench.training import InferenceCase, TrainingCase
from fastconv.kernels.plan import ConvProblem

PASSES = ("relu", "relu_gradient", "batch_norm", "batch_norm_gradient")  # over an activation
STEPS = ("sgd_step", "adam_step")
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
    "networks": (Part("reference", CONVOLUTIONS, NETWORKS), Part("pools", MAX_POOLS, NETWORKS)),
    "reference": (Part("reference", CONVOLUTIONS),),
    "pools": (Part("pools", MAX_POOLS + AVERAGE_POOLS),),
    "layers": (Part("layers", PASSES, ("act.",)), Part("layers", ("cross_entropy",), ("logits.",)),
               Part("layers", STEPS, ("weights.",))),
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
    """A case for each operation, layout, type and problem."""
    return [Case(op, name, _as_read(problem, op), layout, dtype)
            for op in operations for layout in layouts for dtype in dtypes for name, problem in listed.items()]


def _as_read(problem: ConvProblem, op: str) -> ConvProblem:
    """What ``op`` takes of a problem: pools keep their channels, other layers have no window, logits no pixels."""
    if op in CONVOLUTIONS:
        return problem
    image = replace(problem, k=problem.c, groups=problem.c)
    if op in MAX_POOLS:
        return image
    image = replace(image, dilation=(1, 1))
    if op in AVERAGE_POOLS:
        return image
    image = replace(image, r=1, s=1, stride=(1, 1), padding=((0, 0), (0, 0)))
    return replace(image, h=1, w=1) if op == "cross_entropy" else image
