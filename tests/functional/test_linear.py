"""linear as a user calls it: exact on integers."""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastconv
from fastconv.functional import linear
from fastconv.grad import linear_bias, linear_input, linear_weight
from fastconv.kernels.gemm import multiply
from fastconv.reference import naive
from tests.test_check import KINDS, read_only
from tests.tolerance import integers

SIZE = st.integers(1, 40)


@settings(max_examples=40)
@given(batch=st.lists(st.integers(0, 5), min_size=0, max_size=3), features=SIZE, outputs=SIZE,
       dtype=st.sampled_from([np.float32, np.float64]), seed=st.integers(0, 99))
def test_any_size(batch, features, outputs, dtype, seed):
    """Any number of leading dimensions, none included; and the gradients are the adjoints."""
    rng = np.random.default_rng(seed)
    x, w, b = (integers(rng, size, dtype) for size in ((*batch, features), (outputs, features), outputs))
    dy = integers(rng, (*batch, outputs), dtype)
    y = linear(x, w, b)
    assert y.dtype == dtype
    assert_array_equal(y, x @ w.T + b)
    dx, dw, db = linear_input(w, dy), linear_weight(x, dy), linear_bias(dy)
    assert_array_equal(dx, dy @ w)
    assert_array_equal(dw, dy.reshape(-1, outputs).T @ x.reshape(-1, features))
    assert_array_equal(db, dy.reshape(-1, outputs).sum(axis=0))
    total = np.vdot(linear(x, w), dy)
    assert total == np.vdot(x, dx) == np.vdot(w, dw)
    assert dx.dtype == dw.dtype == db.dtype == dtype


def test_equals_the_reference(rng):
    x, w, b = integers(rng, (7, 33)), integers(rng, (20, 33)), integers(rng, 20)
    assert_array_equal(linear(x, w, b), naive.linear(x, w, b))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_equals_torch(batch, rng):
    import torch
    x, w, b = integers(rng, (*batch, 12)), integers(rng, (7, 12)), integers(rng, 7)
    theirs = torch.nn.functional.linear(*map(torch.tensor, (x, w, b)))
    assert_array_equal(linear(x, w, b), theirs)


X = np.arange(60, dtype=np.float32).reshape(5, 12) % 9 - 4
W = np.arange(84, dtype=np.float32).reshape(7, 12) % 5 - 2
B = np.arange(7, dtype=np.float32)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "list"])
def test_any_right_input(kind):
    x, w, b = (KINDS[kind](array) for array in (X, W, B))
    copies = [np.array(array, np.float32) for array in (x, w, b)]
    expected = linear(*copies)
    assert_array_equal(linear(x, w, b), expected)
    out = np.full_like(expected, np.nan)
    assert linear(x, w, b, out=out) is out
    assert_array_equal(out, expected)
    for array, copy in zip((x, w, b), copies):
        assert_array_equal(array, copy)


def test_one_compiled_kernel_for_all():
    """To Numba a read-only array is a type of its own, and so is one of another rank: none may reach a kernel."""
    def step(x, w, dy, b):
        linear(x, w, b)
        linear_input(w, dy)
        linear_weight(x, dy)
        return [twin.signatures for twin in (multiply.serial, multiply.parallel)]

    dy = np.ones((5, 7), np.float32)
    before = [list(signatures) for signatures in step(X, W, dy, B)]
    assert step(*map(read_only, (X, W, dy, B))) == before
    assert step(X[0], W, dy[0], B) == before
    assert step(X.reshape(1, 5, 1, 12), W, dy.reshape(1, 5, 1, 7), B) == before


def test_no_features_and_no_outputs():
    """An empty sum is zero, and the bias remains."""
    nothing = np.empty((5, 0), np.float32)
    assert_array_equal(linear(nothing, np.empty((7, 0), np.float32)), np.zeros((5, 7)))
    assert_array_equal(linear(nothing, np.empty((7, 0), np.float32), B), np.tile(B, (5, 1)))
    assert linear(X, np.empty((0, 12), np.float32)).shape == (5, 0)


def test_same_bits_from_run_to_run(rng):
    """And for one and two threads, at a size where both are used; beyond a few samples none depends on its batch."""
    x, w, b = (rng.standard_normal(size).astype(np.float32) for size in ((300, 200), (90, 200), 90))
    with fastconv.threads(1):
        expected = linear(x, w, b)
    for _ in range(3):
        assert_array_equal(linear(x, w, b), expected)
    assert_array_equal(linear(x[7:20], w, b), expected[7:20])


@pytest.mark.parametrize("change, error, message", [
    (dict(input=X[:, :11]), ValueError, "input must have 12 features in its last dimension, as weight of shape (7, 12) "
                                        "takes, got shape (5, 11)"),
    (dict(input=np.float32(3)), ValueError, "input must have 12 features in its last dimension"),
    (dict(input=X.astype(int)), TypeError, "input must be float32 or float64, got int64; write input.astype"),
    (dict(weight=W[0]), ValueError, "weight must have 2 dimensions, got 1 (shape (12,))"),
    (dict(weight=W.astype(float)), TypeError, "weight must be float32, as the other arguments, got float64"),
    (dict(bias=B[:6]), ValueError, "bias must have shape (7,) (one number an output feature), got (6,)"),
    (dict(bias=B.astype(float)), TypeError, "bias must be float32, as the other arguments, got float64"),
    (dict(out=np.empty((5, 6), np.float32)), ValueError, "out must have shape (5, 7) and dtype float32, got (5, 6)"),
])
def test_wrong_argument(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        linear(**{"input": X, "weight": W, "bias": B, **change})


def test_out_that_overlaps():
    buffer = np.ones(100, np.float32)
    for name, like in ("input", X), ("weight", W), ("bias", B):
        change = {name: buffer[:like.size].reshape(like.shape)}
        with pytest.raises(ValueError, match="out must not overlap an input"):
            linear(**{"input": X, "weight": W, "bias": B, **change}, out=buffer[:35].reshape(5, 7))
