"""The twins of every kernel give the same bits, at sizes that fill vectors and blocks and that do not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from fastconv import pooling, threads
from fastconv.kernels import activation, layouts, loss, norm, optim, pool, pool_average
from fastconv.kernels.jit import Kernel

Arguments = list[Any]
Calls = Iterator[Arguments]
WIDTHS = (1, 2, 3, 5, 8, 10, 15, 16, 17, 21, 31, 33, 63, 64, 65, 100, 129, 257, 1000)
LENGTHS = (*WIDTHS, activation.BLOCK - 1, 2 * activation.BLOCK + 77)
ROWS, ROWS_A_BLOCK = 7, 3
IMAGES = ((1, 1, 5, 4), (2, 3, 9, 17), (3, 5, 33, 37), (1, 2, 20, 70))
SEVERAL_CHANNELS = ((2, 16, 7, 9), (1, 17, 3, 40), (40, 16, 11, 11))
POOLS = ((2, 2, 0), (3, 2, 1), (3, 1, 1), (5, 3, 2))  # kernel_size, stride, padding


def blank(size: int, dtype: Any) -> np.ndarray:
    """For results: what no kernel leaves everywhere."""
    return np.full(size, 7, dtype)


def elementwise(operands: int, scalars: int, rng: np.random.Generator, dtype: Any) -> Calls:
    """Operands between 0 and 1, of which all functions are defined."""
    for size in LENGTHS:
        numbers = [rng.uniform(0, 1, size).astype(dtype) for _ in range(operands)]
        yield [blank(size, dtype), *numbers, *[dtype(0.3)] * scalars]


def kept(rng: np.random.Generator, dtype: Any) -> Calls:
    for size in LENGTHS:
        yield [blank(size, dtype), rng.standard_normal(size).astype(dtype),
               rng.integers(0, 2, size).astype(np.uint8), dtype(1.7)]


def dropout(rng: np.random.Generator, dtype: Any) -> Calls:
    for size in LENGTHS:
        yield [blank(size, dtype), blank(size, np.uint8), rng.standard_normal(size).astype(dtype),
               np.uint64(size), np.uint64(1 << 62), dtype(1.7)]


def turned(rng: np.random.Generator, dtype: Any) -> Calls:
    for n, c, h, w in (*IMAGES, *SEVERAL_CHANNELS):
        yield [blank(n * h * w * c, dtype).reshape(n, h, w, c), rng.standard_normal((n, c, h, w)).astype(dtype)]


def rows(operands: int, rng: np.random.Generator, dtype: Any) -> Calls:
    for width in WIDTHS:
        numbers = [3 * rng.standard_normal(ROWS * width).astype(dtype) for _ in range(operands)]
        yield [blank(ROWS * width, dtype), *numbers, width, ROWS_A_BLOCK]


def classified(backward: bool, rng: np.random.Generator, dtype: Any) -> Calls:
    """One label is to be ignored; ``backward``: with the gradient."""
    for classes in WIDTHS:
        weight, scale = rng.uniform(0.5, 1.5, classes).astype(dtype), rng.uniform(0.5, 1.5, ROWS).astype(dtype)
        labels = np.append(rng.integers(0, classes, ROWS - 1), -1)
        logits = 3 * rng.standard_normal(ROWS * classes).astype(dtype)
        for smoothing in (0, 0.1):
            yield [blank(ROWS, dtype), *([blank(logits.size, dtype)] if backward else []), logits, labels, weight,
                   weight.sum(),
                   dtype(smoothing), *([scale] if backward else []), ROWS_A_BLOCK]


def channels(name: str, rng: np.random.Generator, dtype: Any) -> Calls:
    """Seven planes of ``width`` pixels in channels of one, or rows of ``width`` channels."""
    for width in WIDTHS:
        x, dy = (rng.normal(1, 2, ROWS * width).astype(dtype) for _ in range(2))
        depth, parts = (ROWS, ROWS) if name.startswith("plane") or name.endswith("planes") else (
            width, width * -(-ROWS // ROWS_A_BLOCK))
        vectors = list(rng.uniform(0.5, 1.5, (4, depth)).astype(dtype))
        out, sums = blank(x.size, dtype), [blank(parts, np.float64), blank(parts, np.float64)]
        operands = {"moments": [*sums, x], "products": [*sums, dy, x, vectors[0]],
                    "normalise": [out, x, *vectors[:3]], "gradient": [out, dy, x, *vectors]}
        (found,) = (value for part, value in operands.items() if part in name)
        yield [*found, width, ROWS_A_BLOCK]


def whole_channels(name: str, rng: np.random.Generator, dtype: Any) -> Calls:
    """Three images of four channels of ``width`` pixels."""
    for width in WIDTHS:
        x, dy = (rng.normal(1, 2, 12 * width).astype(dtype) for _ in range(2))
        first, second = rng.uniform(0.5, 1.5, (2, 4)).astype(dtype)
        out, sums = blank(x.size, dtype), [blank(4, np.float64), blank(4, np.float64)]
        if name == "channel_norm":
            yield [out, blank(12, np.float64), blank(12, np.float64), *sums, x, first, second, 1e-5, width]
        else:
            yield [out, *sums, dy, x, first, np.ones(4), second, width]


def updates(states: int, scalars: int, more: tuple[bool, ...], rng: np.random.Generator, dtype: Any) -> Calls:
    for size in LENGTHS:
        numbers = [np.abs(rng.standard_normal(size)).astype(dtype) for _ in range(states + 2)]
        yield [*numbers, *rng.uniform(0, 1, scalars).astype(dtype), *more]


def average_pools(layout: str, dtype: Any) -> list[pooling.AveragePool]:
    """Of a channel or more; with channels last of two or more, as one is taken for planes."""
    found = []
    for n, c, h, w in IMAGES:
        shape = (n, c, h, w) if layout == "NCHW" else (n, h, w, c + 1)
        found += [pooling.average_pool(shape, *options, True, False, None, layout, np.dtype(dtype).char)
                  for options in (*POOLS, (1, 9, 0))]
        found += [pooling.adaptive_average_pool(shape, size, layout, np.dtype(dtype).char)
                  for size in ((1, 1), (3, 4), (h, w))]
    return found


def averages(kernel: Kernel, backward: bool, layout: str, rng: np.random.Generator, dtype: Any) -> Calls:
    """The pools that have this kernel."""
    for average in average_pools(layout, dtype):
        plan = average.plan
        if (plan.backward_kernel if backward else plan.forward_kernel) not in (kernel, kernel.serial):
            continue
        x, y = (rng.standard_normal(size).astype(dtype).reshape(-1)
                for size in (average.input_size, average.output_size))
        yield [x, y, *plan.backward] if backward else [y, x, *plan.forward]


def average_kernels() -> Iterator[tuple[Kernel, Callable[..., Calls]]]:
    """Those for any windows, and those that are made for a stride and the size of a window."""
    for layout, any_windows in (
        ("NCHW", (pool_average.average_planes, pool_average.average_planes_gradient)),
        ("NHWC", (pool_average.average_pixels, pool_average.average_pixels_gradient)),
    ):
        found = [average.plan for average in average_pools(layout, np.float32)]
        for backward, kernels in (False, {plan.forward_kernel for plan in found}), (
                True, {plan.backward_kernel for plan in found}):
            for kernel in {any_windows[backward], *(one for one in kernels if isinstance(one, Kernel))}:
                yield kernel, partial(averages, kernel, backward, layout)


def max_pools(backward: bool, layout: str, step: int, disjoint: bool, rng: np.random.Generator,
              dtype: Any) -> Calls:
    """Windows that such a kernel is for; backward, random winners among their cells."""
    kernel_size = (step if disjoint else 3, step if disjoint else 3)
    stride = step if layout == "NCHW" else 2
    for n, c, h, w in IMAGES:
        shape = (n, c, h, w) if layout == "NCHW" else (n, h, w, c + 1)
        found = pooling.max_pool(shape, kernel_size, stride, 0, 1, True, layout)
        x, y = (rng.standard_normal(size).astype(dtype).reshape(-1) for size in (found.input_size, found.output_size))
        where = rng.integers(0, kernel_size[0] * kernel_size[1], y.size).astype(np.uint8)
        yield [x, where, y, *found.plan.backward] if backward else [y, where, x, *found.plan.forward]


def uncut_pools(step: int, rng: np.random.Generator, dtype: Any) -> Calls:
    """Windows of 3 x 3 inside the image."""
    for shape in IMAGES:
        found = pooling.max_pool(shape, 3, step, 0, 1, False, "NCHW")
        x, y = (rng.standard_normal(math.prod(size)).astype(dtype) for size in (shape, found.output_size))
        yield [y, np.zeros(y.size, np.uint8), x, *found.plan.forward]


def uncut_pixels(rng: np.random.Generator, dtype: Any) -> Calls:
    """Windows of 2 x 2 inside the image, with whole vectors of channels and not; with NaN, and with ReLU."""
    for n, c, h, w in SEVERAL_CHANNELS:
        plan = pooling.max_pool((n, h, w, c), 2, 2, 0, 1, False, "NHWC").plan
        x = rng.standard_normal(n * h * w * c).astype(dtype)
        x[rng.random(x.size) < 0.01] = np.nan
        for arguments in plan.forward, plan.forward_relu:
            size = n * (h // 2) * (w // 2) * c
            yield [blank(size, dtype), np.zeros(size, np.uint8), x, *arguments]


def touching(layout: str, step: int, rng: np.random.Generator, dtype: Any) -> Calls:
    """Windows of step x step that leave rows and columns over, or none."""
    for n, c, h, w in (*SEVERAL_CHANNELS, (3, 19, 2 * step, 2 * step)):
        size = (n, c, h, w) if layout == "NCHW" else (n, h, w, c)
        found = pooling.max_pool(size, step, step, 0, 1, False, layout)
        dx, dy = (rng.standard_normal(math.prod(shape)).astype(dtype) for shape in (size, found.output_size))
        yield [dx, rng.integers(0, step * step, dy.size).astype(np.uint8), dy, *found.plan.backward]


def unpooled(backward: bool, rng: np.random.Generator, dtype: Any) -> Calls:
    """Some indices come twice: the last one stays."""
    for places in WIDTHS:
        few, many = rng.standard_normal(2 * places * 3).astype(dtype), blank(2 * 2 * places * 3, dtype)
        indices = rng.integers(0, 2 * places, few.size)
        arrays = [few, rng.standard_normal(many.size).astype(dtype)] if backward else [many, few]
        yield [*arrays, indices, places, 2 * places, 3]


def indices(rng: np.random.Generator, dtype: Any) -> Calls:
    for columns in WIDTHS:
        where = rng.integers(0, 9, 6 * columns * 2).astype(np.uint8)
        yield [blank(where.size, np.int64), where, np.arange(3) * 100, np.arange(columns) - 1, np.arange(9), 2]


CASES: dict[str, tuple[Kernel, Callable[..., Calls]]] = {
    **{f"activation.{name}": (getattr(activation, name), partial(elementwise, *counts)) for name, counts in {
        "add": (2, 0), "add_relu": (2, 0), "relu": (1, 0), "relu_gradient": (2, 0),
        "leaky_relu": (1, 1), "leaky_relu_gradient": (2, 1), "tanh": (1, 0),
        "tanh_gradient": (2, 0), "sigmoid": (1, 0), "sigmoid_gradient": (2, 0)}.items()},
    **{f"loss.{name}": (getattr(loss, name), partial(elementwise, *counts)) for name, counts in {
        "binary_cross_entropy": (2, 0), "binary_cross_entropy_gradient": (2, 1),
        "binary_cross_entropy_with_logits": (2, 0), "binary_cross_entropy_with_logits_gradient": (2, 1),
        "softplus": (1, 0), "squared_error": (2, 0), "squared_error_gradient": (2, 1)}.items()},
    "activation.kept": (activation.kept, kept),
    "layouts.to_nhwc": (layouts.to_nhwc, turned),
    "activation.dropout": (activation.dropout, dropout),
    **{f"activation.{name}": (getattr(activation, name), partial(rows, operands)) for name, operands in {
        "softmax": 1, "log_softmax": 1, "softmax_gradient": 2, "log_softmax_gradient": 2}.items()},
    "loss.cross_entropy": (loss.cross_entropy, partial(classified, False)),
    "loss.cross_entropy_with_gradient": (loss.cross_entropy_with_gradient, partial(classified, True)),
    **{f"norm.{name}": (getattr(norm, name), partial(channels, name)) for name in (
        "plane_moments", "plane_products", "normalise_planes", "plane_gradient",
        "pixel_moments", "pixel_products", "normalise_pixels", "pixel_gradient")},
    **{f"norm.{name}": (getattr(norm, name), partial(whole_channels, name))
       for name in ("channel_norm", "channel_gradient")},
    "optim.sgd": (optim.sgd, partial(updates, 0, 2, ())),
    "optim.sgd_momentum": (optim.sgd_momentum, partial(updates, 1, 4, (False,))),
    "optim.sgd_momentum, Nesterov": (optim.sgd_momentum, partial(updates, 1, 4, (True,))),
    "optim.adam": (optim.adam, partial(updates, 2, 8, ())),
    **{kernel.name: (kernel, calls) for kernel, calls in average_kernels()},
    "pool.unpool": (pool.unpool, partial(unpooled, False)),
    "pool.unpool_gradient": (pool.unpool_gradient, partial(unpooled, True)),
    "pool.flat_indices": (pool.flat_indices, indices),
    **{f"pool.max_pool {layout} {step} {window} {size}": (
        pool.max_pool(layout, step, window, size), partial(max_pools, False, layout, step, False))
       for layout, step, size in (*itertools.product(["NCHW"], (1, 2), (16, 32, 64)), ("NHWC", 1, 64))
       for window in (None, (3, 3))},
    **{f"pool.max_pool_planes {step} {size}": (pool.max_pool_planes(step, (3, 3), size), partial(uncut_pools, step))
       for step in (1, 2, 3) for size in (16, 32, 64)},
    **{f"pool.max_pool_pixels {size}": (pool.max_pool_pixels((2, 2), size), uncut_pixels) for size in (16, 32)},
    **{f"pool.max_pool_gradient {layout} {step} {disjoint} {window}": (
        pool.max_pool_gradient(layout, step, disjoint, window), partial(max_pools, True, layout, step, disjoint))
       for layout, step, disjoint, window in (
           ("NCHW", 1, False, None), ("NCHW", 1, False, (3, 3)), ("NCHW", 2, False, None), ("NCHW", 2, True, None),
           ("NHWC", 1, False, None), ("NHWC", 1, False, (3, 3)))},
    **{f"pool.max_pool_gradient_pixels {size}": (
        pool.max_pool_gradient_pixels((2, 2), size), partial(touching, "NHWC", 2)) for size in (16, 32)},
    **{f"pool.max_pool_gradient_planes {step} {size}": (
        pool.max_pool_gradient_planes((step, step), size), partial(touching, "NCHW", step))
       for step in (2, 3) for size in (32, 64)},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_same_bits(name, dtype, rng):
    kernel, calls = CASES[name]
    for arguments in calls(rng, dtype):
        results = []
        for count in 1, 2:
            copies = [value.copy() if isinstance(value, np.ndarray) else value for value in arguments]
            with threads(count):
                kernel(*copies)
            results.append([value.tobytes() for value in copies if isinstance(value, np.ndarray)])
        assert results[0] == results[1], [len(value) for value in results[0]]
        assert results[0] != [value.tobytes() for value in arguments if isinstance(value, np.ndarray)], "no result"


def test_every_kernel_is_here():
    for module in activation, layouts, loss, norm, optim, pool, pool_average:
        found = {value for value in vars(module).values() if isinstance(value, Kernel)
                 and value.parallel is not value.serial}
        assert found <= {kernel for kernel, _ in CASES.values()}, module


def test_no_kernel_has_fast_math():
    """With it a compiler may reorder and fuse, and does so for each twin anew."""
    for kernel, _ in CASES.values():
        for twin in kernel.serial, kernel.parallel:
            assert not twin.targetoptions.get("fastmath"), kernel
