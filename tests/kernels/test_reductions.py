"""Sums and the maximum of a run: the bits of the order that is written down, for every length."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv.kernels.reductions import (
    VECTORS,
    largest_of,
    sum_and_products,
    sum_of,
    sum_of_squares,
    sum_where_not,
)
from fastconv.kernels.simd import vector_unit

TYPES = pytest.mark.parametrize("dtype, sum_type", [
    (np.float32, np.float32), (np.float32, np.float64), (np.float64, np.float64)])


def in_order(terms: np.ndarray, neutral: float, merge: Any) -> Any:
    """The terms taken in block by block, the block halved until one is left; halves take in what remains."""
    width = VECTORS * vector_unit().lanes(terms.dtype)
    totals, count = np.full(width, neutral, terms.dtype), len(terms)
    for start in range(0, count - count % width, width):
        totals = merge(totals, terms[start:start + width])
    while width > 1:
        width //= 2
        totals = merge(totals[:width], totals[width:])
        if count & width:
            start = count & -2 * width
            totals = merge(totals, terms[start:start + width])
    return totals[0]


def runs(rng: np.random.Generator, dtype: Any, outside: float) -> Any:
    """Two runs of every length up to a few blocks, with something else before and behind.

    Their products are exact, while sums of some are not: those tell one order from another.
    """
    for count in (*range(3 * VECTORS * vector_unit().lanes(dtype)), 1000):
        pair = []
        for _ in range(2):
            numbers = np.full(count + 2, outside, dtype)
            numbers[1:-1] = rng.integers(-2000, 2000, count) * 2.0 ** rng.integers(-30, 30, count)
            pair.append(numbers[1:-1])
        yield pair


@numba.njit
def _all(like, a, b, centre):
    return sum_of(like, a), sum_of_squares(like, a, centre), *sum_and_products(like, a, b, centre)


@TYPES
def test_sums(dtype, sum_type, rng):
    for a, b in runs(rng, dtype, np.nan):
        wide_a, wide_b, zero = a.astype(sum_type), b.astype(sum_type), sum_type(0)
        expected = [in_order(terms, -0.0, np.add) for terms in (wide_a, wide_a * wide_a, wide_a, wide_a * wide_b)]
        assert_array_equal(_all(zero, a, b, zero), expected)


@pytest.mark.parametrize("mark_type", [np.uint8, np.uint16])
@TYPES
def test_sum_of_what_is_not_marked(dtype, sum_type, mark_type, rng):
    for a, _ in runs(rng, dtype, np.nan):
        marks = rng.integers(3, 5, len(a)).astype(mark_type)
        a[marks == 4] = np.inf  # passed over, whatever it is
        taken = np.where(marks == 4, -0.0, a).astype(sum_type)
        assert _not_marked(sum_type(0), a, marks, mark_type(4)) == in_order(taken, -0.0, np.add)


@numba.njit
def _not_marked(like, run, marks, none):
    return sum_where_not(like, run, marks, none)


@TYPES
def test_centre(dtype, sum_type, rng):
    """Small integers, so that any order is exact; the distance is taken in the type of the sum."""
    a, b = rng.integers(-4, 5, (2, 77)).astype(dtype)
    centre = sum_type(2.0**-20)
    _, square, total, product = _all(sum_type(0), a, b, sum_type(3))
    assert (square, total, product) == (((a - 3) ** 2).sum(), a.sum(), (a * (b - 3)).sum())
    assert _all(sum_type(0), np.ones(1, dtype), np.ones(1, dtype), centre)[1] == (1 - centre) ** 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_largest(dtype, rng):
    for a, _ in runs(rng, dtype, np.inf):
        assert _largest(a) == a.max(initial=-np.inf)
        a[rng.integers(0, 2, len(a)) > 0] = np.nan
        assert _largest(a) == np.nanmax(np.append(a, -np.inf))
    assert _largest(np.full(5, np.nan, dtype)) == -np.inf


@numba.njit
def _largest(run):
    return largest_of(run)
