"""The plan of a pool: tables of which pixels meet which windows, computed once for a problem."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .blocking import fill
from .pool import (
    PIXELS,
    max_pool,
    max_pool_gradient,
    max_pool_gradient_pixels,
    max_pool_gradient_planes,
    max_pool_pixels,
    max_pool_planes,
)
from .pool_average import (
    average_pixels,
    average_pixels_gradient,
    average_planes,
    average_planes_gradient,
    average_planes_regular,
    average_planes_regular_gradient,
)
from .pool_tile import LARGEST_STRIDE, VECTOR_BYTES, Sweep
from .simd import vector_unit

CHUNK = 1 << 14  # elements to a unit of parallel work
STRIP = 1 << 9  # sums of columns that are kept to make windows of: rows of small images are done together
MOST_UNROLLED = 9  # cells of a window, or columns of an average, that a tile takes without loops
LARGEST_STEP = 8  # columns from one window of an average to the next
SHORTEST_VECTOR_BYTES = 16  # of a max-pool's tile
NOWHERE = -(1 << 40)  # an index that stays negative whatever is added
NANOSECONDS = 0.3  # a cell or pixel takes one core about that long


@dataclass(frozen=True)
class Axis:
    """Rows or columns: ``count`` windows of ``kernel`` cells over ``size`` pixels."""

    size: int
    kernel: int
    stride: int
    before: int  # padding
    after: int
    dilation: int
    count: int

    @property
    def starts(self):
        """First pixel of each window, negative in the padding."""
        return np.arange(self.count) * self.stride - self.before

    def cells(self):
        """For each window (first cell, number of cells, first pixel) inside the image."""
        first = -(np.minimum(self.starts, 0) // self.dilation)
        behind = np.clip(-((self.starts - self.size) // self.dilation), 0, self.kernel)
        return _table(first, np.maximum(behind - first, 0), self.starts + first * self.dilation)

    def windows(self):
        """For each pixel (first cell, number of windows, window): it is that cell of the first of its windows.

        Further windows have larger cells, and so are further up or left.
        """
        distance = self._distances()
        met = (distance % self.stride == 0) & (distance >= 0) & (distance < self.count * self.stride)
        first = met.argmax(axis=0)
        return _table(first, met.sum(axis=0), distance[first, np.arange(self.size)] // self.stride)

    def windows_inside(self):
        """How many windows each pixel would lie in if windows went on over both edges."""
        return (self._distances() % self.stride == 0).sum(axis=0)

    def window_step(self):
        """(windows, cells) from one window over a pixel to the next."""
        common = math.gcd(self.stride, self.dilation)
        return -(self.dilation // common), self.stride // common

    def _distances(self):
        """From the padding's first pixel to where a window starts that has pixel j as cell i, in [i, j]."""
        return np.arange(self.size) + self.before - self.dilation * np.arange(self.kernel)[:, None]


def _table(first, met, place):
    """Entries of zeros where nothing is met, and a few behind the end."""
    entries = np.stack([first, met, place], axis=1) * (met > 0)[:, None]
    return np.concatenate([entries, np.zeros((LARGEST_STRIDE, 3), np.int64)]).astype(np.int64)


