"""Losses and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv import functional, grad
from fastconv.reference import naive
from tests.tolerance import assert_close, assert_gradient, bound

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
LABELLED = ("cross_entropy", "nll_loss")
PAIRED = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss")


def agree(actual: Any, expected: Any, terms: int, *operands: np.ndarray) -> None:
    assert_close(np.asarray(actual), np.asarray(expected), terms, *operands)


def scores(name: str, rng: np.random.Generator, dtype: Any, rows: int = 19, classes: int = 33) -> np.ndarray:
    x = rng.normal(0, 3, (rows, classes)).astype(dtype)
    return x if name == "cross_entropy" else naive.log_softmax(x)


def outer(reduction: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """A gradient of what the loss returns."""
    return rng.uniform(-1, 1, shape) if reduction == "none" else 1.7


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name, options", [
    ("cross_entropy", {}), ("cross_entropy", {"label_smoothing": 0.2}), ("nll_loss", {})], ids=str)
def test_labels(name, options, weighted, reduction, dtype, rng):
    x, target = scores(name, rng, dtype), rng.integers(0, 33, 19)
    target[[2, 7]] = -100
    options = {**options, "reduction": reduction}
    if weighted:
        options["weight"] = rng.uniform(0.5, 1.5, 33).astype(dtype)
    agree(getattr(functional, name)(x, target, **options), getattr(naive, name)(x, target, **options), 33 + 19, x)
    options["grad_output"] = outer(reduction, target.shape, rng)
    expected = getattr(naive, f"{name}_grad")(x, target, **options)
    agree(getattr(grad, name)(x, target, **options), expected, 33, np.ones(1, dtype))


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", PAIRED)
def test_pairs(name, weighted, reduction, dtype, rng):
    x, target = (rng.uniform(0.01, 0.99, (9, 21)).astype(dtype) for _ in range(2))
    target[0] = rng.integers(0, 2, 21)
    if name == "binary_cross_entropy_with_logits":
        x = (20 * x - 10).astype(dtype)
    options = {"reduction": reduction}
    if weighted and name != "mse_loss":
        options["weight"] = rng.uniform(0.5, 1.5, 21).astype(dtype)
    loss = getattr(functional, name)(x, target, **options)
    agree(loss, getattr(naive, name)(x, target, **options), 9 * 21, np.full(1, 10, dtype))
    options["grad_output"] = outer(reduction, x.shape, rng)
    dx = getattr(grad, name)(x, target, **options)
    agree(dx, getattr(naive, f"{name}_grad")(x, target, **options), 1, np.full(1, max(1, np.abs(dx).max()), dtype))


@DTYPES
@REDUCTIONS
def test_pos_weight(reduction, dtype, rng):
    x, target = rng.normal(0, 5, (9, 21)).astype(dtype), rng.uniform(0, 1, (9, 21)).astype(dtype)
    options = {"pos_weight": rng.uniform(0.5, 3, 21).astype(dtype), "reduction": reduction}
    name = "binary_cross_entropy_with_logits"
    loss = functional.binary_cross_entropy_with_logits(x, target, **options)
    agree(loss, getattr(naive, name)(x, target, **options), 9 * 21, 3 * np.abs(x).max(keepdims=True))
    options["grad_output"] = outer(reduction, x.shape, rng)
    dx = grad.binary_cross_entropy_with_logits(x, target, **options)
    agree(dx, getattr(naive, f"{name}_grad")(x, target, **options), 1, np.full(1, 3, dtype))


@pytest.mark.parametrize("name", LABELLED + PAIRED)
def test_gradient_is_that_of_finite_differences(name, rng):
    x = rng.uniform(0.2, 0.8, (5, 6))
    target = rng.integers(0, 6, 5) if name in LABELLED else rng.uniform(0, 1, (5, 6))
    dx = getattr(grad, name)(x, target)
    assert_gradient(lambda z: getattr(functional, name)(z, target), x, dx, rng)


@pytest.mark.parametrize("name, options", [
    ("cross_entropy", {}), ("cross_entropy", {"label_smoothing": 0.1, "reduction": "sum"}),
    ("nll_loss", {"reduction": "none"})], ids=str)
@pytest.mark.parametrize("shape", [(7, 5), (3, 5, 4, 2), (5,)], ids=str)
def test_torch_agrees_on_labels(name, options, shape, rng):
    """Also with pixels behind the classes, and with a single sample."""
    torch = pytest.importorskip("torch")
    x, target = rng.standard_normal(shape), rng.integers(0, 5, shape[:1] + shape[2:] if len(shape) > 1 else ())
    weight = rng.uniform(0.5, 1.5, 5)
    tx = torch.tensor(x, requires_grad=True)
    expected = getattr(torch.nn.functional, name)(tx, torch.tensor(target), torch.tensor(weight), **options)
    expected.sum().backward()
    agree(getattr(functional, name)(x, target, weight, **options), expected.detach(), x.size, x)
    dx = getattr(grad, name)(x, target, weight, **options)
    assert dx.flags.c_contiguous
    agree(dx, tx.grad, x.size, np.ones(1))


@pytest.mark.parametrize("name", PAIRED)
def test_at_the_ends(name):
    """Probabilities and targets of exactly 0 and 1, very large logits; torch's 1e-12 is that of float32."""
    torch = pytest.importorskip("torch")
    x, target = (np.array(v) for v in ([0.0, 1.0, 0.0, 1.0, 0.5], [0.0, 1.0, 1.0, 0.0, 1.0]))
    if name == "binary_cross_entropy_with_logits":
        x = 2000 * x - 1000
    expected = getattr(torch.nn.functional, name)(torch.tensor(x), torch.tensor(target), reduction="none").numpy()
    agree(getattr(functional, name)(x, target, reduction="none"), expected, 1, expected)
    expected = getattr(naive, f"{name}_grad")(x, target, reduction="none")
    agree(getattr(grad, name)(x, target, reduction="none"), expected, 1, expected)


