"""The matrix product: exact on integers, for every way its operands may lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fastconv import threads
from fastconv.kernels import gemm, jit
from fastconv.kernels.blocking import LARGEST_OFFSET, most_rows
from fastconv.kernels.gemm import ROWS_A_TASK, Product
from fastconv.kernels.gemm_few import MOST_SAMPLES
from fastconv.kernels.scratch import scratch
from fastconv.kernels.simd import vector_unit
from tests.conv_cases import DTYPES
from tests.tolerance import integers

LANES = vector_unit().lanes("float32")
# Around the width of 1, 2 and 4 vectors, the rows of a tile and of a task, and a reduction of more than one block.
EDGES = [
    *((9, width * LANES + off, 20) for width in (1, 2, 4) for off in (-1, 0, 1)),
    *((most_rows(vectors) + off, vectors * LANES, 20) for vectors in (1, 2) for off in (-1, 0, 1)),
    *((2 * ROWS_A_TASK + off, 10, 17) for off in (-1, 0, 1)),
    *((12, 10, LANES + off) for off in (-1, 0, 1)),
    (1, 1, 1), (1, 40, 700), (130, 1, 9), (64, 10, 1600), (3, 130, 2500),
]


def multiply(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None, a_turned: bool, b_turned: bool) -> np.ndarray:
    """A B + bias with operands stored as they are or transposed; scratch and output full of NaN before."""
    (m, steps), n = a.shape, b.shape[1]
    product = Product(m, n, steps, *((1, m) if a_turned else (steps, 1)), *((1, steps) if b_turned else (n, 1)),
                      a.dtype.name)
    found = gemm.plan(product)
    scratch(2 * found.worker_elements, a.dtype).fill(np.nan)
    c = np.full((m, n), np.nan, a.dtype)
    gemm.run(c, np.array(a.T if a_turned else a, order="C"), np.array(b.T if b_turned else b, order="C"), bias, product)
    return c


@pytest.mark.parametrize("a_turned, b_turned", [(False, True), (False, False), (True, False)],
                         ids=["forward", "input_gradient", "weight_gradient"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, n, steps", EDGES)
def test_edges(m, n, steps, dtype, a_turned, b_turned, rng):
    a, b, bias = integers(rng, (m, steps), dtype), integers(rng, (steps, n), dtype), integers(rng, n, dtype)
    assert_array_equal(multiply(a, b, None, a_turned, b_turned), a @ b)
    assert_array_equal(multiply(a, b, bias, a_turned, b_turned), a @ b + bias)


@settings(max_examples=30)
@given(m=st.integers(1, 150), n=st.integers(1, 70), steps=st.integers(1, 90), a_turned=st.booleans(),
       b_turned=st.booleans(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_any_size(m, n, steps, a_turned, b_turned, dtype, seed):
    rng = np.random.default_rng(seed)
    a, b = integers(rng, (m, steps), dtype), integers(rng, (steps, n), dtype)
    assert_array_equal(multiply(a, b, None, a_turned, b_turned), a @ b)


@pytest.mark.parametrize("m, n, steps", [(300, 37, 65), (129, 70, 33)])
def test_same_bits_from_both_twins(m, n, steps, rng, monkeypatch):
    monkeypatch.setattr(jit, "WORTH_SPLITTING", 0)
    gemm.plan.cache_clear()
    a, b, bias = (rng.standard_normal(size).astype(np.float32) for size in ((m, steps), (steps, n), n))
    for turned in (False, True), (False, False), (True, False):
        with threads(1):
            expected = multiply(a, b, bias, *turned)
        for _ in range(2):
            with threads(2):
                assert_array_equal(multiply(a, b, bias, *turned), expected)
    gemm.plan.cache_clear()


@pytest.mark.parametrize("least, most", [(1, MOST_SAMPLES), (MOST_SAMPLES + 1, 34)])
def test_a_sample_does_not_depend_on_its_batch(least, most, rng):
    """Of few samples, or of many."""
    a, b, bias = (rng.standard_normal(size).astype(np.float32) for size in ((most, 65), (65, 37), 37))
    together = multiply(a, b, bias, False, True)
    for first in range(most - least + 1):
        assert_array_equal(multiply(a[first:first + least], b, bias, False, True), together[first:first + least])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", range(1, MOST_SAMPLES + 2))
@pytest.mark.parametrize("n, steps", [(1, 16), (7, 17), (8, 31), (9, 64), (130, 33), (40, 2048)])
def test_few_samples(m, n, steps, dtype, rng):
    a, b, bias = integers(rng, (m, steps), dtype), integers(rng, (steps, n), dtype), integers(rng, n, dtype)
    assert_array_equal(multiply(a, b, bias, False, True), a @ b + bias)


def test_not_finite_stays_in_its_row_and_column(rng):
    a, b = integers(rng, (20, 30)), np.where(integers(rng, (30, 25)) < 0, -1, 1).astype(np.float32)
    a[3, 7], a[5, 0], b[9, 11] = np.nan, np.inf, np.nan
    with np.errstate(invalid="ignore"):
        expected = a.astype(np.float64) @ b
    assert_array_equal(multiply(a, b, None, False, True), expected)


def test_no_reduction():
    product = Product(3, 4, 0, 0, 1, 4, 1, "float32")
    c = np.full((3, 4), np.nan, np.float32)
    gemm.run(c, np.empty((3, 0), np.float32), np.empty((0, 4), np.float32), None, product)
    assert_array_equal(c, 0)


def test_steps_far_apart():
    """A weight gradient with so many outputs that a block of samples spans more than an offset can."""
    outputs = 1 << 25
    found = gemm.plan(Product(outputs, 10, 100, 1, outputs, 10, 1, "float32"))
    block = int(found.geometry["block"][0])
    assert_array_equal(found.table[:, 0], np.arange(block) * outputs * 4)
    assert 1 < block < 100 and (block - 1) * outputs * 4 <= LARGEST_OFFSET
