"""A stride of two in Winograd: the four *phases* of an image, every second row and column from each first pixel on.

Between phases a convolution has stride 1. Forward it adds up over those of x, each with a filter of its own: every
second tap. The input gradient makes those of dx, each from all of dy. All filters get the size of the largest, with
zeros where a phase has a tap less: where its first or last row of taps is zero, so is a row of its points, and their
products are left out. Of a 3x3 filter 121 of 4 x 36 are left, for 25 outputs: half of the direct sum's.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from .winograd import GRID, points_of, taps_of, tile_of

FIELDS = "gather spread dilation grid points side window flip phases x_phases y_phases listed first_row first_column"
X_ROW, X_COLUMN, Y_ROW, Y_COLUMN, LIVE, FILTER = range(6)  # what is listed of a phase: its first pixels, points, taps


@dataclass(frozen=True)
class Phases:
    """How a correlation by a square filter becomes convolutions at stride 1."""

    gather: int  # distance of a phase's pixels in x, but for the dilation,
    spread: int  # and in y
    dilation: int  # of the taps
    grid: int  # points of a tile in each direction
    window: int  # taps of a phase in each direction
    flip: bool  # the filter, where there is one phase
    first: tuple  # row and column at which the first tile's patch begins
    listed: tuple  # for each phase (X_ROW ... LIVE, *taps); -1 is a tap of zeros

    @property
    def side(self):
        """Outputs of a tile in each direction."""
        return tile_of(self.window, self.grid)

    @property
    def points(self):
        """Points of a tile."""
        return self.grid**2

    @property
    def count(self):
        """Phases."""
        return len(self.listed)

    @property
    def products(self):
        """Of one tile, one input and one output channel."""
        return sum(phase[LIVE].bit_count() for phase in self.listed)

    def values(self):
        """FIELDS of a geometry record."""
        return dict(gather=self.gather, spread=self.spread, dilation=self.dilation, grid=self.grid, points=self.points,
                    side=self.side, window=self.window, flip=self.flip, phases=self.count, x_phases=self.gather**2,
                    y_phases=self.spread**2, listed=len(self.listed[0]), first_row=self.first[0],
                    first_column=self.first[1])

    def lists(self):
        """What is listed, phase after phase."""
        return np.array(self.listed, np.int64).reshape(-1)


@functools.lru_cache(maxsize=1024)
def phases_of(correlation, grid=GRID):
    """The phases; None with another stride, and with filters that are not square, not of one dilation or too large."""
    axes = [_axis(correlation, axis) for axis in range(2)]
    if None in axes or axes[0][:5] != axes[1][:5]:
        return None
    (gather, spread, dilation, window), (rows, columns) = axes[0][1:5], [axis[6] for axis in axes]
    if window not in taps_of(grid):
        return None
    pairs = list(itertools.product(range(gather * spread), repeat=2))
    # Those short of a tap in rows, in neither, in columns, in both: a point's phases are neighbours.
    short = {(i, j): (-1 in rows[i], -1 in columns[j]) for i, j in pairs}
    pairs.sort(key=lambda pair: 2 * short[pair][1] + (short[pair][0] == short[pair][1]))
    listed = []
    for i, j in pairs:
        taps = [-1 if min(r, s) < 0 else r * correlation.filter_columns + s for r in rows[i] for s in columns[j]]
        live = sum(1 << int(point) for point in points_of(np.reshape(taps, (window, window)) >= 0, grid))
        listed.append((*((i, j) if gather > 1 else (0, 0)), *((i, j) if spread > 1 else (0, 0)), live, *taps))
    flip = len(listed) == 1 and rows[0][0] > rows[0][-1]
    return Phases(gather, spread, dilation, grid, window, flip, (axes[0][5], axes[1][5]), tuple(listed))


def _axis(correlation, axis):
    """(taps, gather, spread, dilation, window, first pixel, the taps of each phase) along an axis, or None."""
    phases = sorted((phase for phase in correlation.phases if phase.start[1 - axis] == 0),
                    key=lambda phase: phase.start[axis])
    gather, spread = phases[0].advance[axis], phases[0].step[axis]
    found = [phase.taps[axis] for phase in phases]
    distances = {abs(b - a) for taps in found for (_, a), (_, b) in itertools.pairwise(taps)}
    if gather * spread > 2 or len(phases) < spread or len(distances) != 1 or not all(found):
        return None
    (dilation,) = distances
    if gather * spread > 1 and dilation > 1:
        return None
    first = min(offset for taps in found for _, offset in taps)
    places = [{(offset - first) // (gather * dilation): tap for tap, offset in taps if (offset - first) % gather == i}
              for taps in found for i in range(gather)]
    window = 1 + max(place for phase in places for place in phase)
    windows = [[phase.get(place, -1) for place in range(window)] for phase in places]
    return sum(map(len, found)), gather, spread, dilation, window, first, windows
