"""Every algorithm of every direction, held against the oracles: exact on integers where the algorithm is."""

from __future__ import annotations

import dataclasses
import mmap
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv import threads
from fastconv.kernels import algorithms, conv_bias, conv_direct, conv_filter, conv_winograd, correlation, jit
from fastconv.kernels.algorithms import ALGORITHMS, Algorithm, CorrelationRunner
from fastconv.kernels.blocking import most_rows
from fastconv.kernels.plan import ConvProblem
from fastconv.kernels.scratch import scratch
from fastconv.kernels.simd import vector_unit
from fastconv.kernels.winograd import GRIDS
from tests.conv_cases import DTYPES, LAYOUTS, Case, case, nchw, operands, solved, stored
from tests.tolerance import assert_close, integers, problems


def in_both_grids(direction: str, algorithm: Algorithm) -> list[Algorithm]:
    """Winograd's correlation as one algorithm for each size of its tiles."""
    if algorithm.name != "winograd" or direction == "filter_gradient":
        return [algorithm]

    def of_grid(grid: int) -> Algorithm:
        describe = getattr(correlation, direction)

        def supports(*given) -> str | None:
            reason = algorithm.supports(*given)
            if reason is None and grid not in [found for _, found in conv_winograd.fitting_grids(describe(*given))]:
                reason = f"needs tiles of other than {grid} x {grid} points"
            return reason

        def make_runner(problem: ConvProblem, layout: str, dtype: str) -> CorrelationRunner:
            plan = conv_winograd.plan(describe(problem, layout, dtype), grid)
            return CorrelationRunner(plan, conv_winograd.correlate, dtype, problem.multiply_adds)

        return algorithm._replace(name=f"winograd_{grid}", supports=supports, make_runner=make_runner)

    return [of_grid(grid) for grid in GRIDS]


TABLE = [pytest.param(direction, algorithm, id=f"{direction}.{algorithm.name}")
         for direction, listed in ALGORITHMS.items() for each in listed for algorithm in in_both_grids(direction, each)]


def runner(algorithm: Algorithm, problem: ConvProblem, layout: str, dtype: str):
    """A runner, also where another algorithm is quicker; skips where it cannot run at all."""
    if problem.n == 0:
        pytest.skip("nothing to do")
    reason = algorithm.supports(problem, layout, dtype)
    if reason is not None:
        pytest.skip(reason)
    return algorithm.make_runner(problem, layout, dtype)


