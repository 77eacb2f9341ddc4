"""Winograd's transforms and phases by themselves; the convolutions are in test_conv.py."""

from __future__ import annotations

import dataclasses
import re

import numba
import numpy as np
import pytest

from fastconv.kernels import conv_winograd, correlation, jit, winograd_blocking
from fastconv.kernels.blocking import cache_bytes, room_to_fetch
from fastconv.kernels.plan import ConvProblem
from fastconv.kernels.simd import address, call_tile, vector_unit
from fastconv.kernels.winograd import (
    GRID,
    GRIDS,
    PURPOSES,
    Transform,
    compile_transform,
    points_of,
    taps_of,
    tile_of,
)
from fastconv.kernels.winograd_phases import LIVE, X_COLUMN, X_ROW, phases_of
from tests.conv_cases import DTYPES, case
from tests.kernels.test_simd import X86
from tests.tolerance import assert_close

TILES = [(grid, taps) for grid in GRIDS for taps in taps_of(grid)]
TRANSFORMS = [Transform(dtype, purpose, *tile) for dtype in DTYPES for purpose in PURPOSES for tile in TILES]


@numba.njit
def run(entry, source, out, arguments):
    row, column, step, out_row, out_column, out_step, count = arguments
    call_tile(entry, (address(source), row, column, step, address(out), out_row, out_column, out_step, count))


@numba.njit
def run_output(entry, source, out, arguments, addend):
    row, column, step, out_row, out_column, out_step, count = arguments
    call_tile(entry, (address(source), row, column, step, address(out), out_row, out_column, out_step, count,
                      address(addend) if addend.size > 0 else np.int64(0), addend.strides[0]))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.name)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_transform(transform, count, rng):
    """``count`` grids, each where it belongs and nothing else written; a patch is added to what was there."""
    lanes, size = vector_unit().lanes(transform.dtype), np.dtype(transform.dtype).itemsize
    made, read = transform.matrix.shape
    source = rng.standard_normal((4, read, read + 1, lanes)).astype(transform.dtype)
    before = rng.standard_normal((made, 4, made + 2, lanes)).astype(transform.dtype)
    out = before.copy()
    steps = (source.strides[1], source.strides[2], source.strides[0], out.strides[0], out.strides[2], out.strides[1])
    addend = rng.standard_normal((4 if count == 3 else 0, lanes)).astype(transform.dtype)
    of_output = transform.purpose in ("output", "rectified")
    (run_output if of_output else run)(compile_transform(transform).address, source, out, (*steps, count),
                                       *[addend] * of_output)
    expected = before.astype(np.float64)
    for i in range(count):
        grid = np.einsum("ij,jkl,mk->iml", transform.matrix, source[i, :, :read].astype(np.float64), transform.matrix)
        if of_output and addend.size:
            grid += addend[i]
        if transform.purpose == "patch":
            grid += before[:, i, :made]
        expected[:, i, :made] = np.maximum(grid, 0) if transform.purpose == "rectified" else grid
    np.testing.assert_array_equal(out[:, count:], before[:, count:])
    np.testing.assert_array_equal(out[:, :, made:], before[:, :, made:])
    assert_close(out, expected.astype(transform.dtype), read**2 + 1, source, np.abs(transform.matrix).max() ** 2 + 1)
    assert size * lanes * 8 == vector_unit().bits


@pytest.mark.skipif(not X86, reason="reads x86 assembly")
@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if t.taps == 3], ids=lambda transform: transform.name)
def test_transforms_are_vector_code(transform, monkeypatch):
    """Every element of the grid is read and written as a vector, and no arithmetic is scalar."""
    monkeypatch.setattr(jit, "cache_folder", lambda: None)
    code = compile_transform.__wrapped__(transform).assembly
    suffix = {"float32": "s", "float64": "d"}[transform.dtype]
    assert not re.search(rf"\sv?(add|sub|mul|fmadd\w+)s{suffix}\s", code)
    worked = sum(np.count_nonzero(row) > 1 or np.abs(row).max() != 1 for row in transform.matrix)  # not just copied
    found = len(re.findall(rf"\sv?(?:add|sub|mul|fm\w+|fnm\w+)p{suffix}\s", code))
    assert found >= worked * sum(transform.matrix.shape)  # of every row read, and of every column made


@pytest.mark.parametrize("grid, taps", TILES)
def test_points_of(grid, taps):
    """A filter without its last or first row of taps does not reach the points of that row."""
    whole = np.ones((taps, taps), bool)
    assert points_of(whole, grid).size == grid**2
    for missing, dead in ((0, 0), (taps - 1, grid - 1)):
        rows = whole.copy()
        rows[missing] = False
        assert set(range(grid**2)) - set(points_of(rows, grid)) == {dead * grid + j for j in range(grid)}


