"""The gate of every pool: arguments in torch's forms to a checked plan."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastconv import check
from fastconv.convolution import padding_pairs, problem, remembered
from fastconv.kernels import algorithms
from fastconv.kernels.plan import ConvProblem
from fastconv.kernels.pool_plan import AveragePlan, Axis, MaxPoolPlan, Steps

Pair = tuple[int, int]


class Images(NamedTuple):
    """The sizes of (N, C, H, W) or (N, H, W, C)."""

    n: int
    c: int
    h: int
    w: int

    def shape(self, layout: str) -> tuple[int, ...]:
        return tuple(self) if layout == "NCHW" else (self.n, self.h, self.w, self.c)


def images(size: tuple[int, ...], layout: Any) -> Images:
    """The sizes in a shape of that layout; nothing but the batch may be empty."""
    check.layout(layout)
    n, c, h, w = size if layout == "NCHW" else (size[0], size[3], size[1], size[2])
    if min(c, h, w) < 1:
        raise ValueError(f"input must have no empty dimension but the batch, got shape {tuple(size)}")
    return Images(n, c, h, w)


def _axes(size: Images, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
          ceil_mode: bool) -> tuple[Axis, Axis]:
    kernel = check.pair("kernel_size", kernel_size, 1)
    strides = kernel if stride is None else check.pair("stride", stride, 1)
    dilations = check.pair("dilation", dilation, 1)
    if isinstance(padding, str):
        raise ValueError(f"padding of a pool must be an integer, a pair or two pairs, got {check.shown(padding)}")
    pads = padding_pairs(padding, kernel, strides, dilations)
    if any(2 * max(around) > cells for around, cells in zip(pads, kernel)):
        raise ValueError(f"padding must be at most half of kernel_size {kernel}, got {padding}")
    rows, columns = map(_axis, (size.h, size.w), kernel, strides, pads, dilations, (ceil_mode,) * 2)
    return rows, columns


def _axis(size: int, kernel: int, stride: int, pads: Pair, dilation: int, ceil_mode: bool) -> Axis:
    """With ceil_mode a window may hang over the end, unless it would start in the padding there."""
    reach = dilation * (kernel - 1) + 1
    room = size + sum(pads) - reach
    if room < 0:
        raise ValueError(f"kernel_size with dilation spans {reach} pixels, more than the padded input of "
                         f"{size + sum(pads)}")
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + pads[0]:
        count -= 1
    return Axis(size, kernel, stride, *pads, dilation, count)


class MaxPool(NamedTuple):
    """A checked max-pool of images of one shape."""

    plan: MaxPoolPlan
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    rows: Axis
    columns: Axis


@remembered
def max_pool(size: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool,
             layout: str) -> MaxPool:
    """The max-pool of an input of that shape."""
    sizes = images(size, layout)
    rows, columns = _axes(sizes, kernel_size, stride, padding, dilation, ceil_mode)
    output_size = sizes._replace(h=rows.count, w=columns.count).shape(layout)
    return MaxPool(MaxPoolPlan(sizes.n, sizes.c, rows, columns, layout), size, output_size, rows, columns)


class PooledConvolution(NamedTuple):
    """A checked convolution and the max-pool of its output by touching windows."""

    problem: ConvProblem
    pool: MaxPool
    run: Any  # does both in one pass, or None


@remembered
def pooled_convolution(direction: str, input_size: tuple[int, ...], weight_size: tuple[int, ...], stride: Any,
                       padding: Any, dilation: Any, groups: Any, kernel_size: Any, layout: str,
                       dtype: str) -> PooledConvolution:
    """The convolution of an input and filters of these shapes, then a max-pool by windows as far apart as large."""
    found = problem(input_size, weight_size, stride, padding, dilation, groups, layout)
    pool = max_pool(found.output_shape(layout), kernel_size, None, 0, 1, False, layout)
    window = pool.rows.kernel, pool.columns.kernel
    run = algorithms.pooled_runner(direction, found, layout, np.dtype(dtype).name, window) if found.n else None
    return PooledConvolution(found, pool, run)


class AveragePool(NamedTuple):
    """A checked average pool of images of one shape."""

    plan: AveragePlan
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]


@remembered
def average_pool(size: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool,
                 count_include_pad: bool, divisor_override: Any, layout: str, dtype: str) -> AveragePool:
    """The average pool of an input of that shape; ``dtype`` is NumPy's letter."""
    sizes = images(size, layout)
    axes = _axes(sizes, kernel_size, stride, padding, 1, ceil_mode)
    bounds, divisors = [], []
    for axis in axes:
        first, last = np.maximum(axis.starts, 0), np.minimum(axis.starts + axis.kernel, axis.size)
        bounds.append((first, last))
        padded = np.minimum(axis.starts + axis.kernel, axis.size + axis.after) - axis.starts
        divisors.append(padded if count_include_pad else np.maximum(last - first, 1))
    if divisor_override is not None:
        whole = check.integer("divisor_override", divisor_override, 1)
        divisors = [np.full(len(divisors[0]), whole), np.ones(len(divisors[1]))]
    steps = Steps(axes[1].stride, axes[1].kernel, axes[1].before)
    return _averages(sizes, size, bounds, divisors, steps, layout, dtype)


@remembered
def adaptive_average_pool(size: tuple[int, ...], output_size: tuple[int, int], layout: str,
                          dtype: str) -> AveragePool:
    """Means of P x Q regions: rows floor(i H / P) to ceil((i + 1) H / P), and so for columns."""
    sizes = images(size, layout)
    bounds, divisors = [], []
    for pixels, count in zip((sizes.h, sizes.w), output_size):
        index = np.arange(count)
        first, last = index * pixels // count, -(-(index + 1) * pixels // count)
        bounds.append((first, last))
        divisors.append(last - first)
    step, rest = divmod(sizes.w, output_size[1])
    return _averages(sizes, size, bounds, divisors, None if rest else Steps(step, step, 0), layout, dtype)


def _averages(sizes: Images, size: tuple[int, ...], bounds: list[Any], divisors: list[Any],
              steps: Steps | None, layout: str, dtype: str) -> AveragePool:
    plan = AveragePlan(sizes.n, sizes.c, (sizes.h, sizes.w), *bounds, divisors, steps, layout, np.dtype(dtype))
    p, q = (len(divisor) for divisor in divisors)
    return AveragePool(plan, size, sizes._replace(h=p, w=q).shape(layout))


def indices(value: Any, shape: tuple[int, ...], pixels: int) -> np.ndarray:
    """Flat indices into images of that many pixels, checked, as contiguous int64."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {array.dtype}")
    check.shape("indices", array, shape, "as the input")
    wrong = (array < 0) | (array >= pixels)
    if wrong.any():
        first = tuple(map(int, np.argwhere(wrong)[0]))
        raise ValueError(f"indices must be from 0 to {pixels - 1}, got {array[first]} at {first}")
    return np.ascontiguousarray(array, np.int64)


def unpool_sizes(size: tuple[int, ...], pixels: int, layout: str) -> tuple[int, int, int]:
    """(places, pixels, depth) of images seen as (images, places, depth)."""
    sizes = images(size, layout)
    return sizes.h * sizes.w, pixels, 1 if layout == "NCHW" else sizes.c
