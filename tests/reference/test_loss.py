"""Losses and their gradients against torch and against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastconv.reference import naive
from tests.tolerance import assert_close, assert_gradient

REDUCTIONS = ["mean", "sum", "none"]
SAMPLES, CLASSES = 7, 5


def case(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Input and target that suit a loss; label 2 appears, to be ignored."""
    x = 3 * rng.standard_normal((SAMPLES, CLASSES))
    labels = rng.permutation(np.arange(SAMPLES) % CLASSES)
    return {
        "cross_entropy": (x, labels),
        "nll_loss": (naive.log_softmax(x), labels),
        "binary_cross_entropy": (rng.uniform(0.2, 0.8, x.shape), rng.uniform(0, 1, x.shape)),
        "binary_cross_entropy_with_logits": (x, rng.uniform(0, 1, x.shape)),
        "mse_loss": (x, rng.standard_normal(x.shape)),
    }[name]


def options(name: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    class_weight, weight = rng.uniform(0.5, 2, CLASSES), rng.uniform(0.5, 2, (SAMPLES, CLASSES))
    return {
        "cross_entropy": [
            {},
            dict(weight=class_weight),
            dict(label_smoothing=0.2),
            dict(weight=class_weight, label_smoothing=0.2, ignore_index=2),
        ],
        "nll_loss": [{}, dict(weight=class_weight), dict(weight=class_weight, ignore_index=2)],
        "binary_cross_entropy": [{}, dict(weight=weight)],
        "binary_cross_entropy_with_logits": [
            {},
            dict(weight=weight),
            dict(weight=weight, pos_weight=class_weight),
        ],
        "mse_loss": [{}],
    }[name]


LOSSES = ["cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradient(name, reduction, rng):
    x, target = case(name, rng)
    loss, grad = getattr(naive, name), getattr(naive, f"{name}_grad")
    for extra in options(name, rng):
        extra = dict(extra, reduction=reduction)
        dy = rng.uniform(0.5, 1.5, np.shape(loss(x, target, **extra)))
        gradient = grad(x, target, **extra, grad_output=dy)
        assert_gradient(lambda z: (loss(z, target, **extra) * dy).sum(), x, gradient, rng)  # noqa: B023


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_equals_torch(name, reduction, rng):
    torch = pytest.importorskip("torch")
    x, target = case(name, rng)
    for extra in options(name, rng):
        tensors = {key: torch.tensor(v) if isinstance(v, np.ndarray) else v for key, v in extra.items()}
        tx = torch.tensor(x, requires_grad=True)
        ty = getattr(torch.nn.functional, name)(tx, torch.tensor(target), **tensors, reduction=reduction)
        ty.backward(torch.ones_like(ty))
        y = getattr(naive, name)(x, target, **extra, reduction=reduction)
        dx = getattr(naive, f"{name}_grad")(x, target, **extra, reduction=reduction)
        expected = ty.detach().numpy()
        assert_close(np.asarray(y), expected, x.size, expected)
        assert_close(dx, tx.grad.numpy(), CLASSES, np.maximum(np.abs(dx), 1))


@pytest.mark.parametrize("name", LOSSES)
def test_type_is_the_input_type(name, rng):
    x, target = case(name, rng)
    target = target.astype(np.float32) if target.dtype == np.float64 else target
    assert getattr(naive, name)(x.astype(np.float32), target).dtype == np.float32
    assert getattr(naive, f"{name}_grad")(x.astype(np.float32), target).dtype == np.float32


def test_certain_probabilities_equal_torch():
    """torch holds logarithms at -100 and the gradient's denominator at 1e-12."""
    torch = pytest.importorskip("torch")
    x, target = np.array([0.0, 1, 0, 1, 1e-50]), np.array([0.0, 1, 1, 0, 1])
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.binary_cross_entropy(tx, torch.tensor(target), reduction="none")
    ty.sum().backward()
    y = naive.binary_cross_entropy(x, target, reduction="none")
    assert_close(y, ty.detach().numpy(), 1, y)
    dx = naive.binary_cross_entropy_grad(x, target, reduction="sum")
    assert_close(dx, tx.grad.numpy(), 1, dx.astype(np.float32))  # torch writes 1e-12 in float32


def test_impossible_and_large_logits_equal_torch():
    torch = pytest.importorskip("torch")
    x = np.array([[1000.0, 1001, 1002], [0, -np.inf, 0], [-np.inf, 0, 0]])
    target = np.array([2, 0, 0])  # the last label has probability zero
    expected = torch.nn.functional.cross_entropy(torch.tensor(x), torch.tensor(target), reduction="none")
    y = naive.cross_entropy(x, target, reduction="none")
    assert_close(y, expected.numpy(), 3, np.array([1002.0]))
    logits, ones = np.array([-1000.0, 1000]), np.ones(2)
    assert naive.binary_cross_entropy_with_logits(logits, ones, reduction="none").tolist() == [1000, 0]


def test_nothing_but_ignored_labels_equals_torch():
    torch = pytest.importorskip("torch")
    x, target = np.zeros((2, 3)), np.array([-100, -100])
    for reduction in REDUCTIONS:
        expected = torch.nn.functional.cross_entropy(
            torch.tensor(x), torch.tensor(target), reduction=reduction
        )
        assert_close(
            np.asarray(naive.cross_entropy(x, target, reduction=reduction)), expected.numpy(), 1, np.ones(1)
        )
