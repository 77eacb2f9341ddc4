"""Loss layers: worked examples, central differences, torch."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv import nn
from tests.tolerance import assert_close, assert_gradient

REDUCTIONS = ["mean", "sum", "none"]


def case(name: str, rng: np.random.Generator) -> tuple[dict, np.ndarray, np.ndarray]:
    """Options, input and target of a loss."""
    if name == "CrossEntropyLoss":
        options = {"weight": rng.uniform(0.5, 1.5, 4), "label_smoothing": 0.1, "ignore_index": 2}
        return options, rng.uniform(-2, 2, (6, 4)), np.array([0, 1, 2, 3, 1, 0])
    if name == "MSELoss":
        return {}, rng.uniform(-2, 2, (5, 3)), rng.uniform(-2, 2, (5, 3))
    low = 0.05 if name == "BCELoss" else -2
    return ({"weight": rng.uniform(0.5, 1.5, (5, 3))}, rng.uniform(low, 0.95, (5, 3)), rng.uniform(0, 1, (5, 3)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["CrossEntropyLoss", "BCELoss", "BCEWithLogitsLoss", "MSELoss"])
class TestEveryLoss:
    def test_gradient(self, name, reduction, rng):
        options, x, target = case(name, rng)
        criterion = getattr(nn, name)(**options, reduction=reduction)
        loss = criterion(x, target)
        assert isinstance(loss, float) == (reduction != "none")
        dy = rng.uniform(0.5, 1.5, np.shape(loss)) if reduction == "none" else 1.5
        dx = criterion.backward(dy)
        assert_gradient(lambda z: np.sum(dy * criterion(z, target)), x, dx, rng)

    def test_equals_torch(self, name, reduction, rng):
        torch = pytest.importorskip("torch")
        options, x, target = case(name, rng)
        criterion = getattr(nn, name)(**options, reduction=reduction)
        tensors = {key: torch.tensor(value) if key == "weight" else value for key, value in options.items()}
        twin = getattr(torch.nn, name)(**tensors, reduction=reduction)
        tx = torch.tensor(x, requires_grad=True)
        expected = twin(tx, torch.tensor(target))
        expected.sum().backward()
        loss = criterion(x, target)
        dx = criterion.backward(np.ones(np.shape(loss)) if reduction == "none" else 1.0)
        scale = np.full(1, 20.0)  # 1/(a (1 - a)) <= 1/(0.05 * 0.95)
        assert_close(np.asarray(loss), expected.detach().numpy(), x.size, scale)
        assert_close(dx, tx.grad.numpy(), x.size, scale)


def test_worked_example_of_softmax_and_cross_entropy():
    logits = np.array([[1.2, 0.8, 2.1, 1.5, 0.3, 1.0, 2.5, 5.2, 1.8, 0.9]])
    exponentials = np.exp(logits)
    p = exponentials / exponentials.sum()
    criterion = nn.CrossEntropyLoss()
    loss = criterion(logits, np.array([7]))
    assert round(loss, 3) == 0.213
    gradient = criterion.backward()
    assert round(float(gradient[0, 7]), 3) == -0.192
    assert_close(gradient, p - np.eye(10)[[7]], 10, np.ones(1))
    assert round(float(nn.Softmax()(logits)[0, 7]), 3) == 0.808
    assert round(float(nn.Softmax()(np.array([[1000.0, 1001, 1002]]))[0, 2]), 3) == 0.665


def test_a_batch_has_the_mean_of_its_losses():
    p = np.exp(-np.array([0.213, 0.428, 0.082]))
    logits = np.log(np.stack([p, 1 - p], axis=1))
    assert round(nn.CrossEntropyLoss()(logits, np.zeros(3, np.int64)), 3) == 0.241


def test_backward_needs_a_forward():
    with pytest.raises(RuntimeError, match=r"MSELoss.backward needs a forward call"):
        nn.MSELoss().backward()
    criterion = nn.MSELoss(reduction="sum")
    criterion(np.ones(2), np.zeros(2))
    assert criterion.backward(need_input_grad=False) is None
    assert repr(criterion) == "MSELoss(reduction='sum')"


def test_gradient_is_scaled_by_what_comes_from_above():
    criterion, x, target = nn.MSELoss(), np.array([2.0, 4.0]), np.array([1.0, 1.0])
    criterion(x, target)
    once = criterion.backward()
    criterion(x, target)
    assert_array_equal(criterion.backward(4.0), 4 * once)
