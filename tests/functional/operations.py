"""One table of all pools, activations, losses and norms, forward and backward, for what must hold of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastconv import functional, grad

Arrays = list[np.ndarray]


class Operation(NamedTuple):
    """``run(*arrays)`` on what ``make(rng, scale, dtype)`` makes; scale 1 is small, 16 is worth two threads."""

    name: str
    run: Callable[..., Any]
    make: Callable[[np.random.Generator, int, Any], Arrays]


def normal(*shapes: tuple[int, ...]) -> Callable[..., Arrays]:
    """Normally distributed arrays; a size given as a string is multiplied by the scale."""
    def make(rng: np.random.Generator, scale: int, dtype: Any) -> Arrays:
        sizes = [tuple(int(n) * scale if isinstance(n, str) else n for n in shape) for shape in shapes]
        return [rng.standard_normal(size).astype(dtype) for size in sizes]
    return make


def _pooled(make_input: Callable[..., Arrays], options: dict[str, Any]) -> Callable[..., Arrays]:
    """Positions and an output gradient for the max-pool of such an input."""
    def make(rng: np.random.Generator, scale: int, dtype: Any) -> Arrays:
        (x,) = make_input(rng, scale, dtype)
        y, positions = functional.max_pool2d_with_positions(x, **options)
        return [positions, rng.standard_normal(y.shape).astype(dtype), x]
    return make


def _unpooled(rng: np.random.Generator, scale: int, dtype: Any) -> Arrays:
    x = rng.standard_normal((2 * scale, 3, 20, 20)).astype(dtype)
    y, indices = functional.max_pool2d(x, 2, return_indices=True)
    return [y, indices, x]


def _probabilities(rng: np.random.Generator, scale: int, dtype: Any) -> Arrays:
    return [rng.uniform(0, 1, (64 * scale, 64)).astype(dtype) for _ in range(2)]


def _labelled(rng: np.random.Generator, scale: int, dtype: Any) -> Arrays:
    rows = 256 * scale
    return [3 * rng.standard_normal((rows, 21)).astype(dtype), rng.integers(0, 21, rows),
            rng.uniform(0.5, 1.5, 21).astype(dtype)]


def _masked(rng: np.random.Generator, scale: int, dtype: Any) -> Arrays:
    return [rng.integers(0, 2, (64 * scale, 64)).astype(np.uint8),
            rng.standard_normal((64 * scale, 64)).astype(dtype)]


def _channels(rng: np.random.Generator, scale: int, dtype: Any) -> Arrays:
    """Input, weight, mean, inverse_std, grad_output of (N, 16, 16, 16), in either layout."""
    x, dy = (rng.standard_normal((2 * scale, 16, 16, 16)).astype(dtype) for _ in range(2))
    return [x, *rng.uniform(0.5, 1.5, (3, 16)).astype(dtype), dy]


def _max_pools() -> list[Operation]:
    planes, pixels = normal(("2", 5, 33, 37)), normal(("2", 33, 37, 21))
    found = []
    for make, options in (
        (planes, {"kernel_size": 2}),
        (planes, {"kernel_size": 3, "stride": 2, "padding": 1}),
        (pixels, {"kernel_size": 3, "stride": 2, "padding": 1, "layout": "NHWC"}),
    ):
        title = f"{options.get('layout', 'NCHW')}-{options['kernel_size']}"
        found += [
            Operation(f"max_pool2d_with_positions-{title}",
                      partial(functional.max_pool2d_with_positions, **options), make),
            Operation(f"grad.max_pool2d-{title}", partial(_max_pool_gradient, options), _pooled(make, options))]
    return [*found, Operation("max_pool2d", partial(functional.max_pool2d, kernel_size=2), planes), Operation(
        "conv2d_max_pool2d", partial(functional.conv2d_max_pool2d, kernel_size=2, layout="NHWC"),
        normal(("2", 20, 21, 3), (16, 3, 3, 3)))]


def _max_pool_gradient(options: dict[str, Any], positions: np.ndarray, dy: np.ndarray,
                       x: np.ndarray) -> np.ndarray:
    return grad.max_pool2d(x.shape, positions, dy, **options)


def _other_pools() -> list[Operation]:
    found = [
        Operation("max_pool2d-indices", partial(functional.max_pool2d, kernel_size=2, return_indices=True),
                  normal(("2", 3, 33, 37))),
        Operation("max_unpool2d", lambda y, indices, x: functional.max_unpool2d(y, indices, 2), _unpooled),
        Operation("grad.max_unpool2d", lambda y, indices, x: grad.max_unpool2d(indices, x), _unpooled)]
    for layout in ("NCHW", "NHWC"):
        make = normal(("2", 30, 16, 24))
        average = partial(functional.avg_pool2d, kernel_size=2, layout=layout)
        adaptive = partial(functional.adaptive_avg_pool2d, output_size=(3, 5), layout=layout)

        def spread(run: Any, name: str, options: dict[str, Any], x: np.ndarray) -> np.ndarray:
            return getattr(grad, name)(x.shape, run(x), **options)

        found += [
            Operation(f"avg_pool2d-{layout}", average, make),
            Operation(f"adaptive_avg_pool2d-{layout}", adaptive, make),
            Operation(f"grad.avg_pool2d-{layout}",
                      partial(spread, average, "avg_pool2d", {"kernel_size": 2, "layout": layout}), make),
            Operation(f"grad.adaptive_avg_pool2d-{layout}",
                      partial(spread, adaptive, "adaptive_avg_pool2d", {"layout": layout}), make)]
    return found


def _activations() -> list[Operation]:
    one, two = normal(("64", 65)), normal(("64", 65), ("64", 65))
    names = ("relu", "leaky_relu", "tanh", "sigmoid", "softmax", "log_softmax")
    found = [Operation(name, getattr(functional, name), one) for name in names]
    found += [Operation(f"grad.{name}", getattr(grad, name), two) for name in names]
    return [
        *found, Operation("softmax-dim0", partial(functional.softmax, dim=0), one),
        Operation("dropout_with_mask", partial(functional.dropout_with_mask, p=0.3, rng=5), one),
        Operation("grad.dropout", partial(grad.dropout, p=0.3), _masked)]


def _losses() -> list[Operation]:
    smooth = {"label_smoothing": 0.1}
    pairs = {"binary_cross_entropy": _probabilities, "binary_cross_entropy_with_logits": _probabilities,
             "mse_loss": _probabilities}
    found = [Operation(f"{prefix}cross_entropy", partial(module.cross_entropy, **smooth), _labelled)
             for prefix, module in (("", functional), ("grad.", grad))]
    found.append(Operation(
        "cross_entropy_with_gradient", partial(functional.cross_entropy_with_gradient, **smooth), _labelled))
    found += [Operation(f"{prefix}nll_loss", module.nll_loss, _labelled)
              for prefix, module in (("", functional), ("grad.", grad))]
    return found + [Operation(f"{prefix}{name}", getattr(module, name), make)
                    for name, make in pairs.items() for prefix, module in (("", functional), ("grad.", grad))]


def _norms() -> list[Operation]:
    found = []
    for layout in ("NCHW", "NHWC"):
        found += [
            Operation(f"batch_norm_training-{layout}", partial(_training, layout), _channels),
            Operation(f"batch_norm-{layout}", partial(_evaluation, layout), _channels),
            Operation(f"grad.batch_norm-{layout}", partial(grad.batch_norm, layout=layout), _channels),
            Operation(f"grad.batch_norm_eval-{layout}", partial(grad.batch_norm_eval, layout=layout), _channels)]
    return found


def _training(layout: Any, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *_: np.ndarray) -> Any:
    return functional.batch_norm_training(x, weight, bias, layout=layout)


def _evaluation(layout: Any, x: np.ndarray, weight: np.ndarray, mean: np.ndarray, variance: np.ndarray,
                _: np.ndarray) -> Any:
    return functional.batch_norm(x, mean, variance, weight, layout=layout)


OPERATIONS = [*_max_pools(), *_other_pools(), *_activations(), *_losses(), *_norms()]
