"""What stands between the convolutions, as fastconv, plain NumPy and PyTorch run it: average pools, activations,
batch norm, losses and optimisers.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastconv import functional, grad, nn, optim
from fastconv.reference import naive

if TYPE_CHECKING:
    from fastconv.bench.case import Case

EXACT = -1  # terms of a result that is not rounded
FEW = 30  # terms: a few roundings an element, of sums that are taken pairwise or in float64
LR, MOMENTUM, BETAS, ADAM_EPS, NORM_EPS = 1e-3, 0.9, (0.9, 0.999), 1e-8, 1e-5

Call = Callable[[], Any]
Maker = Callable[["Case", SimpleNamespace], Call]


class Layer(NamedTuple):
    """An operation: the tensors it moves, and how each path makes a call from a case and its arrays.

    The call returns the array that is compared, or a tuple with it in front. PyTorch's maker is given the package
    and tensors.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    terms: int  # of the bound on its error
    naive: Maker
    jit: Maker
    torch: Callable[[Any, Case, SimpleNamespace], Call]


def statistics_and_labels(case: Case, x: np.ndarray) -> dict[str, np.ndarray]:
    """What layers take beside x, w, b and dy."""
    axes = (0, 2, 3) if case.layout == "NCHW" else (0, 1, 2)
    mean, variance = x.mean(axis=axes, dtype=np.float64), x.var(axis=axes, dtype=np.float64)
    return {"mean": mean.astype(x.dtype), "inverse_std": (1 / np.sqrt(variance + NORM_EPS)).astype(x.dtype),
            "labels": np.arange(case.problem.n) * 7 % case.problem.c}


def _logits(x: Any) -> Any:
    """Images of one pixel as rows of logits."""
    return x.reshape(x.shape[0], -1)


def _pool_arguments(case: Case) -> tuple[Any, ...]:
    stride, padding, _ = case.window
    return case.kernel_size, stride, padding


def _layout(case: Case) -> dict[str, Any]:
    return {"layout": case.layout}


def _torch_cross_entropy(torch: Any, case: Case, a: SimpleNamespace) -> Call:
    """The four operations that autograd would call."""
    aten, x, one = torch.ops.aten, _logits(a.x), torch.ones((), dtype=a.x.dtype)

    def call() -> Any:
        log_p = aten._log_softmax(x, 1, False)
        _, total = aten.nll_loss_forward(log_p, a.labels, None, 1, -100)
        d_log_p = aten.nll_loss_backward(one, log_p, a.labels, None, 1, -100, total)
        return aten._log_softmax_backward_data(d_log_p, log_p, 1, x.dtype)

    return call


def _step(package: Any, parameter: Any, a: SimpleNamespace, kind: str, **options: Any) -> Call:
    """A step of an optimiser of fastconv or PyTorch on one parameter."""
    parameter.grad = a.dy
    optimizer = getattr(package, kind)([parameter], lr=LR, **options)

    def call() -> Any:
        optimizer.step()
        return parameter.data

    return call


def _naive_sgd(case: Case, a: SimpleNamespace) -> Call:
    velocity = np.zeros_like(a.x)

    def call() -> np.ndarray:
        velocity[...] = MOMENTUM * velocity + a.dy
        a.x -= LR * velocity
        return a.x

    return call


def _naive_adam(case: Case, a: SimpleNamespace) -> Call:
    first, second = np.zeros_like(a.x), np.zeros_like(a.x)
    (beta1, beta2), steps = BETAS, 0

    def call() -> np.ndarray:
        nonlocal steps
        steps += 1
        first[...] = beta1 * first + (1 - beta1) * a.dy
        second[...] = beta2 * second + (1 - beta2) * a.dy**2
        a.x -= LR * (first / (1 - beta1**steps)) / (np.sqrt(second / (1 - beta2**steps)) + ADAM_EPS)
        return a.x

    return call


def _optimizer(kind: str, plain: Maker, states: int, **options: Any) -> Layer:
    """Its step reads parameter, gradient and states, and writes all but the gradient."""
    return Layer(
        ("x", "dy", *["x"] * states), ("x", *["x"] * states), FEW, plain,
        lambda case, a: _step(optim, nn.Parameter(a.x), a, kind, **options),
        lambda torch, case, a: _step(torch.optim, torch.nn.Parameter(a.x), a, kind, fused=True, **options))


LAYERS = {
    "avg_pool": Layer(
        ("x",), ("y",), FEW,
        lambda case, a: lambda: naive.avg_pool2d(a.x, *_pool_arguments(case), **_layout(case)),
        lambda case, a: lambda: functional.avg_pool2d(a.x, *_pool_arguments(case), **_layout(case)),
        lambda torch, case, a: lambda: torch.nn.functional.avg_pool2d(a.x, *_pool_arguments(case))),
    "avg_pool_gradient": Layer(
        ("dy",), ("x",), FEW,
        lambda case, a: lambda: naive.avg_pool2d_grad(a.x.shape, a.dy, *_pool_arguments(case), **_layout(case)),
        lambda case, a: lambda: grad.avg_pool2d(a.x.shape, a.dy, *_pool_arguments(case), **_layout(case)),
        lambda torch, case, a: lambda: torch.ops.aten.avg_pool2d_backward(
            a.dy, a.x, *_pool_arguments(case), False, True, None)),
    "relu": Layer(
        ("x",), ("y",), EXACT,
        lambda case, a: lambda: naive.relu(a.x),
        lambda case, a: lambda: functional.relu(a.x),
        lambda torch, case, a: lambda: torch.relu(a.x)),
    "relu_gradient": Layer(  # x stands for the output
        ("x", "dy"), ("x",), EXACT,
        lambda case, a: lambda: naive.relu_grad(a.x, a.dy),
        lambda case, a: lambda: grad.relu(a.x, a.dy),
        lambda torch, case, a: lambda: torch.ops.aten.threshold_backward(a.dy, a.x, 0)),
    "batch_norm": Layer(
        ("x",), ("y",), FEW,
        lambda case, a: lambda: naive.batch_norm_training(a.x, a.b, a.b, eps=NORM_EPS, **_layout(case)),
        lambda case, a: lambda: functional.batch_norm_training(a.x, a.b, a.b, eps=NORM_EPS, **_layout(case)),
        lambda torch, case, a: lambda: torch.ops.aten.native_batch_norm(
            a.x, a.b, a.b, None, None, True, 0.1, NORM_EPS)),
    "batch_norm_gradient": Layer(
        ("x", "dy"), ("x",), FEW,
        lambda case, a: lambda: naive.batch_norm_grad(a.x, a.b, a.mean, a.inverse_std, a.dy, **_layout(case)),
        lambda case, a: lambda: grad.batch_norm(a.x, a.b, a.mean, a.inverse_std, a.dy, **_layout(case)),
        lambda torch, case, a: lambda: torch.ops.aten.native_batch_norm_backward(
            a.dy, a.x, a.b, None, None, a.mean, a.inverse_std, True, NORM_EPS, [True] * 3)),
    "cross_entropy": Layer(  # the loss and its gradient
        ("x",), ("x",), FEW,
        lambda case, a: lambda: naive.cross_entropy_grad(_logits(a.x), a.labels),
        lambda case, a: lambda: functional.cross_entropy_with_gradient(_logits(a.x), a.labels)[1],
        _torch_cross_entropy),
    "sgd_step": _optimizer("SGD", _naive_sgd, 1, momentum=MOMENTUM),
    "adam_step": _optimizer("Adam", _naive_adam, 2, betas=BETAS, eps=ADAM_EPS),
}
