"""Batch normalisation and its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastconv import functional, grad, normalisation
from fastconv.kernels.activation import BLOCK
from fastconv.reference import naive
from tests.tolerance import assert_close, assert_gradient, bound

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
INPUTS = pytest.mark.parametrize("layout, shape", [
    ("NCHW", (4, 5, 7, 6)), ("NHWC", (4, 7, 6, 5)), ("NCHW", (9, 5)), ("NCHW", (6, 5, 1, 1)), ("NCHW", (3, 5, 8)),
    ("NHWC", (3, 35, 35, 5)), ("NCHW", (2, 5, 40, 60))], ids=str)


def made(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, ...]:
    """Input, output gradient, weight, bias, running mean and variance, for five channels."""
    x, dy = (rng.normal(1, 2, shape).astype(dtype) for _ in range(2))
    return x, dy, *rng.uniform(0.5, 1.5, (4, 5)).astype(dtype)


def scale(*arrays: np.ndarray) -> np.ndarray:
    """The product of the largest numbers, in the arrays' dtype."""
    return np.prod([np.abs(a).max() for a in arrays], keepdims=True).astype(arrays[0].dtype)


@DTYPES
@INPUTS
def test_training(layout, shape, dtype, rng):
    x, dy, weight, bias, mean, var = made(rng, shape, dtype)
    twins = mean.copy(), var.copy()
    results = functional.batch_norm_training(x, weight, bias, mean, var, 0.3, layout=layout)
    expected = naive.batch_norm_training(x, weight, bias, *twins, 0.3, layout=layout)
    for actual, wanted in zip((*results, mean, var), (*expected, *twins)):
        assert_close(actual, wanted, 4, scale(x, weight, results[2]))
    arguments = x, weight, results[1], results[2], dy
    actual, wanted = grad.batch_norm(*arguments, layout=layout), naive.batch_norm_grad(*arguments, layout=layout)
    assert_close(actual[0], wanted[0], 8, scale(dy, weight, results[2], x))
    for vector, other in zip(actual[1:], wanted[1:]):
        assert_close(vector, other, x.size // 5, dy, scale(x, results[2]))


@DTYPES
@INPUTS
def test_evaluation(layout, shape, dtype, rng):
    x, dy, weight, bias, mean, var = made(rng, shape, dtype)
    y = functional.batch_norm(x, mean, var, weight, bias, layout=layout)
    assert_close(y, naive.batch_norm(x, mean, var, weight, bias, layout=layout), 6, scale(x, weight, 1 / var))
    arguments = x, weight, mean, 1 / np.sqrt(var), dy
    actual = grad.batch_norm_eval(*arguments, layout=layout)
    wanted = naive.batch_norm_eval_grad(*arguments, layout=layout)
    assert_close(actual[0], wanted[0], 4, scale(dy, weight, 1 / var))
    for vector, other in zip(actual[1:], wanted[1:]):
        assert_close(vector, other, x.size // 5, dy, scale(x, 1 / var))


@pytest.mark.parametrize("layout, shape", [("NCHW", (3, 5, 4, 2)), ("NHWC", (3, 4, 2, 5))])
def test_gradient_is_that_of_finite_differences(layout, shape, rng):
    x, dy, weight, bias, _, _ = made(rng, shape, np.float64)

    def output(z: np.ndarray, w: np.ndarray, b: np.ndarray) -> float:
        return float((functional.batch_norm_training(z, w, b, layout=layout)[0] * dy).sum())

    _, mean, inverse_std = functional.batch_norm_training(x, weight, bias, layout=layout)
    dx, dw, db = grad.batch_norm(x, weight, mean, inverse_std, dy, layout=layout)
    assert_gradient(lambda z: output(z, weight, bias), x, dx, rng)
    assert_gradient(lambda w: output(x, w, bias), weight, dw, rng)
    assert_gradient(lambda b: output(x, weight, b), bias, db, rng)


def test_torch_agrees(rng):
    torch = pytest.importorskip("torch")
    x, _, weight, bias, mean, var = made(rng, (4, 5, 7, 6), np.float64)
    tensors = [torch.tensor(a.copy()) for a in (x, mean, var, weight, bias)]
    for training in (True, False):
        expected = torch.nn.functional.batch_norm(*tensors, training=training, momentum=0.2)
        y = functional.batch_norm(x, mean, var, weight, bias, training, 0.2)
        assert_close(y, expected.numpy(), 6, scale(x, weight, 1 / var))
        assert_close(mean, tensors[1].numpy(), 4, x)
        assert_close(var, tensors[2].numpy(), 4, x, x)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_mean_far_from_zero_costs_no_precision(layout, rng):
    """E[x^2] - E[x]^2 would be lost in float32, and the more so the more elements."""
    shape = (8, 2, 100, 100) if layout == "NCHW" else (8, 100, 100, 2)
    x = (rng.standard_normal(shape) + 4096).astype(np.float32)
    _, mean, inverse_std = functional.batch_norm_training(x, layout=layout)
    exact = x.astype(np.float64)
    axes = (0, 2, 3) if layout == "NCHW" else (0, 1, 2)
    assert_close(mean, exact.mean(axis=axes).astype(np.float32), 1, mean)
    assert_close(inverse_std, (1 / np.sqrt(exact.var(axis=axes) + 1e-5)).astype(np.float32), 1, inverse_std)


def test_parts_end_anywhere(rng):
    """Rows just below and above whole parts."""
    rows = BLOCK // 5
    for count in (rows - 1, rows, rows + 1, 2 * rows + 1):
        x = rng.standard_normal((count, 5))
        _, mean, inverse_std = functional.batch_norm_training(x)
        assert np.abs(mean - x.mean(axis=0)).max() <= bound(count, x)
        assert np.abs(1 / inverse_std**2 - x.var(axis=0) - 1e-5).max() <= bound(count, x, x)


def test_empty_batch():
    x, one = np.zeros((0, 3, 2, 2), np.float32), np.ones(3, np.float32)
    assert functional.batch_norm(x, one, one).shape == x.shape
    for gradient in (grad.batch_norm, grad.batch_norm_eval):
        dx, dw, db = gradient(x, one, one, one, x)
        assert dx.shape == x.shape
        assert not dw.any() and not db.any()


@DTYPES
@INPUTS
def test_channel_by_channel(layout, shape, dtype, rng, monkeypatch):
    """Where L2 holds a channel and channels are work for all cores, it is passed twice at once, with the same bits."""
    x, dy, weight, bias, mean, variance = made(rng, shape, dtype)
    found = []
    for least in (0, 1 << 20):
        monkeypatch.setattr(normalisation, "CHANNELS_A_CORE", least)
        assert normalisation.channels(x, layout).alone(3) == (least == 0 and layout == "NCHW" and x[0, 0].size > 1)
        running = mean.copy(), variance.copy()
        out = functional.batch_norm_training(x, weight, bias, *running, layout=layout)
        found.append([*out, *running, *grad.batch_norm(x, weight, *out[1:], dy, layout=layout)])
    for one, other in zip(*found):
        np.testing.assert_array_equal(one, other)


X, C = np.ones((2, 3, 4, 4), np.float32), np.ones(3, np.float32)


@pytest.mark.parametrize("error, message, call", [
    (ValueError, r"input must have at least 2 dimensions", lambda: functional.batch_norm(C, C, C)),
    (ValueError, r"input must have no empty dimension but the batch, got shape \(2, 0, 4, 4\)",
     lambda: functional.batch_norm(X[:, :0], C, C)),
    (ValueError, r"running_var must be an array of 3 numbers in evaluation, got None",
     lambda: functional.batch_norm(X, C, None)),
    (ValueError, r"weight must have shape \(3,\) \(one number a channel\), got \(4,\)",
     lambda: functional.batch_norm(X, C, C, np.ones(4, np.float32))),
    (TypeError, r"bias must be float32, as the other arguments, got float64",
     lambda: functional.batch_norm_training(X, C, C.astype(np.float64))),
    (ValueError, r"input must have more than one element a channel in training, got shape \(1, 3\)",
     lambda: functional.batch_norm_training(X[:1, :, 0, 0])),
    (ValueError, r"running_mean must be a writable NumPy array: it is updated in place",
     lambda: functional.batch_norm(X, np.broadcast_to(np.float32(0), 3), C, training=True)),
    (ValueError, r'layout must be "NCHW" or "NHWC"', lambda: functional.batch_norm(X, C, C, layout="CHWN")),
    (ValueError, r"grad_output must have shape \(2, 3, 4, 4\) as input", lambda: grad.batch_norm(X, C, C, C, X[:1])),
    (ValueError, r"inverse_std must have shape \(3,\)", lambda: grad.batch_norm_eval(X, C, C, C[:2], X)),
])
def test_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()
