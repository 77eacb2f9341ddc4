"""The gate of every convolution: arguments in torch's forms to a checked problem and its runner."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

from fastconv import check
from fastconv.kernels import algorithms
from fastconv.kernels.plan import ConvProblem

Pads = tuple[tuple[int, int], tuple[int, int]]
Result = TypeVar("Result")


_look_ups: list[Any] = []


def remembered(prepare: Callable[..., Result]) -> Callable[..., Result]:
    """``prepare`` with the results for the last 1024 sets of arguments; a repeated call is one look-up.

    1 and 1.0 are not the same argument.
    """
    look_up = functools.lru_cache(maxsize=1024, typed=True)(prepare)

    @functools.wraps(prepare)
    def repeated(*arguments: Any) -> Result:
        try:
            return look_up(*arguments)
        except TypeError:  # lists cannot be keys
            keys = map(hashable, arguments)
        return look_up(*keys)

    _look_ups.append(look_up)
    return repeated


def hashable(value: Any) -> Any:
    """Lists as tuples, and what else cannot be a key as its text, which no check takes."""
    if isinstance(value, list | tuple):
        return tuple(map(hashable, value))
    return value if isinstance(value, Hashable) else repr(value)


def padding_pairs(padding: Any, kernel: tuple[int, int], stride: tuple[int, int],
                  dilation: tuple[int, int]) -> Pads:
    """((top, bottom), (left, right)) from an integer, a pair, such pairs, 'valid' or 'same'."""
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding != "same":
            raise ValueError("padding must be 'same', 'valid', an integer, a pair or two pairs, "
                             f"got {check.shown(padding)}")
        if stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got stride {stride}")
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    if isinstance(padding, tuple | list) and len(padding) == 2 and any(isinstance(v, tuple | list) for v in padding):
        rows, columns = (check.pair("padding", v, 0) for v in padding)
        return rows, columns
    rows_pad, columns_pad = check.pair("padding", padding, 0)
    return (rows_pad, rows_pad), (columns_pad, columns_pad)


def _image_size(input_size: tuple[int, ...], weight_size: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """(N, C, H, W) of the input, once it is known that nothing but the batch is empty."""
    check.layout(layout)
    if min(weight_size) < 1:
        raise ValueError(f"weight must have no empty dimension, got shape {tuple(weight_size)}")
    if min(input_size[1:]) < 1:
        raise ValueError(f"input must have no empty dimension but the batch, got shape {tuple(input_size)}")
    return input_size if layout == "NCHW" else (input_size[0], input_size[3], *input_size[1:3])


@remembered
def problem(input_size: tuple[int, ...], weight_size: tuple[int, ...], stride: Any, padding: Any, dilation: Any,
            groups: Any, layout: str) -> ConvProblem:
    """A checked problem for an input and filters of these shapes."""
    n, c, h, w = _image_size(input_size, weight_size, layout)
    strides, dilations = check.pair("stride", stride, 1), check.pair("dilation", dilation, 1)
    groups = check.integer("groups", groups, 1)
    k, c_group, r, s = weight_size
    if c % groups or k % groups:
        raise ValueError(f"groups must divide the input channels ({c}) and the output channels ({k}), got {groups}")
    if c_group * groups != c:
        raise ValueError(f"weight of shape {tuple(weight_size)} with groups={groups} takes {c_group * groups} input "
                         f"channels, got input of shape {tuple(input_size)} ({layout}) with {c}")
    pads = padding_pairs(padding, (r, s), strides, dilations)
    found = ConvProblem(n, c, h, w, k, r, s, strides, pads, dilations, groups)
    if found.p < 1 or found.q < 1:
        reach = tuple(d * (t - 1) + 1 for d, t in zip(dilations, (r, s)))
        padded = (h + sum(pads[0]), w + sum(pads[1]))
        raise ValueError(f"kernel of {reach[0]}x{reach[1]} (dilation included) is larger than the padded input "
                         f"of {padded[0]}x{padded[1]}")
    return found


def transposed_problem(input_size: tuple[int, ...], weight_size: tuple[int, ...], stride: Any, padding: Any,
                       output_padding: Any, groups: Any, dilation: Any, layout: str) -> ConvProblem:
    """The convolution whose input gradient is this transposed convolution.

    Its padding at the bottom and right is less by ``output_padding``: no window starts in the rows and columns added.
    """
    n, k, p, q = _image_size(input_size, weight_size, layout)
    filters, c_group, r, s = weight_size
    strides, dilations = check.pair("stride", stride, 1), check.pair("dilation", dilation, 1)
    extra = check.pair("output_padding", output_padding, 0)
    groups = check.integer("groups", groups, 1)
    if k != filters:
        raise ValueError(f"weight of shape {tuple(weight_size)} takes {filters} input channels, "
                         f"got input of shape {tuple(input_size)} ({layout}) with {k}")
    if k % groups:
        raise ValueError(f"groups must divide the input channels ({k}), got {groups}")
    if any(e >= max(u, d) for e, u, d in zip(extra, strides, dilations)):
        raise ValueError(f"output_padding must be smaller than stride or dilation, got {check.shown(output_padding)}")
    pads = padding_pairs(padding, (r, s), strides, dilations)
    h, w = ((o - 1) * u - sum(pad) + d * (t - 1) + e + 1 for o, u, pad, d, t, e in zip(
        (p, q), strides, pads, dilations, (r, s), extra))
    if min(h, w) < 1:
        raise ValueError(f"padding {padding!r} leaves an output of {h}x{w}; it must be at least 1x1")
    (top, bottom), (left, right) = pads
    pads = (top, bottom - extra[0]), (left, right - extra[1])
    return ConvProblem(n, c_group * groups, h, w, k, r, s, strides, pads, dilations, groups)


@remembered
def prepared(direction: str, input_size: tuple[int, ...], weight_size: tuple[int, ...], stride: Any, padding: Any,
             dilation: Any, groups: Any, layout: str, dtype: str, algorithm: str) -> tuple[ConvProblem, Any]:
    """Problem and runner. ``dtype`` is NumPy's one-letter code, which an array gives up quicker than the name."""
    found = problem(input_size, weight_size, stride, padding, dilation, groups, layout)
    return found, algorithms.runner(direction, found, layout, np.dtype(dtype).name, algorithm) if found.n else None


