"""Windows over images: which input pixel each tap of each window reads. Shared by the two references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
Pair = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]


class Tap(NamedTuple):
    """Window (p, q) reads pixel (h, w) through its cell (r, s)."""

    p: int
    q: int
    r: int
    s: int
    h: int
    w: int


class Window(NamedTuple):
    """A kernel's (rows, columns) and how it moves; padding is ((top, bottom), (left, right))."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]

    def output_size(self, image: tuple[int, int], ceil_mode: bool = False) -> tuple[int, int]:
        """P, Q = floor((size + padding - d(R-1) - 1)/u) + 1.

        `ceil_mode` rounds up, unless the last window would start in the bottom or right padding.
        """

        def along(size: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int) -> int:
            span = size + sum(pads) - dilation * (kernel - 1) - 1
            if not ceil_mode:
                return span // stride + 1
            windows = -(-span // stride) + 1
            return windows - 1 if (windows - 1) * stride >= size + pads[0] else windows

        rows, columns = (along(*axis) for axis in zip(image, *self))
        return rows, columns

    def transposed_size(self, image: tuple[int, int], output_padding: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a transposed convolution: (H-1) u - padding + d(R-1) + 1 + output_padding."""
        rows, columns = (
            (size - 1) * stride - sum(pads) + dilation * (kernel - 1) + 1 + extra
            for size, kernel, stride, pads, dilation, extra in zip(image, *self, output_padding)
        )
        return rows, columns

    def taps(self, p: int, q: int, image: tuple[int, int]) -> Iterator[Tap]:
        """The taps of window (p, q) that lie inside an image of (rows, columns), row by row."""
        (top, _), (left, _) = self.padding
        for r, s in np.ndindex(*self.kernel):
            h = p * self.stride[0] + r * self.dilation[0] - top
            w = q * self.stride[1] + s * self.dilation[1] - left
            if not (0 <= h < image[0] and 0 <= w < image[1]):
                continue
            yield Tap(p, q, r, s, h, w)


def window(kernel: Pair, stride: Pair | None = 1, padding: Padding = 0, dilation: Pair = 1) -> Window:
    """A window from arguments as torch takes them; a stride of None is the kernel's size."""
    size, steps = pair(kernel), pair(dilation)
    return Window(size, size if stride is None else pair(stride), _paddings(padding, size, steps), steps)


def pair(value: Any) -> tuple[int, int]:
    """One number for both axes, or (rows, columns)."""
    rows, columns = value if isinstance(value, Sequence) else (value, value)
    return rows, columns


def _paddings(
    padding: Padding, kernel: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":  # an odd total puts the larger part after, as torch does
        rows, columns = (d * (size - 1) for size, d in zip(kernel, dilation))
        return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    return pair(padding[0]), pair(padding[1])


def position_type(moves: Window) -> np.dtype:
    """The smallest type that numbers the cells of a window: uint8 up to 256."""
    return np.min_scalar_type(moves.kernel[0] * moves.kernel[1] - 1)


def channels_last(array: Array, layout: str) -> Array:
    """A view as (N, H, W, C)."""
    return array if layout == "NHWC" else np.moveaxis(array, 1, -1)


def images(array: Array, layout: str) -> Array:
    """(N, H, W, C) in float64."""
    return channels_last(array, layout).astype(np.float64)


def stored(array: Array, layout: str, dtype: Any) -> Array:
    """From (N, H, W, C) to the user's layout and type."""
    return np.ascontiguousarray(array if layout == "NHWC" else np.moveaxis(array, -1, 1), dtype)


def image_shape(size: Sequence[int], layout: str) -> tuple[int, int, int, int]:
    """(N, H, W, C) of a shape given in either layout."""
    n, h, w, c = size if layout == "NHWC" else (size[0], size[2], size[3], size[1])
    return n, h, w, c
