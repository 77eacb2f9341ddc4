"""Batch normalisation against torch and against central differences."""

from __future__ import annotations

import numpy as np
import pytest

from fastconv.reference import naive
from tests.tolerance import assert_close, assert_gradient

SHAPES = [(6, 3), (4, 3, 5, 2)]


def parameters(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Input, weight, bias, running mean, running variance and output gradient."""
    x, dy = 3 * rng.standard_normal(shape) + 1, rng.standard_normal(shape)
    weight, bias, mean, variance = rng.uniform(0.5, 2, (4, shape[1]))
    return x, weight, bias, mean, variance, dy


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_gradient(shape, affine, rng):
    x, weight, bias, _, _, dy = parameters(shape, rng)
    if not affine:
        weight = bias = None
    _, mean, inverse_std = naive.batch_norm_training(x, weight, bias)
    dx, dweight, dbias = naive.batch_norm_grad(x, weight, mean, inverse_std, dy)

    def loss(x, weight, bias):
        return (naive.batch_norm_training(x, weight, bias)[0] * dy).sum()

    assert_gradient(lambda value: loss(value, weight, bias), x, dx, rng)
    if affine:
        assert_gradient(lambda value: loss(x, value, bias), weight, dweight, rng)
        assert_gradient(lambda value: loss(x, weight, value), bias, dbias, rng)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torch(shape, training, rng):
    torch = pytest.importorskip("torch")
    x, weight, bias, mean, variance, dy = parameters(shape, rng)
    tx, tw, tb = (torch.tensor(array, requires_grad=True) for array in (x, weight, bias))
    tmean, tvariance = torch.tensor(mean), torch.tensor(variance)
    ty = torch.nn.functional.batch_norm(tx, tmean, tvariance, tw, tb, training, 0.3, 1e-3)
    ty.backward(torch.tensor(dy))

    y = naive.batch_norm(x, mean, variance, weight, bias, training, 0.3, 1e-3)
    terms = x.size // shape[1]
    assert_close(y, ty.detach().numpy(), terms, y)
    assert_close(mean, tmean.numpy(), terms, x)  # the running statistics moved alike, or not at all
    assert_close(variance, tvariance.numpy(), terms, x, x)
    if training:
        _, mean, inverse_std = naive.batch_norm_training(x, weight, bias, eps=1e-3)
        gradients = naive.batch_norm_grad(x, weight, mean, inverse_std, dy)
    else:
        gradients = naive.batch_norm_eval_grad(x, weight, mean, 1 / np.sqrt(variance + 1e-3), dy)
    for actual, expected in zip(gradients, (tx.grad, tw.grad, tb.grad)):
        assert_close(actual, expected.numpy(), terms, dy, y)


def test_layouts_agree(rng):
    x, weight, bias, mean, variance, dy = parameters((4, 3, 5, 2), rng)
    last, dy_last = x.transpose(0, 2, 3, 1), dy.transpose(0, 2, 3, 1)
    y, batch_mean, inverse_std = naive.batch_norm_training(x, weight, bias)
    y_last, _, _ = naive.batch_norm_training(last, weight, bias, layout="NHWC")
    assert_close(y_last.transpose(0, 3, 1, 2), y, 40, y)
    assert_close(
        naive.batch_norm(last, mean, variance, layout="NHWC").transpose(0, 3, 1, 2),
        naive.batch_norm(x, mean, variance),
        1,
        y,
    )
    dx, dweight, dbias = naive.batch_norm_grad(x, weight, batch_mean, inverse_std, dy)
    dx_last, dweight_last, dbias_last = naive.batch_norm_grad(
        last, weight, batch_mean, inverse_std, dy_last, layout="NHWC"
    )
    assert_close(dx_last.transpose(0, 3, 1, 2), dx, 40, dy, y)
    assert_close(dweight_last, dweight, 40, dy, y)
    assert_close(dbias_last, dbias, 40, dy)


def test_types_and_missing_statistics(rng):
    x = rng.standard_normal((4, 3)).astype(np.float32)
    assert {array.dtype for array in naive.batch_norm_training(x)} == {np.dtype(np.float32)}
    with pytest.raises(ValueError, match="running_mean and running_var"):
        naive.batch_norm(x, None, None)
