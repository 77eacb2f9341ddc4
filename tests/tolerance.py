"""Inputs on which sums are exact, the one bound for all other sums, and the problem files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastconv.kernels.plan import read_problems
from fastconv.reference.tolerance import bound

PROBLEMS = Path(__file__).parent / "problems"


def integers(rng: np.random.Generator, shape: Any, dtype: Any = np.float32) -> np.ndarray:
    """Integer values in [-4, 4]: with fewer than a million products any order of float32 sums is exact."""
    return rng.integers(-4, 5, shape).astype(dtype)


def assert_close(actual: np.ndarray, expected: np.ndarray, terms: int, *operands: np.ndarray) -> None:
    """Same shape and type, nowhere further apart than the bound; NaN and infinities in the same places."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound(terms, *operands))


def problems(*files: str) -> list[Any]:
    """Pytest parameters, one ConvProblem each, from tests/problems: those files, or all but reference.txt."""
    names = files or sorted(path.stem for path in PROBLEMS.glob("*.txt") if path.stem != "reference")
    named = [item for name in names for item in read_problems(PROBLEMS / f"{name}.txt").items()]
    return [pytest.param(problem, id=name) for name, problem in named]


def assert_gradient(function: Any, point: np.ndarray, gradient: np.ndarray, rng: np.random.Generator) -> None:
    """`gradient` of a scalar function at a float64 `point`, against central differences in three directions.

    A step of eps^(1/3) leaves an error of about eps^(2/3) an element, from the third derivative (which should
    not be large against the function) and from rounding alike.
    """
    assert point.dtype == np.float64
    step = np.finfo(np.float64).eps ** (1 / 3)
    for _ in range(3):
        direction = rng.uniform(-1, 1, point.shape)
        above, below = function(point + step * direction), function(point - step * direction)
        scale = max(1.0, abs(float(above)), float(np.abs(gradient).max(initial=0)))
        slope = (float(above) - float(below)) / (2 * step)
        assert abs(slope - float((gradient * direction).sum())) <= (point.size + 1) * step**2 * scale