def run(runner, direction: str, given: Case, bias: bool = False) -> np.ndarray:
    """The result, with scratch and output full of NaN before."""
    scratch(runner.extra_bytes // runner.dtype.itemsize, runner.dtype).fill(np.nan)
    if direction == "filter_gradient":
        out = np.full_like(given.w, np.nan)
        runner(out, given.x, given.dy)
    elif direction == "forward":
        out = np.full_like(given.y, np.nan)
        runner(out, given.x, given.w, given.b if bias else None)
    else:
        out = np.full_like(given.x, np.nan)
        runner(out, given.dy, given.w)
    return out


def check(algorithm: Algorithm, direction: str, problem: ConvProblem, layout: str, dtype: str) -> None:
    """One direction of one problem against the oracle."""
    found = runner(algorithm, problem, layout, dtype)
    given = case(problem).stored(layout, dtype)
    expected, factors, terms = {
        "forward": (given.y, (given.x, given.w), given.w[0].size),
        "input_gradient": (given.dx, (given.dy, given.w), given.w[:, 0].size),
        "filter_gradient": (given.dw, (given.x, given.dy), given.dy.size // problem.k),
    }[direction]
    actual = run(found, direction, given)
    if algorithm.exact:
        assert_array_equal(actual, expected)
    else:
        sizes = found.plan.geometry[0]
        phases, window = int(sizes["x_phases"]), int(sizes["window"])
        if direction == "forward":  # by filters that are larger, with zeros, of more channels
            terms = max(terms, given.w.shape[1] * phases * window**2)
        points = phases * int(sizes["points"])  # each result is a sum over all of them
        assert_close(actual, expected, max(terms, points), *factors)
    if direction == "forward":
        channels = given.b[:, None, None] if layout == "NCHW" else given.b
        assert_array_equal(run(found, direction, given, bias=True), actual + channels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", problems())
@pytest.mark.parametrize("direction, algorithm", TABLE)
def test_problems(direction, algorithm, problem, layout, dtype):
    check(algorithm, direction, problem, layout, dtype)


def edges() -> list:
    """One less and one more than each size that fills a tile: channels in the lanes, pixels and images in the rows."""
    lanes = vector_unit().lanes("float32")
    base = ConvProblem(1, 5, 5, 9, lanes, 3, 3)
    found = {base}
    for vectors in 1, 2, 3, 4:
        for off in -1, 0, 1:
            found |= {
                dataclasses.replace(base, k=vectors * lanes + off),
                dataclasses.replace(base, c=vectors * lanes + off, k=4),
                dataclasses.replace(base, w=most_rows(vectors) + off + 2, k=vectors * lanes),  # columns of a tile
                dataclasses.replace(base, k=most_rows(vectors) + off, w=2 * lanes + 2),  # channels in its rows
            }
    plan = conv_direct.plan(correlation.forward(base, "NCHW", "float32"))
    groups = int(plan.geometry["tile_groups"][0])  # image rows of a tile
    found |= {dataclasses.replace(base, h=count * groups + off + 2) for count in (1, 2) for off in (-1, 0, 1)
              if count * groups + off > 0}
    return [pytest.param(problem, id=str(problem)) for problem in sorted(found, key=str)]


POINTWISE = ("n2c600h7w9k13r1s1", "n1c1100h5w7k40r1s1", "n2c20h9w11k14r1s1u2", "n1c530h19w23k9r1s1u3x2",
             "n2c1040h6w5k18r1s1g2", "n40c5h8w8k7r1s1")  # blocks, strips, rests of pixels, strides, groups, images


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", POINTWISE)
@pytest.mark.parametrize("direction, algorithm", [row for row in TABLE if "direct_pointwise" in str(row)])
def test_pointwise(direction, algorithm, text, dtype):
    """More input channels than a panel holds, so that sums go on in the output."""
    check(algorithm, direction, ConvProblem.parse(text), "NCHW", dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", edges())
@pytest.mark.parametrize("direction, algorithm", TABLE)
def test_edges_of_tiles(direction, algorithm, problem, layout):
    check(algorithm, direction, problem, layout, "float32")


MANY_TASKS = [pytest.param(ConvProblem.parse(text), id=text) for text in (
    "n3c19h13w15k35r3s3p1", "n2c8h17w14k16r5s3u2p2", "n2c24h12w12k24r3s3p1g24", "n5c40h9w9k70r1s1",
    "n1c3h40w41k5r3s3p1", "n3c19h23w25k35r3s3u2p1")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", MANY_TASKS)
@pytest.mark.parametrize("direction, algorithm", TABLE)
def test_same_bits_from_both_twins(direction, algorithm, problem, layout, rng, monkeypatch):
    """One thread runs the serial twin, two the parallel one; twice, as tasks go to another worker each time."""
    monkeypatch.setattr(jit, "WORTH_SPLITTING", 0)
    found = runner(algorithm, problem, layout, "float32")
    like = case(problem).stored(layout, "float32")
    given = Case(*(rng.standard_normal(array.shape).astype(np.float32) for array in like))
    with threads(1):
        expected = run(found, direction, given)
    for _ in range(2):
        with threads(2):
            assert_array_equal(run(found, direction, given), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (3, 17, 31, 1), (2, 5, 11, 3), (0, 4, 5, 6),
                                   (7, 33, 4, 4), (2, 9, 8, 8), (1, 3, 16, 24), (2, 4, 40, 40), (3, 5, 13, 29)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bias_gradient(layout, shape, dtype, rng, monkeypatch):
    monkeypatch.setattr(jit, "WORTH_SPLITTING", 0)
    dy = stored(integers(rng, shape, dtype), layout)
    noise = rng.standard_normal(dy.shape).astype(dtype)
    results = []
    for count in 1, 2:
        with threads(count):
            db = conv_bias.bias_gradient(dy, layout == "NHWC")
            results.append(conv_bias.bias_gradient(noise, layout == "NHWC"))
        assert db.dtype == dtype
        assert_array_equal(db, dy.sum(axis=(0, 2, 3) if layout == "NCHW" else (0, 1, 2)))
    assert_array_equal(*results)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (3, 17, 31, 1), (0, 4, 5, 6), (40, 5, 13, 13),
                                   (9, 70, 4, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bias_gradient_before_a_pool(layout, shape, dtype, rng, monkeypatch):
    monkeypatch.setattr(jit, "WORTH_SPLITTING", 0)
    dy = stored(integers(rng, shape, dtype), layout)
    where = rng.integers(3, 5, dy.shape).astype(np.uint8)
    noise = rng.standard_normal(dy.shape).astype(dtype)
    noise[where == 4] = np.nan  # of windows that give it to no pixel
    results = []
    for count in 1, 2:
        with threads(count):
            db = conv_bias.pooled_bias_gradient(dy, where, 4, layout == "NHWC")
            results.append(conv_bias.pooled_bias_gradient(noise, where, 4, layout == "NHWC"))
        assert_array_equal(db, np.where(where == 4, 0, dy).sum(axis=(0, 2, 3) if layout == "NCHW" else (0, 1, 2)))
    assert_array_equal(*results)
    assert np.isfinite(results[0]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("text", [
    "n2c3h7w8k17r3s3p1", "n1c4h9w8k4r3s3u2p2d2g2", "n1c5h6w6k5r3s3p1g5", "n2c3h5w3k3r3s3u2p1g3"])
@pytest.mark.parametrize("direction, algorithm", TABLE)
def test_what_is_not_finite_goes_where_it_is_read(direction, algorithm, text, value, layout):
    """A NaN or an infinity in one pixel reaches the outputs and taps that read it, and no other."""
    problem = ConvProblem.parse(text)
    found = runner(algorithm, problem, layout, "float32")
    if not algorithm.exact:
        pytest.skip("mixes the pixels of a patch")
    for n, c, row, column in (0, 0, 0, 0), (problem.n - 1, problem.c - 1, problem.h // 2, problem.w - 1):
        x, w, b, dy = operands(problem)
        w[w == 0] = 1
        if direction == "input_gradient":
            dy[n, c % problem.k, row % problem.p, column % problem.q] = value
        else:
            x[n, c, row, column] = value
        with np.errstate(invalid="ignore"):
            given = solved(problem, x, w, b, dy).stored(layout, "float32")
        expected = {"forward": given.y, "input_gradient": given.dx, "filter_gradient": given.dw}[direction]
        assert_array_equal(run(found, direction, given), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_planes_of_more_than_two_gigabytes(layout):
    """Offsets in the tables are 32 bits wide: a block of channels must not be wider. The pages are never written."""
    problem = ConvProblem(1, 256, 2400, 2400, 16, 1, 1, stride=(1200, 1200))
    size = problem.input_shape(layout)
    x = np.frombuffer(mmap.mmap(-1, 4 * problem.c * problem.h * problem.w), np.float32).reshape(size)
    small = dataclasses.replace(problem, h=2, w=2, stride=(1, 1))
    given = case(small).stored(layout, "float32")
    nchw(x, layout)[:, :, ::1200, ::1200] = nchw(given.x, layout)
    found = algorithms.runner("forward", problem, layout, "float32", "direct_channels")
    assert_array_equal(run(found, "forward", given._replace(x=x)), given.y)


@pytest.mark.parametrize("plan", [
    lambda problem: conv_direct.plan(correlation.forward(problem, "NCHW", "float32")),
    lambda problem: conv_filter.plan(problem, "NCHW", "float32"),
], ids=["direct", "filter"])
def test_taps_further_apart_than_an_offset_reaches(plan):
    far = 1 << 29
    problem = ConvProblem(1, 1, 1, 3 * far, 1, 1, 2, stride=(1, far), dilation=(1, far))
    with pytest.raises(ValueError, match="the image is too large: the pixels that one output or filter tap reads lie "
                                         "more than 2147483647 bytes apart"):
        plan(problem)


def test_no_page_beyond_an_array_is_touched():
    """Inputs, outputs and scratch between forbidden pages, in a process that a crash may take along."""
    done = subprocess.run([sys.executable, "-m", "tests.kernels.guarded", "float32"], capture_output=True, text=True)
    assert done.stdout.endswith("no crash, all right\n"), (done.stdout[-200:], done.stderr)