@remembered
def prepared_transpose(direction: str, input_size: tuple[int, ...], weight_size: tuple[int, ...], stride: Any,
                       padding: Any, output_padding: Any, groups: Any, dilation: Any, layout: str,
                       dtype: str) -> tuple[ConvProblem, Any]:
    """As :func:`prepared`; ``direction`` is that of the underlying convolution."""
    found = transposed_problem(input_size, weight_size, stride, padding, output_padding, groups, dilation, layout)
    return found, algorithms.runner(direction, found, layout, np.dtype(dtype).name) if found.n else None


def size4(name: str, value: Any) -> tuple[int, ...]:
    """Four non-negative integers: the shape of an array to be made."""
    if type(value) is tuple and len(value) == 4 and all(type(v) is int for v in value) and min(value) >= 0:
        return value  # as an array's shape is
    try:
        size = tuple(check.integer(name, v, 0) for v in value)
    except TypeError:
        size = ()
    if len(size) != 4:
        raise ValueError(f"{name} must be a shape of 4 integers, got {check.shown(value)}")
    return size


def bias_vector(bias: Any, dtype: np.dtype, channels: int) -> np.ndarray | None:
    """The bias, one number an output channel, or None."""
    if bias is None:
        return None
    vector = check.array("bias", bias, 1, dtype)
    check.shape("bias", vector, (channels,), "(one number an output channel)")
    return vector


def set_winograd(allowed: bool) -> None:
    """Whether convolutions with ``algorithm="auto"`` may use Winograd (the default, unless FASTCONV_WINOGRAD=0).

    Its error is a few 1e-6 of the output's largest value in float32, the direct sum's a few 1e-7.
    """
    algorithms.set_winograd(allowed)
    for look_up in _look_ups:
        look_up.cache_clear()
