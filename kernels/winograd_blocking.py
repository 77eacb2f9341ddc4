"""Blocking of Winograd's correlations, by estimates of their cycles: which tiles, which strips, what is fetched ahead.

The filter gradient and the adjoint take some of it.
"""

import math
from typing import NamedTuple

import numpy as np

from .blocking import (
    ENOUGH_TASKS,
    LAST_CACHE_BYTES,
    PAGE_BYTES,
    cache_bytes,
    ceil_div,
    cores,
    divide,
    even_chunks,
    idle_share,
    most_rows,
    reduction_block,
    room_to_fetch,
    round_up,
    tile_cost,
)
from .simd import vector_unit
from .winograd import GRIDS
from .winograd_phases import phases_of
from .winograd_pixels import PATCH_CHANNELS

SHARED_V = 1 / 4, 1 / 2, 3 / 4  # of L2, for the transformed input of a worker where filters are shared
OWN_V = 8  # and where each strip transforms them itself
FILTER_CYCLES = 9.7  # for a point of one vector of filters, to load and transform it
STREAM_CYCLES, OPEN_STREAM_CYCLES = 1 / 32, 1 / 8  # a byte, to stream shared filters while products hide it, or not
HIDING_TILES = 48  # of a strip, whose products take longer than filters from L3
MEMORY_CYCLES = 2 / 5  # where kept ones come from memory
DISTANT_FILTERS = 2 / 3  # of the last cache: larger ones come from memory, in part
AGAIN_CYCLES = 1 / 16  # and rows of V, which are shorter runs
PACKED_SHARE = 1 / 16  # of L2, for a packed strip
PRODUCT_CYCLES = 1.17  # a multiply-add of vectors
TRANSFORM_CYCLES = {"NCHW": 18, "NHWC": 12}  # for a point of a tile and a vector of channels, in or out, with packing
FAR_GROUP = 2  # times as long, for a group among others in NHWC: a pixel's channels lie far from the next one's
STRIPS_A_CORE = 2  # to share among workers whole, and 8 at least
LEAST_TILES = 64  # of a strip with filters of its own, or transforming these takes longer than the products
SCATTER_CYCLES = 4  # for an output whose neighbours belong to other lattices
FEW_PASSES, FEW_PASSES_L3 = 4, 8  # of a strip's tiles over filters from memory, or L3: more of them hide the way
FETCH_FILTERS, FETCH_ROWS, FETCH_SUMS = 1, 2, 3  # what tiles fetch: the next point's filters, the next tile's V or sums
LAUNCH_CYCLES = 10_000  # of a core, for a parallel loop
SAME_SET_BYTES = 1024  # what lies at multiples of this distance shares few sets of L1


def all_phases(correlation):
    """Of each grid of points that takes the filter."""
    found = (phases_of(correlation, grid) for grid in GRIDS)
    return [phases for phases in found if phases]


def fits(correlation, phases):
    """Whether a row holds a tile in all phases."""
    return phases.spread == 1 or correlation.y_size[1] >= phases.spread * phases.side


def lattices(extent, phases):
    """(lattices of an image, bands of each, tiles of a band), all as large as the largest."""
    rows, columns = (ceil_div(e, phases.dilation) for e in extent)
    return phases.dilation**2, ceil_div(rows, phases.side), ceil_div(columns, phases.side)


def fitting_grids(correlation):
    """(Estimated cycles, points of a tile in each direction), of each grid that fits."""
    return [(_cycles(correlation, phases), phases.grid) for phases in all_phases(correlation)
            if fits(correlation, phases)]


def _cycles(correlation, phases):
    lanes = vector_unit().lanes(correlation.dtype)
    vectors = ceil_div(correlation.c, lanes) * phases.gather**2, ceil_div(correlation.k, lanes) * phases.spread**2
    transforms = _tiles(correlation, phases) * phases.points * sum(vectors) * _point_cycles(correlation)
    total = _product_cycles(correlation, phases) + transforms + best_strips(correlation, phases).beside
    if phases.dilation > 1:
        total += correlation.batch * correlation.k * math.prod(correlation.phases[0].extent) * SCATTER_CYCLES
    return correlation.groups * total


def _point_cycles(correlation):
    return TRANSFORM_CYCLES[correlation.layout] * far(correlation.layout, correlation.groups)


def far(layout, groups):
    """How many times as long transforms take."""
    return FAR_GROUP if layout == "NHWC" and groups > 1 else 1


