"""Rows of x as depthwise kernels read them: where they lie, without a padded copy.

A vector of a row begins wherever a filter column puts it. Lanes that lie on padding, beyond the row, are zeroed by
their places, which the machine code knows; a row above or below the plane is one of zeros. Only the first and last
plane of x are copied, as vectors there would reach beyond the array.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir

from .blocking import cache_bytes, ceil_div, divide
from .jit import device_function
from .rows import LARGEST_ADVANCE, copy_run
from .simd import INT, INT32, element_type, load_vector, vector_unit

LARGEST, LARGEST_BLOCK = 800, 400  # multiply-adds of a tile, all written out, and where it has more rows than it must
APART_CYCLES = 0.8  # of an element that is not read or written row by row, but in groups of columns
CALL_CYCLES = 60  # to enter and leave a tile
TASK_CYCLES = 20_000  # about, of a task: taking one costs some hundred


class Axis(NamedTuple):
    """Rows or columns of a correlation: the taps of each phase, as (index into the filter, offset into x)."""

    taps: tuple
    advance: int

    @classmethod
    def of(cls, correlation, axis):
        taps = {phase.start[axis]: phase.taps[axis] for phase in correlation.phases}
        return cls(tuple(taps[start] for start in sorted(taps)), correlation.phases[0].advance[axis])

    @property
    def phases(self):
        return len(self.taps)

    @property
    def offsets(self):
        """Of all phases; where no tap reaches an output, of x's own place."""
        return sorted({offset for taps in self.taps for _, offset in taps}) or [0]

    @property
    def reach(self):
        """From the first offset to the last."""
        return self.offsets[-1] - self.offsets[0]


def reason_against(layout, rows, columns, x_columns, dtype):
    """None, or why depthwise kernels do not take these axes."""
    if layout != "NCHW":
        return "needs layout NCHW"
    if max(columns.advance, columns.phases) > LARGEST_ADVANCE:
        return f"needs strides of at most {LARGEST_ADVANCE} columns"
    if sum(map(len, rows.taps)) * sum(map(len, columns.taps)) > LARGEST:
        return "the filter is too large to write all its products out"
    if x_columns * (rows.reach + 1) * np.dtype(dtype).itemsize > cache_bytes()[1]:
        return "the rows that one output row reads do not fit into L2"
    return None


class Columns(NamedTuple):
    """Output columns from ``first`` on in the lanes of some vectors, and what these may read of a row of x.

    ``valid`` has ((offset, vector), (first lane, last lane)) wherever not all lanes lie within the row.
    """

    first: int
    vectors: int
    valid: tuple


def column_groups(offsets, advance, extent, x_columns, most, lanes, exact=False):
    """Columns of at most ``most`` vectors that cover ``extent`` outputs, of which j reads column advance j + offset.

    ``exact`` leaves out lanes beyond the outputs too.
    """
    width, full, short = divide(ceil_div(extent, lanes), most)
    groups, first = [], 0
    for vectors in [width] * full + [width - 1] * short:
        valid = []
        for offset in offsets:
            for vector in range(vectors):
                start = first + vector * lanes
                lowest, end = ceil_div(-offset, advance) - start, ceil_div(x_columns - offset, advance) - start
                if exact:
                    end = min(end, extent - start)
                low = min(lanes, max(0, lowest))
                high = max(low, min(lanes, end))
                if (low, high) != (0, lanes):
                    valid.append(((offset, vector), (low, high)))
        groups.append(Columns(first, vectors, tuple(valid)))
        first += vectors * lanes
    return groups


def reach(offsets, advance, groups, x_columns, lanes):
    """Elements that vectors may read before and behind a row of x."""
    lowest, highest = min(offsets), max(offsets)
    last = max(group.first + group.vectors * lanes for group in groups)
    return max(0, -lowest), max(0, advance * last + highest + advance - x_columns)


class RowReader:
    """The vectors of one row of x from the address ``at`` on, each loaded once."""

    def __init__(self, builder, dtype, at, offsets, advance, valid):
        self.builder, self.dtype, self.at, self.advance = builder, dtype, at, advance
        self.lowest, self.valid, self.lanes = min(offsets, default=0), dict(valid), vector_unit().lanes(dtype)
        self.vector = ir.VectorType(element_type(dtype), self.lanes)
        self.loaded, self.found = {}, {}

    def __call__(self, offset, vector):
        """What output columns of a vector read at ``offset``, or None where that is all padding."""
        first, last = self.valid.get((offset, vector), (0, self.lanes))
        if first == last:
            return None
        if (offset, vector) not in self.found:
            value = self._columns(offset, vector)
            if (first, last) != (0, self.lanes):
                value = keep_lanes(self.builder, value, first, last)
            self.found[offset, vector] = value
        return self.found[offset, vector]

    def _columns(self, offset, vector):
        """A vector of columns ``advance`` apart: one of those that a wide load has."""
        residue = (offset - self.lowest) % self.advance
        start = offset - residue + vector * self.lanes * self.advance
        if start not in self.loaded:
            size = np.dtype(self.dtype).itemsize
            wide = ir.VectorType(self.vector.element, self.lanes * self.advance)
            self.loaded[start] = load_vector(self.builder, self.builder.add(self.at, INT(start * size)), wide, size)
        read = self.loaded[start]
        if self.advance == 1:
            return read
        order = ir.Constant(ir.VectorType(INT32, self.lanes),
                            list(range(residue, self.lanes * self.advance, self.advance)))
        return self.builder.shuffle_vector(read, read, order)


def keep_lanes(builder, value, first, last):
    """A vector with zeros in the lanes before ``first`` and from ``last`` on."""
    lanes = value.type.count
    order = [lane if first <= lane < last else lanes + lane for lane in range(lanes)]
    return builder.shuffle_vector(value, ir.Constant(value.type, None), ir.Constant(ir.VectorType(INT32, lanes), order))


def row_address(builder, plane, row, rows, pitch, zeros):
    """Where a row of a plane begins, ``zeros`` where the plane has no such row."""
    inside = builder.icmp_unsigned("<", row, rows)
    return builder.select(inside, builder.add(plane, builder.mul(row, pitch)), zeros)


@device_function
def plane_or_copy(like, plane, pitch, first, last, before, after, begin, end, copy, size):
    """Address of a plane whose rows ``first`` to ``last`` will be read, or of a copy of them.

    It is copied, to the address ``copy``, where vectors would reach out of the array from ``begin`` to ``end``:
    they read ``before`` and ``after`` bytes beyond the rows.
    """
    if first >= last or (plane + first * pitch - before >= begin and plane + last * pitch + after <= end):
        return plane
    copy_run(like, copy + before, plane + first * pitch, (last - first) * pitch // size)
    return copy + before - first * pitch
