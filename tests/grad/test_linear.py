"""Gradients of the linear layer as a user calls them; their adjoint identity is in tests/functional/test_linear.py."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from fastconv.grad import linear_bias, linear_input, linear_weight
from tests.test_check import KINDS

X = np.arange(60, dtype=np.float32).reshape(5, 12) % 9 - 4
W = np.arange(84, dtype=np.float32).reshape(7, 12) % 5 - 2
DY = np.arange(35, dtype=np.float32).reshape(5, 7) % 5 - 2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "list"])
def test_any_right_input(kind):
    x, w, dy = (KINDS[kind](array) for array in (X, W, DY))
    plain_x, plain_w, plain_dy = (np.array(array, np.float32) for array in (x, w, dy))
    assert_array_equal(linear_input(w, dy), plain_dy @ plain_w)
    assert_array_equal(linear_weight(x, dy), plain_dy.T @ plain_x)
    assert_array_equal(linear_bias(dy), plain_dy.sum(axis=0))


def test_empty():
    """No samples: gradients of zero. No features, no outputs: gradients without elements."""
    assert linear_input(W, DY[:0]).shape == (0, 12)
    assert_array_equal(linear_weight(X[:0], DY[:0]), np.zeros((7, 12)))
    assert_array_equal(linear_bias(DY[:0]), np.zeros(7))
    assert_array_equal(linear_input(W[:0], DY[:, :0]), np.zeros((5, 12)))
    assert linear_weight(X[:, :0], DY).shape == (7, 0)
    assert linear_weight(X, DY[:, :0]).shape == (0, 12)
    assert linear_bias(DY[:, :0]).shape == (0,)


def test_same_bits_from_run_to_run(rng):
    x, dy = (rng.standard_normal((300, size)).astype(np.float32) for size in (200, 90))
    w = rng.standard_normal((90, 200)).astype(np.float32)

    def step():
        return linear_input(w, dy), linear_weight(x, dy), linear_bias(dy)

    with fastconv.threads(1):
        expected = step()
    for _ in range(3):
        for actual, wanted in zip(step(), expected):
            assert_array_equal(actual, wanted)


@pytest.mark.parametrize("call, error, message", [
    (lambda: linear_input(W, DY[:, :6]), ValueError,
     "grad_output must have 7 features in its last dimension, got shape (5, 6)"),
    (lambda: linear_input(W, np.float32(1)), ValueError, "grad_output must have 7 features in its last dimension"),
    (lambda: linear_input(W[0], DY), ValueError, "weight must have 2 dimensions, got 1"),
    (lambda: linear_input(W.astype(float), DY), TypeError, "weight must be float32, as the other arguments"),
    (lambda: linear_input(W, DY.astype(int)), TypeError, "grad_output must be float32 or float64, got int64"),
    (lambda: linear_weight(X, DY[:4]), ValueError,
     "grad_output must have the dimensions of input but the last, (5,), got shape (4, 7)"),
    (lambda: linear_weight(X, DY[0]), ValueError, "grad_output must have 2 dimensions, got 1"),
    (lambda: linear_weight(np.float32(1), np.float32(1)), ValueError, "input must have at least 1 dimension, got 0"),
    (lambda: linear_weight(X, DY.astype(float)), TypeError, "grad_output must be float32, as the other arguments"),
    (lambda: linear_bias(np.float32(1)), ValueError, "grad_output must have at least 1 dimension, got 0"),
])
def test_wrong_argument(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
