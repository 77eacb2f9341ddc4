"""Winograd's error against direct convolution in float64: the shapes of the reference problems, data that is hard."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fastconv.kernels.algorithms import ALGORITHMS, DIRECTIONS
from fastconv.kernels.plan import ConvProblem
from fastconv.problems import packaged

LARGEST, TYPICAL = 2e-5, 5e-6  # of the largest result: twice what was seen
SIDE = 40  # of an image, at most: its size does not enter into the error
PROBLEMS = packaged("reference") | {text: ConvProblem.parse(text) for text in (
    "n1c128h28w28k64r2s2", "n1c128h28w28k64r4s4p1", "n1c128h28w28k64r4s4u2p1", "n1c128h28w28k64r5s5u2p2")}
DATA = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "large mean": lambda rng, shape: rng.standard_normal(shape) + 100,
    "range of 1e4": lambda rng, shape: rng.standard_normal(shape) * 10 ** rng.uniform(-2, 2, shape),
}


def error(direction: str, problem: ConvProblem, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> float:
    """The largest error of a result by the largest result; NaN where Winograd does not run."""
    algorithms = {algorithm.name: algorithm for algorithm in ALGORITHMS[direction]}
    if algorithms["winograd"].supports(problem, "NCHW", "float32") is not None:
        return np.nan
    like, *operands = {"forward": (dy, x, w), "input_gradient": (x, dy, w), "filter_gradient": (w, x, dy)}[direction]
    actual, expected = np.full_like(like, np.nan), np.empty(like.shape)
    algorithms["winograd"].make_runner(problem, "NCHW", "float32")(actual, *operands)
    exact = algorithms["direct_channels"].make_runner(problem, "NCHW", "float64")
    exact(expected, *[operand.astype(np.float64) for operand in operands])
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_error(direction, data, rng):
    errors = {}
    for name, problem in PROBLEMS.items():
        small = dataclasses.replace(problem, n=1, h=min(problem.h, SIDE), w=min(problem.w, SIDE))
        shapes = small.input_shape(), small.weight_shape, small.output_shape()
        x, w, dy = (DATA[data](rng, shape).astype(np.float32) for shape in shapes)
        if data == "large mean":
            w = rng.standard_normal(w.shape).astype(np.float32)  # or nothing would cancel
        errors[name] = error(direction, small, x, w, dy)
    found = {name: value for name, value in errors.items() if not np.isnan(value)}
    assert len(found) >= 15
    assert {name: value for name, value in found.items() if value > LARGEST} == {}
    assert np.median(list(found.values())) <= TYPICAL