@pytest.mark.parametrize("grid, taps", TILES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices(grid, taps, dtype, rng):
    """Without rounding, a tile's outputs are the correlation's, and a filter's gradient its adjoint."""
    to_points, of_filter, to_outputs, to_gradients, to_sums = (
        Transform(dtype, purpose, grid, taps).matrix for purpose in ("input", "filter", "output", "gradient", "sums"))
    patch, w, dy = (rng.standard_normal(size) for size in (grid, taps, tile_of(taps, grid)))
    expected = np.correlate(patch, w, "valid")
    np.testing.assert_allclose(to_outputs @ ((of_filter @ w) * (to_points @ patch)), expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(to_sums @ ((to_gradients @ dy) * (to_points @ patch)), np.correlate(patch, dy, "valid"),
                               rtol=1e-12, atol=1e-13)


def phased(text: str, direction: str = "forward", grid: int = GRID):
    return phases_of(getattr(correlation, direction)(ConvProblem.parse(text), "NCHW", "float32"), grid)


@pytest.mark.parametrize("text, grid, products, window, side", [
    ("n1c8h12w12k8r3s3p1", 6, 36, 3, 4), ("n1c8h12w12k8r3s3p1", 4, 16, 3, 2),
    ("n1c8h12w12k8r3s3u2p1", 6, 121, 2, 5), ("n1c8h12w12k8r3s3u2p1", 4, 49, 2, 3),
    ("n1c8h12w12k8r4s4u2p1", 6, 144, 2, 5), ("n1c8h12w12k8r5s5u2p2", 6, 121, 3, 4), ("n1c8h12w12k8r2s2", 6, 36, 2, 5)])
def test_products(text, grid, products, window, side):
    found = phased(text, grid=grid)
    assert (found.products, found.window, found.side) == (products, window, side)


def test_products_of_an_even_filter_backwards():
    """Each phase of dx is short of a tap at one end or the other."""
    assert phased("n1c8h12w12k8r4s4u2p1", "input_gradient").products == 100


@pytest.mark.parametrize("text", [
    "n1c8h12w12k8r3s3u3p1", "n1c8h12w12k8r3s3u2p2d2", "n1c8h12w12k8r3s3u2x1p1", "n1c8h12w12k8r3s4u2p1",
    "n1c8h12w12k8r2s2u2", "n1c8h12w12k8r1s1", "n1c8h12w12k8r6s6", "n1c8h12w12k8r3s3p2d2x1", "n1c8h22w22k8r11s11u2"])
@pytest.mark.parametrize("direction", ["forward", "input_gradient"])
def test_no_phases(text, direction):
    assert phased(text, direction) is None


def test_a_filter_too_large_for_the_small_grid():
    assert phased("n1c2h15w12k2r7s7u2p3", grid=4) is None
    assert phased("n1c8h12w12k8r4s4", grid=4) is None


@pytest.mark.parametrize("text, grid", [
    *((text, grid) for grid in GRIDS
      for text in ("n1c2h12w12k2r3s3u2p1", "n1c2h13w12k2r3s3u2", "n1c2h12w12k2r4s4u2p1", "n1c2h9w8k2r3s3p1")),
    ("n1c2h15w12k2r7s7u2p3", 6)])  # four taps of a phase need the larger grid
def test_phases_add_up(text, grid):
    """What is listed says which filter of which pixels: their sums are the convolution's."""
    problem = ConvProblem.parse(text)
    given, found = case(problem), phased(text, grid=grid)
    reach = problem.r + found.gather
    x = np.pad(given.x, ((0, 0), (0, 0), (problem.padding[0][0], reach), (problem.padding[1][0], reach)))
    taps = given.w.reshape(*given.w.shape[:2], -1)
    total = np.zeros_like(given.y)
    for phase in found.listed:
        filters = np.where(np.array(phase[LIVE + 1:]) < 0, 0, taps[..., list(phase[LIVE + 1:])])
        for t, (i, j) in enumerate(np.ndindex(found.window, found.window)):
            rows, columns = (phase[place] + found.gather * offset for place, offset in ((X_ROW, i), (X_COLUMN, j)))
            pixels = x[..., rows:, columns:][..., ::found.gather, ::found.gather][..., :problem.p, :problem.q]
            total += np.einsum("nchw,kc->nkhw", pixels, filters[..., t])
    np.testing.assert_array_equal(total, given.y)
    assert found.first == (-problem.padding[0][0], -problem.padding[1][0])
    assert dataclasses.asdict(found)["spread"] == 1


@pytest.mark.parametrize("text, kept, grid, fetches", [
    ("n1c512h8w8k512r3s3p1", True, 4, True), ("n8c512h8w8k512r3s3p1", False, 6, None),
    ("n1c512h16w16k512r3s3p1", True, 6, True), ("n1c16h8w8k16r3s3p1", True, 6, False)])
def test_grid(text, kept, grid, fetches):
    """Filters kept from call to call come from memory, if large, and where tiles are few small ones need less of it."""
    described = (correlation.inference if kept else correlation.forward)(ConvProblem.parse(text), "NCHW", "float32")
    found = conv_winograd.plan(described).geometry[0]
    assert found["grid"] == grid
    if fetches is not None:
        assert found["fetches"] == (winograd_blocking.FETCH_FILTERS if fetches else 0)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("c, h", [(16, 16), (64, 56), (256, 56), (512, 28)])
def test_tiles_fetch_what_lies_beyond_l2(c, h, layout):
    """The next rows of V where V is larger, then filters, and only in a loop with room for one load more."""
    described = correlation.forward(ConvProblem.parse(f"n8c{c}h{h}w{h}k{c}r3s3p1"), layout, "float32")
    found = conv_winograd.plan(described).geometry[0]
    l2, vectors = cache_bytes()[1], found["width"] // found["lanes"]
    v_bytes = 4 * 36 * found["task_tiles"] * found["v_pitch"] * -(-found["reduction"] // found["reduction_block"])
    room = room_to_fetch(found["tile_rows"], vectors)
    if not room or (v_bytes <= l2 and 4 * 36 * c * c <= l2):
        assert found["fetches"] == 0
    elif v_bytes > l2:
        assert found["fetches"] == winograd_blocking.FETCH_ROWS
        assert found["fetched"] * found["reduction_block"] >= 4 * found["tile_rows"] * found["v_pitch"]
    assert (found["fetched"] > 0) == (found["fetches"] > 0)
