"""Activations and the linear layer against torch, and against central differences where torch is missing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv.reference import naive
from tests.tolerance import assert_close, assert_gradient, integers

ACTIVATIONS = ["relu", "leaky_relu", "tanh", "sigmoid", "softmax", "log_softmax"]
FROM_INPUT = {"leaky_relu"}  # its gradient reads the input, that of the others the output
OPTIONS = {"leaky_relu": dict(negative_slope=0.2), "softmax": dict(dim=1), "log_softmax": dict(dim=1)}


def gradient(name: str, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    options = OPTIONS.get(name, {})
    saved = x if name in FROM_INPUT else getattr(naive, name)(x, **options)
    return getattr(naive, f"{name}_grad")(saved, dy, **options)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient(name, rng):
    x = rng.permutation(np.linspace(-3, 3, 24)).reshape(2, 3, 4)  # no value at the kink in zero
    dy = rng.uniform(-1, 1, x.shape)
    operation, options = getattr(naive, name), OPTIONS.get(name, {})
    assert_gradient(lambda z: (operation(z, **options) * dy).sum(), x, gradient(name, x, dy), rng)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equals_torch(name, rng):
    torch = pytest.importorskip("torch")
    x = 10 * rng.standard_normal((4, 5, 6))
    dy = rng.standard_normal(x.shape)
    tx = torch.tensor(x, requires_grad=True)
    options = OPTIONS.get(name, {})
    ty = getattr(torch.nn.functional, name)(tx, **options)
    ty.backward(torch.tensor(dy))
    y = getattr(naive, name)(x, **options)
    assert_close(y, ty.detach().numpy(), 5, x)
    assert_close(gradient(name, x, dy), tx.grad.numpy(), 5, dy, np.maximum(np.abs(x), 1))
    assert getattr(naive, name)(x.astype(np.float32), **options).dtype == np.float32


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_extremes_equal_torch(name):
    torch = pytest.importorskip("torch")
    x = np.array([[np.nan, 0, 1, 2], [np.inf, 0, -1, 3], [-np.inf, 0, 800, -800], [0, -0.0, 1e-300, -1e-300]])
    tx = torch.tensor(x, requires_grad=True)
    options = OPTIONS.get(name, {})
    with np.errstate(invalid="ignore"):  # inf - inf in a softmax
        y, dx = getattr(naive, name)(x, **options), gradient(name, x, np.ones_like(x))
    ty = getattr(torch.nn.functional, name)(tx, **options)
    ty.backward(torch.ones_like(tx))
    finite = np.array([800.0])
    assert_close(y, ty.detach().numpy(), 4, finite)
    assert_close(dx, tx.grad.numpy(), 4, finite)


def test_sigmoid_keeps_its_relative_precision():
    assert_close(naive.sigmoid(np.array([-700.0])), np.exp(np.array([-700.0])), 1, np.exp(np.array([-700.0])))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4)])
def test_linear_equals_torch(shape, rng):
    torch = pytest.importorskip("torch")
    x, w, b = (integers(rng, size, np.float64) for size in (shape, (5, 4), 5))
    tx, tw, tb = (torch.tensor(array, requires_grad=True) for array in (x, w, b))
    ty = torch.nn.functional.linear(tx, tw, tb)
    dy = integers(rng, ty.shape, np.float64)
    ty.backward(torch.tensor(dy))
    assert_array_equal(naive.linear(x, w, b), ty.detach())
    assert_array_equal(naive.linear_input(w, dy), tx.grad)
    assert_array_equal(naive.linear_weight(x, dy), tw.grad)
    assert_array_equal(naive.linear_bias(dy), tb.grad)


def test_linear_adjoint(rng):
    """<x w^T, dy> = <x, dx> = <w, dw>."""
    x, w, dy = integers(rng, (6, 7)), integers(rng, (5, 7)), integers(rng, (6, 5))
    total = np.vdot(naive.linear(x, w), dy)
    assert total == np.vdot(x, naive.linear_input(w, dy)) == np.vdot(w, naive.linear_weight(x, dy))
    assert_array_equal(naive.linear_bias(dy), dy.sum(axis=0))