def _longest_run(flags):
    """(first, last) of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags, [0]])))
    firsts, lasts = edges[::2], edges[1::2]
    longest = np.argmax(lasts - firsts) if len(firsts) else None
    return (0, 0) if longest is None else (int(firsts[longest]), int(lasts[longest]))


def chunk_of(rows, elements):
    """Rows to a unit of parallel work, where all of them hold that many elements."""
    return max(1, CHUNK * rows // max(elements, 1))


class MaxPoolPlan:
    """Kernels of one max-pool, and what they take besides arrays: ``(row_table, column_table, sweep)``."""

    def __init__(self, n, c, rows, columns, layout):
        if c == 1:
            layout = "NCHW"  # the same memory, and planes are the quicker
        images, depth, stride = (n * c, 1, columns.stride) if layout == "NCHW" else (n, c, 1)
        cells = rows.kernel * columns.kernel
        self.positions = np.min_scalar_type(cells)
        elements = max(rows.size * columns.size, rows.count * columns.count) * depth
        self.microseconds = NANOSECONDS * cells * images * rows.count * columns.count * depth / 1000

        table, width = columns.cells(), columns.kernel
        run = _longest_run(table[:columns.count, 1] == width)
        self.forward = rows.cells().ravel(), table.ravel(), Sweep(
            images, depth, rows.count, columns.count, rows.size, columns.size,
            rows.dilation * columns.size * depth, width, columns.dilation * depth, 1, width, *run,
            chunk_of(rows.count, elements), 0, cells)
        self.forward_relu = *self.forward[:2], self.forward[2]._replace(floor=1)
        size = rows.kernel, columns.kernel
        window = size if cells <= MOST_UNROLLED else None
        unit, filled = vector_unit(), 4 << (columns.count - 1).bit_length()  # bytes of a short row of a plane
        short = layout == "NCHW" and columns.count <= unit.lanes("float32")  # of which a wide vector is mostly empty
        vector_bytes = unit.bits // 8 if short else VECTOR_BYTES
        narrow = max(SHORTEST_VECTOR_BYTES, filled) if short else VECTOR_BYTES
        inside = all(axis.before == 0 and axis.starts[-1] + axis.dilation * (axis.kernel - 1) < axis.size
                     for axis in (rows, columns))
        undilated = rows.dilation == columns.dilation == 1
        if inside and undilated and window and layout == "NHWC" and depth >= unit.lanes("float32"):
            largest = max_pool_pixels(window, unit.bits // 8)
            sizes = np.zeros(1, PIXELS)
            fill(sizes[0], dict(
                images=images, depth=depth, rows=rows.count, columns=columns.count, source_rows=rows.size,
                source_columns=columns.size, row_stride=rows.stride, column_stride=columns.stride,
                chunk=chunk_of(rows.count, elements)))
            rectified = sizes.copy()
            rectified["floor"] = 1
            self.forward, self.forward_relu = (sizes,), (rectified,)
        elif inside and window and layout == "NCHW" and stride <= LARGEST_STRIDE:
            largest = max_pool_planes(stride, window, narrow)
        else:
            largest = max_pool(layout, stride, window, narrow)
        self.forward_kernel = largest.twin(self.microseconds)

        (row_back, row_cells), (column_back, column_cells) = rows.window_step(), columns.window_step()
        table = columns.windows()
        run = _longest_run(table[:columns.size, 1] == columns.windows_inside())
        disjoint = all(axis.kernel == axis.stride and axis.dilation == 1 for axis in (rows, columns))
        self.backward = rows.windows().ravel(), table.ravel(), Sweep(
            images, depth, rows.size, columns.size, rows.count, columns.count,
            row_back * columns.count * depth, row_cells * width, column_back * depth, column_cells, width, *run,
            chunk_of(rows.size, elements))
        inside = all(axis.before == 0 and axis.count * axis.stride <= axis.size for axis in (rows, columns))
        whole = disjoint and inside and max(size) <= LARGEST_STRIDE
        if whole and layout == "NCHW":
            gradient = max_pool_gradient_planes(size, vector_bytes)
        elif whole and depth >= unit.lanes("float32"):
            gradient = max_pool_gradient_pixels(size, unit.bits // 8)
        else:
            dense = window if rows.stride == columns.stride == 1 and not disjoint else None
            gradient = max_pool_gradient(layout, stride, disjoint, dense)
        self.backward_kernel = gradient.twin(self.microseconds)


def index_parts(rows, columns):
    """(row_bases, column_bases, cells): what a window's row, column and cell add to an index h W + w.

    The last of the cells is no cell.
    """
    bases = []
    for axis, step in ((rows, columns.size), (columns, 1)):
        outside = axis.cells()[:axis.count, 1] == 0
        bases.append(np.where(outside, NOWHERE, axis.starts * step))
    row_cells, column_cells = (np.arange(axis.kernel) * axis.dilation for axis in (rows, columns))
    return *bases, np.append(row_cells[:, None] * columns.size + column_cells, NOWHERE)


class Steps(NamedTuple):
    """Windows of an axis that follow each other evenly, before they are cut to the image."""

    stride: int
    width: int
    before: int  # padding


class AveragePlan:
    """Kernels of one average pool, and what they take besides arrays.

    ``rows`` and ``columns`` are ``(first, last)``: for each window the pixels [first, last) inside the image;
    ``divisors`` are one number a window for rows and for columns, whose product divides. ``steps`` are those of the
    columns, or None.
    """

    def __init__(self, n, c, image, rows, columns, divisors, steps, layout, dtype):
        if [bound.tolist() for bound in columns] == [[0], [image[1]]]:  # whole rows: as columns of one long row
            rows, columns = [np.array([edge]) for edge in (0, 1)], [edge * image[1] for edge in rows]
            image, divisors, steps = (1, image[0] * image[1]), divisors[::-1], None
        h, w = image
        p, q = len(rows[0]), len(columns[0])
        bounds = [np.stack(axis, axis=1).astype(np.int64).ravel() for axis in (rows, columns)]
        covers = [_covering(*axis, size) for axis, size in zip((rows, columns), image)]
        divisors = [np.asarray(divisor, dtype) for divisor in divisors]
        pixels = layout == "NHWC" and c > 1
        elements = max(h * w, p * q) * (c if pixels else 1)
        chunks = chunk_of(p, elements), chunk_of(h, elements)
        if pixels:
            kernels = average_pixels, average_pixels_gradient
            self.forward = *bounds, *divisors, n, h, w, c, chunks[0]
            self.backward = *covers, *divisors, n, c, chunks[1]
        elif steps and steps.stride <= LARGEST_STEP and steps.width <= MOST_UNROLLED:
            height, most = (int(np.max(pairs[1::2] - pairs[::2])) for pairs in (bounds[0], covers[0]))
            kernels = (average_planes_regular(steps.stride, steps.width, height),
                       average_planes_regular_gradient(steps.stride, steps.width, most))
            self.forward = bounds[0], *_strips(*divisors, steps), n * c, h, w, chunks[0]
            self.backward = covers[0], *divisors, steps.before, n * c, w, chunks[1]
        else:
            kernels = average_planes, average_planes_gradient
            self.forward = *bounds, *divisors, n * c, h, w, chunks[0]
            self.backward = covers[0], _runs(covers[1]), *divisors, n * c, w, chunks[1]
        microseconds = NANOSECONDS * n * c * max(h * w, p * q) / 1000
        self.forward_kernel, self.backward_kernel = (kernel.twin(microseconds) for kernel in kernels)


def _strips(row_counts, column_counts, steps):
    """What says how rows of windows are done together: from the counts to ``chained`` of average_planes_regular."""
    q = len(column_counts)
    pitch = (q - 1) * steps.stride + max(steps.width, steps.stride)
    rows = max(1, STRIP // pitch)
    chained = steps.width <= steps.stride and bool((row_counts == row_counts[0]).all())
    behind = np.ones(vector_unit().lanes("float32"), column_counts.dtype)  # whole vectors are read
    return row_counts, np.append(np.tile(column_counts, rows), behind), q, steps.before, pitch, rows, chained


def _covering(first, last, size):
    """For each pixel the windows [from, to) over it, flat; both bounds of windows rise."""
    pixels = np.arange(size)
    pairs = np.searchsorted(last, pixels, "right"), np.searchsorted(first, pixels, "right")
    return np.stack(pairs, axis=1).astype(np.int64).ravel()


def _runs(cover):
    """Runs of pixels in the same windows, as flat (first pixel, first window, last window), and behind them the end."""
    pairs = cover.reshape(-1, 2)
    firsts = np.flatnonzero(np.any(np.diff(pairs, axis=0, prepend=-1), axis=1))
    return np.append(np.column_stack([firsts, pairs[firsts]]), len(pairs)).astype(np.int64)