@pytest.mark.parametrize("shift", [0, 1000, -1000])
def test_cross_entropy_keeps_its_precision_far_from_zero(shift):
    z = np.array([[0, 1, 2]], np.float32) + np.float32(shift)
    near = naive.cross_entropy(np.array([[0.0, 1, 2]]), np.array([2]))
    assert abs(float(functional.cross_entropy(z, np.array([2]))) - near) <= bound(3, np.ones(1, np.float32))


def test_logits_keep_tiny_losses():
    z = np.array([-80, 80], np.float32)
    losses = functional.binary_cross_entropy_with_logits(z, np.array([0, 1], np.float32), reduction="none")
    agree(losses, np.exp(np.full(2, -80, np.float32)), 1, losses)


def test_perfect_and_ignored():
    x = np.zeros((3, 4), np.float32)
    ignored = np.full(3, -100)
    assert np.isnan(functional.cross_entropy(x, ignored))
    assert functional.cross_entropy(x, ignored, reduction="sum") == 0
    assert not grad.cross_entropy(x, ignored, reduction="sum").any()
    assert np.isnan(functional.mse_loss(x[:0], x[:0]))
    assert functional.cross_entropy(x, np.array([0, 9, 1], np.uint8), ignore_index=9) == np.float32(np.log(4))
    assert functional.cross_entropy(x[:0], np.zeros(0, int), reduction="none").shape == (0,)


def test_nan_logits_give_a_nan_loss():
    x = np.zeros((2, 4), np.float32)
    x[1, 2] = np.nan
    assert_array_equal(np.isnan(functional.cross_entropy(x, np.array([0, 0]), reduction="none")), [False, True])
    assert np.isnan(functional.mse_loss(x, np.zeros_like(x)))


