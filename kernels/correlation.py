"""Forward convolution and input gradient as one sum,

    y[n, k, start + step * i] = b[k] + sum over c, taps t of  x[n, c, advance * i + offset[t]] * w[k, c, tap[t]]

in rows and columns alike. Forward has advance = stride, step = 1. The input gradient is the full convolution of dy
with the flipped filters: it has advance = 1 and one *phase* (start, step = stride) for each position of a pixel
within the stride.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from .blocking import ceil_div

LONG_ROW = 32  # pixels, of which tiles of any height waste few


class Phase(NamedTuple):
    """The outputs ``start + step * i`` and the taps that reach them; pairs are (rows, columns)."""

    start: tuple
    step: tuple
    extent: tuple  # number of outputs
    advance: tuple
    taps: tuple  # for each axis a tuple of (index into the filter, offset into the input)


@dataclass(frozen=True)
class Correlation:
    """The sum above, sizes for one group: ``c`` input and ``k`` output channels."""

    batch: int
    groups: int
    c: int
    k: int
    x_size: tuple
    y_size: tuple
    w_steps: tuple  # elements from one group, output channel, input channel to the next in w
    filter_columns: int
    phases: tuple
    layout: str
    dtype: str
    kept: bool = False  # whether the packed filters are kept from call to call


def forward(problem, layout, dtype):
    """The correlation that is the forward convolution."""
    c, k, taps = problem.c // problem.groups, problem.k // problem.groups, problem.r * problem.s
    axes = [tuple((t, t * problem.dilation[axis] - problem.padding[axis][0]) for t in range(size))
            for axis, size in enumerate((problem.r, problem.s))]
    phase = Phase((0, 0), (1, 1), (problem.p, problem.q), problem.stride, tuple(axes))
    return _joined(Correlation(problem.n, problem.groups, c, k, (problem.h, problem.w), (problem.p, problem.q),
                               (k * c * taps, c * taps, taps), problem.s, (phase,), layout, dtype))


def inference(problem, layout, dtype):
    """The forward convolution by filters that are packed once for many calls."""
    return replace(forward(problem, layout, dtype), kept=True)


def input_gradient(problem, layout, dtype):
    """The correlation of dy with the flipped filters that is the input gradient."""
    c, k, taps = problem.c // problem.groups, problem.k // problem.groups, problem.r * problem.s
    phases = tuple(_gradient_phase(problem, (i, j))
                   for i in range(min(problem.stride[0], problem.h))
                   for j in range(min(problem.stride[1], problem.w)))
    return _joined(Correlation(problem.n, problem.groups, k, c, (problem.p, problem.q), (problem.h, problem.w),
                               (k * c * taps, taps, c * taps), problem.s, phases, layout, dtype))


def _joined(correlation):
    """The same, with short rows of pixels joined to longer ones where every output reads the pixel at its place."""
    (rows, columns), phase = correlation.x_size, correlation.phases[0]
    at_their_place = Phase((0, 0), (1, 1), (rows, columns), (1, 1), (((0, 0),), ((0, 0),)))
    if phase != at_their_place or correlation.y_size != correlation.x_size:
        return correlation
    joined = next(n for n in range(1, rows + 1) if rows % n == 0 and (n * columns >= LONG_ROW or n == rows))
    size = rows // joined, joined * columns
    return replace(correlation, x_size=size, y_size=size, phases=(phase._replace(extent=size),))


def _gradient_phase(problem, start):
    extents, axes = [], []
    for axis, (size, kernel_size) in enumerate(((problem.h, problem.r), (problem.w, problem.s))):
        stride, first = problem.stride[axis], start[axis] + problem.padding[axis][0]
        reach = [(t, first - t * problem.dilation[axis]) for t in range(kernel_size)]
        axes.append(tuple((t, distance // stride) for t, distance in reach if distance % stride == 0))
        extents.append(ceil_div(size - start[axis], stride))
    return Phase(start, problem.stride, tuple(extents), (1, 1), tuple(axes))


def span(axis):
    """Least and greatest offset of an axis' taps."""
    offsets = [offset for _, offset in axis] or [0]
    return min(offsets), max(offsets)
