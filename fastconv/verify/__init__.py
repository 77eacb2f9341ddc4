"""Holds every kernel against the plain-loop reference, on any list of problems.

``for check in verify(problems): ...`` runs every operation at the sizes of each problem, in both layouts and both
types, a convolution by each algorithm that takes the problem. Integers make direct convolution, pools and matrix
products exact, so they may not differ in one bit; all else has a bound derived from its number of roundings, but
for Winograd's algorithm, of which docs/mathematics.md tells the error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fastconv.kernels import algorithms
from fastconv.kernels.algorithms import Algorithm
from fastconv.kernels.plan import ConvProblem
from fastconv.reference.tolerance import WINOGRAD_TERMS, bound
from fastconv.verify.operations import OPERATIONS, Arguments, Limit, Operation, Results, Sample

LAYOUTS = ("NCHW", "NHWC")
DTYPES = ("float32", "float64")
IMAGES = ("input", "grad_output", "positions", "indices")  # arguments that a layout orders
SECONDS_A_NAIVE_STEP = 1.2e-5  # six loops over a convolution's products, about


@dataclass(frozen=True)
class Difference:
    """How far a result is from the reference's, and may be; ``message`` where they cannot be compared."""

    error: float
    bound: float
    message: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.error <= self.bound

    @property
    def severity(self) -> float:
        """Error in units of the bound, to find the worst of many."""
        if not self.passed:
            return math.inf
        return self.error / self.bound if self.bound else 0.0


@dataclass(frozen=True)
class Check:
    """One run of one operation: where, by what, and the worst difference among its results."""

    operation: str
    problem: str
    layout: str  # empty where the operation has none
    dtype: str
    algorithm: str  # of a convolution, else empty
    difference: Difference


def verify(problems: Mapping[str, ConvProblem], operations: Iterable[Operation] = OPERATIONS) -> Iterator[Check]:
    """Every check of ``operations`` on ``problems`` (by name), as it is made."""
    wanted = tuple(operations)
    for name, problem in problems.items():
        sample = Sample(problem)
        for operation in wanted:
            if operation.fits(problem):
                yield from _verify_operation(operation, name, sample)


def reference_seconds(problem: ConvProblem) -> float:
    """About how long the plain loops take on a problem."""
    return problem.n * problem.k * problem.p * problem.q * problem.r * problem.s * SECONDS_A_NAIVE_STEP


def _verify_operation(operation: Operation, name: str, sample: Sample) -> Iterator[Check]:
    arguments = operation.arguments(sample)
    expected = operation.reference(**_given(arguments, "", "float64"))
    limits = operation.limits(arguments, expected)
    for layout in LAYOUTS if operation.takes("layout") else ("",):
        for dtype in DTYPES:
            for algorithm in _algorithms(operation, sample.problem, layout, dtype):
                given = _given(arguments, layout, dtype)
                if algorithm and operation.takes("algorithm"):
                    given["algorithm"] = algorithm.name
                exact = algorithm is None or algorithm.exact
                allowed = limits if exact else (Limit(WINOGRAD_TERMS, float(np.abs(expected[0]).max())),)
                worst = _worst(operation, given, expected, allowed, dtype)
                yield Check(operation.label, name, layout, dtype, algorithm.name if algorithm else "", worst)


def _algorithms(operation: Operation, problem: ConvProblem, layout: str, dtype: str) -> list[Algorithm | None]:
    """All that take the problem, where the operation lets one choose, else the one that it will run; None if none."""
    if not (operation.direction and problem.n):
        return [None]
    if not operation.takes("algorithm"):
        return [algorithms.choose(operation.direction, problem, layout, dtype)]
    return [algorithm for algorithm in algorithms.ALGORITHMS[operation.direction]
            if algorithm.supports(problem, layout, dtype) is None]


def _given(arguments: Arguments, layout: str, dtype: str) -> Arguments:
    """Copies of the arguments in a type and, where there is one, a layout."""
    given: Arguments = {"layout": layout} if layout else {}
    for name, value in arguments.items():
        if isinstance(value, np.ndarray):
            value = value.astype(dtype if value.dtype == np.float64 else value.dtype)
            if layout == "NHWC" and name in IMAGES and value.ndim == 4:
                value = np.ascontiguousarray(np.moveaxis(value, 1, -1))
        elif layout == "NHWC" and name == "input_size":
            value = (value[0], *value[2:], value[1])
        given[name] = value
    return given


def _worst(operation: Operation, given: Arguments, expected: Results, limits: tuple[Limit, ...],
           dtype: str) -> Difference:
    """Of all results, the difference that comes closest to its bound, or goes furthest beyond."""
    try:
        found = operation.kernel(**given)
    except Exception as failure:  # whatever a kernel raises here is its failure to be right
        return Difference(math.inf, 0.0, f"{type(failure).__name__}: {failure}")
    if len(found) != len(expected):
        return Difference(math.inf, 0.0, f"{len(found)} results, not {len(expected)}")
    if given.get("layout") == "NHWC" and not operation.name.endswith("_weight"):
        found = tuple(np.moveaxis(result, -1, 1) if result.ndim == 4 else result for result in found)
    return max((_difference(*three, dtype) for three in zip(found, expected, limits)), key=lambda d: d.severity)


def _difference(found: np.ndarray, expected: np.ndarray, limit: Limit, dtype: str) -> Difference:
    allowed = bound(limit.terms, np.asarray(limit.scale, dtype))
    if found.shape != expected.shape:
        return Difference(math.inf, allowed, f"shape {found.shape}, not {expected.shape}")
    if expected.dtype.kind == "f" and found.dtype != dtype:
        return Difference(math.inf, allowed, f"type {found.dtype}, not {dtype}")
    error = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0)
    return Difference(float(error), allowed)