X, LABELS = np.zeros((2, 3), np.float32), np.zeros(2, int)
HALF = np.full((2, 3), 0.5, np.float32)


def changed(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.reshape(-1)[1] = value
    return array


@pytest.mark.parametrize("error, message, call", [
    (ValueError, r"target must be labels from 0 to 2, got 3 at \[1\]",
     lambda: functional.cross_entropy(X, changed(LABELS, 3))),
    (ValueError, r"target must be labels from 0 to 2, got -1 at \[1\]",
     lambda: grad.cross_entropy(X, changed(LABELS, -1))),
    (ValueError, r"target must be labels from 0 to 2, got 3 at \[1\]",
     lambda: functional.nll_loss(X, changed(LABELS, 3))),
    (TypeError, r"target must be integer class labels, got float32; .*argmax",
     lambda: functional.cross_entropy(X, X)),
    (ValueError, r"target must have shape \(2,\) \(a label for each row of classes\), got \(3,\)",
     lambda: functional.cross_entropy(X, np.zeros(3, int))),
    (ValueError, r"weight must have shape \(3,\) \(one number a class\), got \(2,\)",
     lambda: functional.cross_entropy(X, LABELS, X[:, 0])),
    (ValueError, r"label_smoothing must be from 0 to 1, got 1.5",
     lambda: functional.cross_entropy(X, LABELS, label_smoothing=1.5)),
    (ValueError, r"reduction must be one of 'mean', 'sum', 'none', got 'max'",
     lambda: functional.cross_entropy(X, LABELS, reduction="max")),
    (ValueError, r"reduction must be one of", lambda: functional.mse_loss(X, X, reduction="max")),
    (ValueError, r"input must have a dimension of classes, got a single number",
     lambda: functional.cross_entropy(X[0, 0, ...].reshape(()), LABELS)),
    (ValueError, r"input must have at least one class, got shape \(2, 0\)",
     lambda: functional.cross_entropy(X[:, :0], LABELS)),
    (TypeError, r"input must be float32 or float64, got int64", lambda: functional.cross_entropy(LABELS, LABELS)),
    (TypeError, r"target must be float32, as the other arguments, got float64",
     lambda: functional.mse_loss(X, X.astype(np.float64))),
    (ValueError, r"target must have shape \(2, 3\) as input, got \(2,\)", lambda: functional.mse_loss(X, X[:, 0])),
    (ValueError, r"input must be probabilities from 0 to 1, got 1.5 at \[0, 1\]",
     lambda: functional.binary_cross_entropy(changed(HALF, 1.5), HALF)),
    (ValueError, r"input must be probabilities from 0 to 1, got nan at \[0, 1\]",
     lambda: grad.binary_cross_entropy(changed(HALF, np.nan), HALF)),
    (ValueError, r"target must be probabilities from 0 to 1, got -1.0 at \[0, 1\]",
     lambda: functional.binary_cross_entropy(HALF, changed(HALF, -1))),
    (ValueError, r"target must be probabilities from 0 to 1, got nan",
     lambda: functional.binary_cross_entropy_with_logits(X, changed(HALF, np.nan))),
    (ValueError, r"weight must broadcast to shape \(2, 3\), got \(2,\)",
     lambda: functional.binary_cross_entropy(HALF, HALF, X[:, 0])),
    (ValueError, r"pos_weight must broadcast to shape \(2, 3\), got \(5, 2, 3\)",
     lambda: functional.binary_cross_entropy_with_logits(HALF, HALF, pos_weight=np.zeros((5, 2, 3), np.float32))),
    (ValueError, r"grad_output must be a number for reduction='mean', got shape \(2,\)",
     lambda: grad.cross_entropy(X, LABELS, grad_output=np.ones(2))),
    (ValueError, r"grad_output must be a number or of shape \(2, 3\) for reduction='none', got shape \(3,\)",
     lambda: grad.mse_loss(X, X, reduction="none", grad_output=np.ones(3))),
])
def test_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()