def _tiles(correlation, phases):
    """Of all images."""
    return correlation.batch * math.prod(lattices(correlation.phases[0].extent, phases))


def _product_cycles(correlation, phases):
    """Of all products of a group."""
    vectors = ceil_div(correlation.k, vector_unit().lanes(correlation.dtype))
    return phases.products * correlation.c * vectors * _tiles(correlation, phases) * PRODUCT_CYCLES


def _transform_cycles(correlation, phases):
    """To transform the filters of a group."""
    vectors = phases.count * ceil_div(correlation.k, vector_unit().lanes(correlation.dtype))
    return correlation.c * vectors * phases.points * FILTER_CYCLES


def _filter_bytes(correlation, phases):
    """Of the transformed filters of a group."""
    return phases.products * correlation.c * correlation.k * np.dtype(correlation.dtype).itemsize


def _streamed(correlation, phases):
    """Whether filters come from memory: what is kept makes room for other layers' in between."""
    return correlation.kept and _filter_bytes(correlation, phases) > cache_bytes()[1]


def fetched_by_tiles(correlation, phases, shared, tiles, vectors, v_pitch, v_blocks, steps):
    """(What the tiles of a strip fetch, bytes a step): what comes from memory, or from L3 where there is room."""
    size, passes = np.dtype(correlation.dtype).itemsize, ceil_div(tiles, most_rows(vectors))
    rows, far = ceil_div(tiles, passes), _filter_bytes(correlation, phases) > cache_bytes()[1]
    of_filters = FETCH_FILTERS, ceil_div(vectors * vector_unit().lanes(correlation.dtype) * size, passes)
    if _streamed(correlation, phases):
        return of_filters if passes <= FEW_PASSES else (0, 0)
    if not room_to_fetch(rows, vectors):
        return 0, 0
    if phases.points * tiles * v_pitch * v_blocks * size > cache_bytes()[1]:
        return FETCH_ROWS, ceil_div(rows * v_pitch * size, steps)
    return of_filters if shared and far and passes <= FEW_PASSES_L3 else (0, 0)


def _shared_cycles(correlation, phases, strips):
    """To transform filters once, unless they are kept, and to stream them into each strip."""
    filters = _filter_bytes(correlation, phases)
    if _streamed(correlation, phases):  # while products run
        return max(0, strips * filters * MEMORY_CYCLES - _product_cycles(correlation, phases))
    hidden = filters < DISTANT_FILTERS * LAST_CACHE_BYTES and _tiles(correlation, phases) >= strips * HIDING_TILES
    stream = strips * filters * (STREAM_CYCLES if hidden else OPEN_STREAM_CYCLES)
    stream *= filters > cache_bytes()[1]
    return 0 if correlation.kept else stream + _transform_cycles(correlation, phases)


def enough_strips():
    """Tasks for all cores of the machine; where they end does not change a sum."""
    return max(8, STRIPS_A_CORE * cores())


def pitch_of(channels, lanes, size, x_phases=1):
    """Distance of tiles in V, in whole vectors; those of a phase may end with a vector that reaches beyond."""
    return apart(round_up((x_phases - 1) * channels + round_up(channels, lanes), lanes), lanes, size)


def apart(elements, lanes, size):
    """A distance of about ``elements`` for rows read, or points written, together: not all in the same sets of L1."""
    return elements + lanes if elements * size % SAME_SET_BYTES == 0 else elements


def prefetched(layout, phases, rows, x_size, planes, size):
    """Whether packing fetches ahead: the hardware does it along a plane, but not where there is little of each."""
    piece, whole = rows * x_size[1] * size, planes * x_size[0] * x_size[1] * size
    return layout == "NCHW" and phases.dilation == 1 and piece < PAGE_BYTES and whole > cache_bytes()[1]


