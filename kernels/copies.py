"""Shifted copies of the input: one for each column of the filter, and each row within the stride, padded.

In the copy for filter column s, pixel (i, j) is what output column j reads through that column. Rows follow one
another without a gap, so the outputs of an image are one run of pixels and every tap reads a run too, some rows
further. A kernel of one column at stride 1 needs no copies: x itself is such a run.
"""

from dataclasses import dataclass

import numpy as np

from .blocking import LARGEST_OFFSET, ceil_div
from .jit import device_function
from .pack import copy_plane
from .simd import address

COPY_CYCLES = 0.4  # an element, to copy it with neighbours
STRIDED_COPY_CYCLES = 1.0  # and without
FIELDS = ("copied columns advance_row advance_column lowest_shift extra_rows residues residues_start offsets "
          "offsets_start copy_pitch channel_pitch")  # of a geometry record that :func:`copy_strip` takes


@dataclass(frozen=True)
class Copies:
    """Which copies of a channel the taps of a correlation's only phase read."""

    pixels: int  # outputs of an image
    columns: int  # and of a row
    x_size: tuple
    advance: tuple
    residues: list  # of rows, modulo the stride
    offsets: list  # of columns
    row_offsets: list  # for each row of the filter, in the image,
    shifts: list  # and in its copy
    needed: bool  # False where x itself will do

    @property
    def count(self):
        """Copies of a channel."""
        return len(self.residues) * len(self.offsets) if self.needed else 0

    @property
    def lowest_shift(self):
        return min(self.shifts)

    @property
    def extra_rows(self):
        """Rows of a copy beyond those of the outputs."""
        return max(self.shifts) - self.lowest_shift

    @property
    def cycles(self):
        """To copy one channel of an image."""
        return self.count * self.pixels * (COPY_CYCLES if self.advance[1] == 1 else STRIDED_COPY_CYCLES)

    def row_bytes(self, size):
        """Of one channel's copies for one row of outputs, at any place within it."""
        return self.count * (self.extra_rows + 2) * self.columns * size

    def copy_pitch(self, run):
        """Elements of a copy for a run of outputs that begins anywhere in a row."""
        return ((run - 2) // self.columns + 2 + self.extra_rows) * self.columns if self.needed else 0

    def channel_pitch(self, copy_pitch):
        """Elements from one channel to the next."""
        return self.count * copy_pitch if self.needed else self.x_size[0] * self.x_size[1]

    def tap_offsets(self, copy_pitch):
        """Where the taps (r, s) read, from the first output of a run on, in elements."""
        if not self.needed:
            return np.array([offset * self.columns for offset in self.row_offsets])
        row_pitch = len(self.offsets) * copy_pitch
        rows = [self.residues.index(offset % self.advance[0]) * row_pitch + (shift - self.lowest_shift) * self.columns
                for offset, shift in zip(self.row_offsets, self.shifts)]
        return (np.array(rows)[:, None] + np.arange(len(self.offsets)) * copy_pitch).reshape(-1)

    def values(self, copy_pitch, start):
        """The geometry's FIELDS, with the list of :meth:`listed` from ``start`` on in the plan's lists."""
        return dict(copied=self.needed, columns=self.columns, advance_row=self.advance[0],
                    advance_column=self.advance[1], lowest_shift=self.lowest_shift, extra_rows=self.extra_rows,
                    residues=len(self.residues), residues_start=start, offsets=len(self.offsets),
                    offsets_start=start + len(self.residues), copy_pitch=copy_pitch,
                    channel_pitch=self.channel_pitch(copy_pitch))

    def listed(self):
        """The residues, then (offset, first, last) for each column offset: the outputs that read a column of x."""
        found, advance = list(self.residues), self.advance[1]
        for offset in self.offsets:
            first = min(self.columns, max(0, ceil_div(-offset, advance)))
            last = min(self.columns, ceil_div(self.x_size[1] - offset, advance))
            found += [offset, first, max(first, last)]
        return found


def copies_of(correlation):
    """The copies for a correlation of one phase."""
    (phase,) = correlation.phases
    rows, offsets = ([offset for _, offset in axis] for axis in phase.taps)
    plain = phase.advance == (1, 1) and offsets == [0] and phase.extent[1] == correlation.x_size[1]
    inside = min(rows) >= 0 and max(rows) + phase.extent[0] <= correlation.x_size[0]
    small = correlation.c * correlation.x_size[0] * correlation.x_size[1] * 8 < LARGEST_OFFSET
    return Copies(phase.extent[0] * phase.extent[1], phase.extent[1], correlation.x_size, phase.advance,
                  sorted({row % phase.advance[0] for row in rows}), offsets, rows,
                  [row // phase.advance[0] for row in rows], not (plain and inside and small))


@device_function
def copy_strip(scratch, start, x, g, lists, image, group, first, last):
    """Address where the run of outputs from ``first`` to ``last`` of one image and group begins to read.

    Where copies are needed, they are made in the scratch from ``start`` on.
    """
    like, size = x.dtype.type(0), x.itemsize
    begin, end = address(x), address(x) + x.size * size
    planes = begin + (image * g.groups + group) * g.c * g.x_rows * g.x_columns * size
    if not g.copied:
        return planes + first * size
    first_out = first // g.columns
    rows = (last - 1) // g.columns + 1 - first_out + g.extra_rows
    for c in range(g.c):
        for i in range(g.residues):
            first_row = g.advance_row * (first_out + g.lowest_shift) + lists[g.residues_start + i]
            for j in range(g.offsets):
                out = address(scratch) + size * (start + c * g.channel_pitch + (i * g.offsets + j) * g.copy_pitch)
                at = g.offsets_start + 3 * j
                copy_plane(like, size, out, planes + c * g.x_rows * g.x_columns * size, g.x_columns * size, g.x_rows,
                           first_row, g.advance_row, rows, g.columns, lists[at], g.advance_column, lists[at + 1],
                           lists[at + 2], begin, end)
    return address(scratch) + (start + first - first_out * g.columns) * size
