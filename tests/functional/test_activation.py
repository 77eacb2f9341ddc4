"""Activations, softmax and dropout, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from fastconv import functional, grad
from fastconv.reference import naive
from tests.tolerance import assert_close, assert_gradient

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ELEMENTWISE = ("relu", "leaky_relu", "tanh", "sigmoid")
ALONG = ("softmax", "log_softmax")
OF_INPUT = ("leaky_relu",)  # gradients that take the input; the others take the output


@DTYPES
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name, dtype, rng):
    x, dy = rng.normal(0, 3, (2, 7, 5, 11)).astype(dtype), rng.standard_normal((7, 5)).astype(dtype)
    y = getattr(functional, name)(x)
    assert_close(y, getattr(naive, name)(x), 1, y)
    kept = x if name in OF_INPUT else y
    dx = getattr(grad, name)(kept[0, :, :, 0], dy)
    assert_close(dx, getattr(naive, f"{name}_grad")(kept[0, :, :, 0], dy), 1, dy)


@DTYPES
@pytest.mark.parametrize("name", ALONG)
@pytest.mark.parametrize("shape, dim", [((5, 33), -1), ((4, 7, 3), 1), ((4, 7, 3), 0), ((6,), 0)], ids=str)
def test_along_a_dimension(name, shape, dim, dtype, rng):
    x, dy = rng.normal(0, 3, shape).astype(dtype), rng.standard_normal(shape).astype(dtype)
    y, terms = getattr(functional, name)(x, dim), shape[dim]
    assert_close(y, getattr(naive, name)(x, dim), terms, x)
    dx = getattr(grad, name)(y, dy, dim)
    assert_close(dx, getattr(naive, f"{name}_grad")(y, dy, dim), terms, dy)


@pytest.mark.parametrize("name", [*ELEMENTWISE, *ALONG])
def test_gradient_is_that_of_finite_differences(name, rng):
    x, dy = rng.choice([-1, 1], (3, 8)) * rng.uniform(0.1, 2, (3, 8)), rng.uniform(-1, 1, (3, 8))
    function = getattr(functional, name)
    kept = x if name in OF_INPUT else function(x)
    assert_gradient(lambda z: (function(z) * dy).sum(), x, getattr(grad, name)(kept, dy), rng)


@pytest.mark.parametrize("name", [*ELEMENTWISE, *ALONG])
def test_torch_agrees(name, rng):
    torch = pytest.importorskip("torch")
    x, dy = rng.normal(0, 3, (9, 20)), rng.standard_normal((9, 20))
    twin = getattr(torch.nn.functional, name)
    tx = torch.tensor(x, requires_grad=True)
    ty = twin(tx, dim=0) if name in ALONG else twin(tx)
    ty.backward(torch.tensor(dy))
    y = getattr(functional, name)(x, *[0] * (name in ALONG))
    dx = getattr(grad, name)(x if name in OF_INPUT else y, dy, *[0] * (name in ALONG))
    assert_close(y, ty.detach().numpy(), 20, x)
    assert_close(dx, tx.grad.numpy(), 20, dy)


def test_special_numbers():
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
    assert_array_equal(functional.relu(x), np.array([np.nan, np.inf, 0, 0, 0], np.float32))
    assert_array_equal(functional.leaky_relu(x, 0.5), np.array([np.nan, np.inf, -np.inf, 0, 0], np.float32))
    assert_array_equal(grad.relu(functional.relu(x), np.ones_like(x)), [1, 1, 0, 0, 0])


@pytest.mark.parametrize("shift", [0, 1000, -1000])
def test_softmax_does_not_overflow(shift):
    z = np.array([0, 1, 2], np.float32) + np.float32(shift)
    assert round(float(functional.softmax(z)[2]), 3) == 0.665
    assert_close(np.exp(functional.log_softmax(z)), functional.softmax(z), 3, np.ones(1, np.float32))


def test_one_nan_makes_the_row_nan(rng):
    x = rng.standard_normal((3, 40)).astype(np.float32)
    x[1, 17] = np.nan
    for function in (functional.softmax, functional.log_softmax):
        assert_array_equal(np.isnan(function(x)).all(axis=1), [False, True, False])
        assert_array_equal(np.isnan(function(x)).any(axis=1), [False, True, False])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3)], ids=str)
def test_small_shapes(shape):
    x = np.ones(shape, np.float32)
    for name in ELEMENTWISE:
        assert getattr(functional, name)(x).shape == shape
    if shape:
        assert functional.softmax(x).shape == shape
        assert functional.log_softmax(x, 0).shape == shape
    assert functional.dropout(x).shape == shape


def test_out(rng):
    x = rng.standard_normal((4, 6)).astype(np.float32)
    for name in ELEMENTWISE + ALONG:
        out = np.empty_like(x)
        assert getattr(functional, name)(x, out=out) is out
        assert_array_equal(out, getattr(functional, name)(x))
    out = np.empty_like(x)
    assert functional.softmax(x, 0, out=out) is out
    assert_array_equal(out, functional.softmax(x, 0))


def test_dropout_keeps_its_share(rng):
    x = rng.standard_normal(400_000).astype(np.float32)
    for p in (0.1, 0.5, 0.9):
        y, mask = functional.dropout_with_mask(x, p, rng=7)
        assert_array_equal(y, np.where(mask, x * np.float32(1 / (1 - p)), 0))
        deviation = np.sqrt(p * (1 - p) / x.size)
        assert abs(mask.mean() - (1 - p)) < 5 * deviation
        for lag in (1, 2, 64, 16384):  # neighbours, lanes and blocks are independent
            both = (mask[lag:] & mask[:-lag]).mean()
            assert abs(both - (1 - p) ** 2) < 8 * deviation
        assert_array_equal(grad.dropout(mask, x, p), y)


def test_dropout_is_a_function_of_the_generator(rng):
    x = rng.standard_normal((300, 300)).astype(np.float32)
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    y = functional.dropout(x, rng=first)
    assert_array_equal(functional.dropout(x, rng=second), y)
    assert (functional.dropout(x, rng=first) != y).any()
    with fastconv.threads(1):
        assert_array_equal(functional.dropout(x, rng=3), y)


def test_dropout_limits(rng):
    x = rng.standard_normal(1000).astype(np.float32)
    x[0] = np.inf
    y = functional.dropout(x, 0.9, training=False)
    assert_array_equal(y, x)
    assert not np.shares_memory(y, x)
    assert_array_equal(functional.dropout(x, 0), x)
    assert not functional.dropout(x, 1).any()


X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize("error, message, call", [
    (TypeError, r"input must be float32 or float64, got int64", lambda: functional.relu(np.zeros(3, np.int64))),
    (TypeError, r"input must be a plain array, got a masked array", lambda: functional.tanh(np.ma.zeros(3))),
    (TypeError, r"grad_output must be float32, as the other arguments, got float64",
     lambda: grad.relu(X, X.astype(np.float64))),
    (ValueError, r"grad_output must have shape \(2, 3\) as output, got \(3,\)", lambda: grad.sigmoid(X, X[0])),
    (ValueError, r"dim must be an integer from -2 to 1 for input of shape \(2, 3\), got 2",
     lambda: functional.softmax(X, 2)),
    (ValueError, r"dim must be an integer from 0 to -1 for input of shape \(\), got 0",
     lambda: functional.softmax(np.ones((), np.float32), 0)),
    (ValueError, r"p must be a probability from 0 to 1, got 1.5", lambda: functional.dropout(X, 1.5)),
    (ValueError, r"p must be a probability from 0 to 1, got nan", lambda: functional.dropout(X, np.nan, False)),
    (TypeError, r"mask must be uint8, as dropout_with_mask returns it, got bool",
     lambda: grad.dropout(X > 0, X, 0.5)),
    (ValueError, r"mask must have shape \(2, 3\) as grad_output", lambda: grad.dropout(np.zeros(3, np.uint8), X, 0.5)),
])
def test_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()