def packed_strip(bands, columns, lanes, size, phases):
    """(bands packed together, as neighbours share rows; elements of a row of planes; of the strip)."""
    row, beyond = phases.gather * columns * lanes, phases.window - 1
    most = max(1, (int(PACKED_SHARE * cache_bytes()[1]) // (row * size) - beyond) // phases.side)
    packed = min(bands, most)
    return packed, (round_up(columns, lanes) + 1) * lanes, (phases.side * packed + beyond) * row + lanes * lanes


class Reduction(NamedTuple):
    """How V holds the reduction, the input channels in all phases of x: a block of it, how many blocks, their rows."""

    block: int
    blocks: int  # apart from each other in V, so that what a tile reads is one run; 1 where they are not
    pitch: int  # elements from tile to tile


def reduction_of(correlation, phases, together=1):
    """The blocks of the reduction, whole phases or equal parts of one where the channels allow."""
    size, lanes = np.dtype(correlation.dtype).itemsize, vector_unit().lanes(correlation.dtype)
    c, x_phases = correlation.c, phases.gather**2
    row = (2 if correlation.k > lanes else 1) * lanes * size
    if c % PATCH_CHANNELS:
        return Reduction(reduction_block(1, x_phases * c, row), 1, pitch_of(together * c, lanes, size, x_phases))
    block = PATCH_CHANNELS * reduction_block(PATCH_CHANNELS, c // PATCH_CHANNELS, row)
    if block == c:
        block *= reduction_block(c, x_phases, row)
    return Reduction(block, ceil_div(x_phases * c, block), pitch_of(block, lanes, size))


class Strips(NamedTuple):
    """How tiles are cut into strips."""

    cycles: float  # until the last core is done, by which they are chosen
    beside: float  # of all of them, beside products: filters, and streaming what does not stay in L2
    shared: bool  # whether all tasks share the transformed filters
    bands: int  # of a strip


def best_strips(correlation, phases, together=1):
    """The strips that take the fewest cycles, where V holds so many groups."""
    count, image_bands, band_tiles = lattices(correlation.phases[0].extent, phases)
    bands, reduction = correlation.batch * count * image_bands, reduction_of(correlation, phases, together)
    lanes, size = vector_unit().lanes(correlation.dtype), np.dtype(correlation.dtype).itemsize
    width = (2 if correlation.k > lanes else 1) * lanes
    band_bytes = band_tiles * phases.points * size * (
        reduction.blocks * reduction.pitch + (phases.spread**2 - 1) * width)
    l2 = cache_bytes()[1]
    blocks = ceil_div(correlation.k, 2 * lanes)
    wanted = min(bands, ceil_div(max(ENOUGH_TASKS // 4, enough_strips()), correlation.groups * blocks))

    def choice(shared, most, least):
        size = even_chunks(bands, max(ceil_div(bands, max(1, most)), least))[1]
        strips = ceil_div(bands, size)
        filters = _shared_cycles(correlation, phases, strips) if shared else strips * _transform_cycles(
            correlation, phases)
        again = bands * band_bytes * blocks * max(0, 1 - l2 / (size * band_bytes))  # V, for each block from L3
        own = _strips_cycles(correlation, phases, bands, size, band_tiles)
        beside = filters + again * AGAIN_CYCLES
        return Strips(beside + own + shared * launch, beside, shared, size)

    launch = LAUNCH_CYCLES * cores() * (not correlation.kept)  # to transform filters that are shared
    choices = [choice(True, int(share * l2) // band_bytes, wanted) for share in SHARED_V]
    choices.append(choice(False, OWN_V * l2 // band_bytes, min(wanted, bands * band_tiles // LEAST_TILES)))
    if correlation.kept:
        choices += [choice(True, ceil_div(bands, strips), 1) for strips in range(1, min(bands, cores()) + 1)]
    return min(choices)


def _strips_cycles(correlation, phases, bands, size, band_tiles):
    """Of what depends on the tiles of a strip: its products, its input transformed on several cores, and their idling.

    All of a group's strips.
    """
    lanes = vector_unit().lanes(correlation.dtype)
    vectors = 2 if correlation.k > lanes else 1
    blocks, strips = ceil_div(correlation.k, vectors * lanes), ceil_div(bands, size)

    def products(tiles):
        rows, full, short = divide(tiles, most_rows(vectors))
        return phases.products * blocks * (full * tile_cost(rows, vectors, correlation.c)
                                           + short * tile_cost(rows - 1, vectors, correlation.c))

    whole, rest = divmod(bands, size)
    total = whole * products(size * band_tiles) + (products(rest * band_tiles) if rest else 0)
    chunks = min(blocks, ceil_div(enough_strips(), correlation.groups * strips))
    again = min(chunks, ceil_div(cores(), correlation.groups * strips)) - 1
    patches = bands * band_tiles * ceil_div(correlation.c, lanes) * phases.gather**2 * phases.points
    patches *= _point_cycles(correlation)
    tasks = correlation.groups * strips * chunks
    return (total + again * patches) * (1 + idle_share(tasks)) + (LAUNCH_CYCLES * cores() if tasks > 1 else 0)
