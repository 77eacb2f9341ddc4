"""Pools against the naive reference, exactly on integers, and against torch."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fastconv import functional, grad, pooling
from fastconv.kernels import pool_plan
from fastconv.reference import naive
from tests.tolerance import assert_close, integers

LAYOUTS = pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@st.composite
def cases(draw: Any, dilated: bool = True) -> tuple[tuple[int, ...], dict[str, Any]]:
    """An input size, longer than a vector or not, and what a pool takes."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    options = dict(kernel_size=kernel, stride=stride, padding=padding, ceil_mode=draw(st.booleans()),
                   layout=draw(st.sampled_from(["NCHW", "NHWC"])))
    reach = kernel
    if dilated:
        dilation = options["dilation"] = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        reach = tuple(d * (size - 1) + 1 for size, d in zip(kernel, dilation))
    rows, columns = (draw(st.integers(max(1, size - 2 * p), size + most))
                     for size, p, most in zip(reach, padding, (6, 45)))
    channels = draw(st.sampled_from([1, 3, 20]))
    size = (2, rows, columns, channels) if options["layout"] == "NHWC" else (2, channels, rows, columns)
    return size, options


@given(case=cases(), seed=st.integers(0, 999), odd=st.sampled_from([0, 0.05, 0.6]))
@settings(max_examples=80)
def test_max_pool_is_the_naive_one(case, seed, odd):
    """Values, positions, indices and gradient to the last bit: many ties, and NaN and -inf anywhere."""
    size, options = case
    rng = np.random.default_rng(seed)
    x = integers(rng, size)
    x[rng.random(size) < odd] = np.nan
    x[rng.random(size) < odd] = -np.inf
    y, positions = functional.max_pool2d_with_positions(x, **options)
    expected, places = naive.max_pool2d_with_positions(x, **options)
    assert_array_equal(y, expected)
    assert_array_equal(positions, places)
    assert_array_equal(functional.max_pool2d(x, **options), expected)
    _, indices = functional.max_pool2d(x, return_indices=True, **options)
    assert_array_equal(indices, naive.max_pool2d(x, return_indices=True, **options)[1])
    dy = integers(rng, y.shape)
    expected = naive.max_pool2d_grad(x.shape, positions, dy, **options)
    assert_array_equal(grad.max_pool2d(x.shape, positions, dy, **options), expected)


@given(case=cases(dilated=False), seed=st.integers(0, 999), odd=st.sampled_from([0, 0.05, 0.6]))
@settings(max_examples=40)
def test_relu_in_the_same_pass(case, seed, odd):
    """Bits of the pool and then ReLU, both ways; what is not positive stood nowhere."""
    size, options = case
    rng = np.random.default_rng(seed)
    x = integers(rng, size)
    x[rng.random(size) < odd] = np.nan
    pooled, plain = functional.max_pool2d_with_positions(x, **options)
    expected, lost = functional.relu(pooled), pooled <= 0
    y, positions = functional.max_pool2d_with_positions(x, relu=True, **options)
    assert_array_equal(y.view(np.int32), expected.view(np.int32))
    assert_array_equal(positions, np.where(lost, np.prod(options["kernel_size"]), plain))
    same, indices = functional.max_pool2d(x, return_indices=True, relu=True, **options)
    assert_array_equal(same, expected)
    assert_array_equal(indices, np.where(lost, -1, functional.max_pool2d(x, return_indices=True, **options)[1]))
    dy = integers(rng, y.shape)
    dx = grad.max_pool2d(x.shape, positions, dy, **options)
    assert_array_equal(dx, grad.max_pool2d(x.shape, plain, grad.relu(expected, dy), **options))


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("stride", [2, 5])
def test_max_pool_over_many_vectors(stride, dtype, layout, rng):
    """Whole vectors, a stride beyond vector loads, and infinities of both signs, which look like NaN at first."""
    x = integers(rng, (2, 20, 20, 37), dtype)
    x[rng.random(x.shape) < 0.01] = np.inf
    x[rng.random(x.shape) < 0.01] = -np.inf
    y, positions = functional.max_pool2d_with_positions(x, 2, stride, layout=layout)
    expected, places = naive.max_pool2d_with_positions(x, 2, stride, layout=layout)
    assert_array_equal(y, expected)
    assert_array_equal(positions, places)
    dy = integers(rng, y.shape, dtype)
    dx = grad.max_pool2d(x.shape, positions, dy, 2, stride, layout=layout)
    assert_array_equal(dx, naive.max_pool2d_grad(x.shape, positions, dy, 2, stride, layout=layout))


@DTYPES
@pytest.mark.parametrize("kernel", [(2, 2), (1, 3), (3, 4), (2, 5)])
@pytest.mark.parametrize("columns", [*range(5, 20), 31, 33, 47, 64, 65, 70])
def test_windows_that_touch(kernel, columns, dtype, rng):
    """Gradients on both sides of each vector's end, in pixels behind the last window, and in chunks of rows."""
    x = integers(rng, (3, 5, 67, columns), dtype)
    y, positions = functional.max_pool2d_with_positions(x, kernel, relu=True)
    dy = integers(rng, y.shape, dtype)
    for ceil_mode in (False, True):
        if ceil_mode:
            y, positions = functional.max_pool2d_with_positions(x, kernel, ceil_mode=True)
            dy = integers(rng, y.shape, dtype)
        expected = naive.max_pool2d_grad(x.shape, positions, dy, kernel, ceil_mode=ceil_mode)
        assert_array_equal(grad.max_pool2d(x.shape, positions, dy, kernel, ceil_mode=ceil_mode), expected)


def fenced(array: np.ndarray, after: bool) -> np.ndarray:
    """A copy that ends (or starts) where memory may not be touched: reading on would end the process."""
    page = mmap.PAGESIZE
    pages = -(-array.nbytes // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fence = start + (pages * page if after else 0)
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), page, 0) == 0
    first = pages * page - array.nbytes if after else page
    copy = np.frombuffer(memory, array.dtype, array.size, first).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="needs mprotect")
@LAYOUTS
@pytest.mark.parametrize("options", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1)], ids=str)
def test_vectors_stay_in_bounds(options, layout, rng):
    """Tiles read and write whole vectors: never outside of the arrays, whatever lies there."""
    shape = (2, 3, 7, 11) if layout == "NCHW" else (2, 7, 11, 20)
    x = integers(rng, shape)
    y, positions = naive.max_pool2d_with_positions(x, *options, layout=layout)
    dy = integers(rng, y.shape)
    dx = naive.max_pool2d_grad(x.shape, positions, dy, *options, layout=layout)
    plan = pooling.max_pool(x.shape, options[0], options[1], options[2], 1, False, layout).plan
    for after in (True, False):
        source, target, where = (fenced(array, after) for array in (x, np.zeros_like(y), np.zeros_like(positions)))
        plan.forward_kernel(target.reshape(-1), where.reshape(-1), source.reshape(-1), *plan.forward)
        assert_array_equal(target, y)
        assert_array_equal(where, positions)
        source, target = fenced(dy, after), fenced(np.zeros_like(dx), after)
        plan.backward_kernel(target.reshape(-1), where.reshape(-1), source.reshape(-1), *plan.backward)
        assert_array_equal(target, dx)


@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="needs mprotect")
@LAYOUTS
@pytest.mark.parametrize("columns", [3, 11, 16, 21])
@pytest.mark.parametrize("options", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 5, 1), (3, 9, 0)], ids=str)
def test_averages_stay_in_bounds(options, columns, layout, rng):
    shape = (2, 3, 7, columns) if layout == "NCHW" else (2, 7, 5, columns)
    x = integers(rng, shape)
    y = naive.avg_pool2d(x, *options, layout=layout)
    dy = integers(rng, y.shape)
    plan = pooling.average_pool(x.shape, *options, False, True, None, layout, "f").plan
    for after in (True, False):
        source, target = fenced(x, after), fenced(np.full_like(y, 99), after)
        plan.forward_kernel(target.reshape(-1), source.reshape(-1), *plan.forward)
        assert_array_equal(target, y)
        source, target = fenced(dy, after), fenced(np.full_like(x, 99), after)
        plan.backward_kernel(target.reshape(-1), source.reshape(-1), *plan.backward)
        assert_close(target, naive.avg_pool2d_grad(x.shape, dy, *options, layout=layout), 9, dy)


@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="needs mprotect")
@LAYOUTS
def test_a_chunk_writes_its_own_rows_only(layout, rng, monkeypatch):
    """The last vectors of a chunk must not spill: the rows that follow may already be done."""
    monkeypatch.setattr(pool_plan, "CHUNK", 1)
    x = integers(rng, (1, 4, 8, 12))
    plan = pooling.max_pool.__wrapped__(x.shape, 2, None, 0, 1, False, layout).plan
    y, positions = naive.max_pool2d_with_positions(x, 2, layout=layout)
    for (rows, columns, sweep), kernel, source, expected in (
        (plan.forward, plan.forward_kernel, x, y),
        (plan.backward, plan.backward_kernel, y, naive.max_pool2d_grad(x.shape, positions, y, 2, layout=layout)),
    ):
        assert sweep.chunk == 1
        target, where, flat = np.full(expected.size, 99, x.dtype), positions.reshape(-1), source.reshape(-1)
        kernel(target, where, flat, rows, columns, sweep._replace(images=sweep.images - 1))
        own = expected.size * (sweep.images - 1) // sweep.images
        assert_array_equal(target[:own], expected.reshape(-1)[:own])
        assert (target[own:] == 99).all()


@LAYOUTS
def test_several_nan_and_equals(layout):
    x = np.array([[np.nan, 5], [np.nan, 7]], np.float32).reshape((1, 1, 2, 2) if layout == "NCHW" else (1, 2, 2, 1))
    y, positions = functional.max_pool2d_with_positions(x, 2, layout=layout)
    assert np.isnan(y).all()
    assert positions.item() == 2
    assert functional.max_pool2d_with_positions(np.ones_like(x), 2, layout=layout)[1].item() == 0


def test_windows_of_256_cells_and_more():
    y, positions = functional.max_pool2d_with_positions(np.zeros((1, 1, 16, 16), np.float32), 16, relu=True)
    assert (positions.dtype, positions.item(), y.item()) == (np.uint16, 256, 0)
    x = np.zeros((1, 1, 17, 17), np.float32)
    x[0, 0, 16, 15] = 1
    y, positions = functional.max_pool2d_with_positions(x, 17)
    assert (positions.dtype, positions.item()) == (np.uint16, 16 * 17 + 15)
    assert_array_equal(grad.max_pool2d(x.shape, positions, y, 17), x)


@LAYOUTS
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_empty_batch(name, layout):
    x = np.zeros((0, 4, 6, 8), np.float32)
    y = getattr(functional, name)(x, 2, layout=layout)
    assert y.shape == ((0, 4, 3, 4) if layout == "NCHW" else (0, 2, 3, 8))
    assert functional.adaptive_avg_pool2d(x, 2, layout=layout).shape[0] == 0
    assert grad.avg_pool2d(x.shape, y, 2, layout=layout).shape == x.shape
    assert grad.max_pool2d(x.shape, y.astype(np.uint8), y, 2, layout=layout).shape == x.shape


def test_out_and_uneven_padding(rng):
    x = integers(rng, (1, 2, 5, 6))
    out = np.empty((1, 2, 3, 3), np.float32)
    padding = ((1, 0), (0, 1))
    assert functional.max_pool2d(x, (2, 3), 2, padding, out=out) is out
    assert_array_equal(out, naive.max_pool2d(x, (2, 3), 2, padding))
    assert functional.avg_pool2d(x, (2, 3), 2, padding, out=out) is out
    assert_array_equal(out, naive.avg_pool2d(x, (2, 3), 2, padding))
    with pytest.raises(ValueError, match="out must not overlap an input"):
        functional.max_pool2d(x, 1, out=x)


@LAYOUTS
@pytest.mark.parametrize("output_size", [None, (9, 10)])
def test_max_unpool(output_size, layout, rng):
    x = integers(rng, (2, 8, 10, 3) if layout == "NHWC" else (2, 3, 8, 10))
    y, indices = functional.max_pool2d(x, 2, return_indices=True, layout=layout)
    back = functional.max_unpool2d(y, indices, 2, output_size=output_size, layout=layout)
    assert_array_equal(back, naive.max_unpool2d(y, indices, 2, output_size=output_size, layout=layout))
    dx = integers(rng, back.shape)
    expected = naive.max_unpool2d_grad(indices, dx, layout=layout)
    assert_array_equal(grad.max_unpool2d(indices, dx, layout=layout), expected)


@given(case=cases(dilated=False), seed=st.integers(0, 999), include=st.booleans(),
       override=st.none() | st.integers(1, 5))
@settings(max_examples=40)
def test_average_pool_is_the_naive_one(case, seed, include, override):
    size, options = case
    options = {**options, "count_include_pad": include, "divisor_override": override}
    rng = np.random.default_rng(seed)
    x, cells = integers(rng, size), int(np.prod(options["kernel_size"]))
    y = functional.avg_pool2d(x, **options)
    assert_array_equal(y, naive.avg_pool2d(x, **options))
    dy = integers(rng, y.shape)
    assert_close(grad.avg_pool2d(size, dy, **options), naive.avg_pool2d_grad(size, dy, **options), cells, dy)


@pytest.mark.parametrize("kernel_size, stride, padding, dtype", [
    *((*window, np.float32) for window in ((2, 2, 0), (2, 2, 1), (3, 2, 1), (3, 1, 1), (1, 3, 0), (5, 3, 2), (4, 5, 2),
                                           (7, 7, 0), (8, 8, 4), (9, 2, 4), (10, 2, 0), (12, 9, 6))),
    (2, 2, 0, np.float64), (3, 2, 1, np.float64)])
@pytest.mark.parametrize("columns", [1, 7, 15, 16, 17, 40, 65])
def test_average_pool_of_planes(kernel_size, stride, padding, columns, dtype, rng):
    """Rows shorter and longer than a vector, with and without padding, several rows at a time and one."""
    args = (kernel_size, kernel_size), (stride, stride), padding
    rows = 2 * kernel_size + 1
    x = integers(rng, (3, 5, rows, max(columns, kernel_size - 2 * padding)), dtype)
    y = functional.avg_pool2d(x, *args)
    assert_array_equal(y, naive.avg_pool2d(x, *args))
    dy = integers(rng, y.shape, dtype)
    dx = grad.avg_pool2d(x.shape, dy, *args)
    assert_close(dx, naive.avg_pool2d_grad(x.shape, dy, *args), kernel_size ** 2, dy)
    counted = naive.avg_pool2d_grad(x.shape, dy, *args, count_include_pad=False)
    assert_close(grad.avg_pool2d(x.shape, dy, *args, count_include_pad=False), counted, kernel_size ** 2, dy)


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("output_size", [1, 3, (4, None), (9, 2), None], ids=str)
def test_adaptive_average_pool(output_size, dtype, layout, rng):
    x = integers(rng, (2, 7, 8, 9), dtype)
    y = functional.adaptive_avg_pool2d(x, output_size, layout=layout)
    assert_array_equal(y, naive.adaptive_avg_pool2d(x, output_size, layout=layout))
    dy = integers(rng, y.shape, dtype)
    dx = grad.adaptive_avg_pool2d(x.shape, dy, layout=layout)
    assert_close(dx, naive.adaptive_avg_pool2d_grad(x.shape, dy, layout=layout), 72, dy)


@pytest.mark.parametrize("kernel_size, stride, padding, dilation, ceil_mode",
                         [(2, 2, 0, 1, False), (3, 2, 1, 1, True), (3, 1, 1, 2, False)])
def test_torch_agrees(kernel_size, stride, padding, dilation, ceil_mode, rng):
    torch = pytest.importorskip("torch")
    x = integers(rng, (2, 5, 23, 40))
    args = kernel_size, stride, padding, dilation, ceil_mode
    tx = torch.tensor(x, requires_grad=True)
    ty, expected = torch.nn.functional.max_pool2d(tx, *args, return_indices=True)
    y, indices = functional.max_pool2d(x, *args, return_indices=True)
    assert_array_equal(y, ty.detach())
    assert_array_equal(indices, expected)
    dy = integers(rng, y.shape)
    ty.backward(torch.tensor(dy))
    _, positions = functional.max_pool2d_with_positions(x, *args)
    assert_array_equal(grad.max_pool2d(x.shape, positions, dy, *args), tx.grad)


X = np.zeros((1, 2, 6, 6), np.float32)
Y = np.zeros((1, 2, 3, 3), np.float32)
BYTES, INDICES = Y.astype(np.uint8), Y.astype(np.int64)


@pytest.mark.parametrize("error, message, call", [
    (ValueError, r"input must have 4 dimensions, got 3", lambda: functional.max_pool2d(X[0], 2)),
    (TypeError, r"input must be float32 or float64, got int64", lambda: functional.max_pool2d(INDICES, 2)),
    (ValueError, r"kernel_size must be a positive integer or a pair of them, got 0",
     lambda: functional.max_pool2d(X, 0)),
    (ValueError, r"stride must be a positive integer or a pair of them, got \(0, 1\)",
     lambda: functional.max_pool2d(X, 2, (0, 1))),
    (ValueError, r"dilation must be a positive integer", lambda: functional.max_pool2d(X, 2, dilation=0)),
    (ValueError, r"padding must be at most half of kernel_size \(2, 2\), got 2",
     lambda: functional.avg_pool2d(X, 2, padding=2)),
    (ValueError, r"padding of a pool must be an integer, a pair or two pairs, got 'same'",
     lambda: functional.max_pool2d(X, 2, padding="same")),
    (ValueError, r"kernel_size with dilation spans 7 pixels, more than the padded input of 6",
     lambda: functional.max_pool2d(X, 3, dilation=3)),
    (ValueError, r'layout must be "NCHW" or "NHWC", got \'CHWN\'', lambda: functional.max_pool2d(X, 2, layout="CHWN")),
    (ValueError, r"no empty dimension but the batch, got shape \(1, 0, 6, 6\)",
     lambda: functional.max_pool2d(X[:, :0], 2)),
    (ValueError, r"divisor_override must be a positive integer, got 0",
     lambda: functional.avg_pool2d(X, 2, divisor_override=0)),
    (ValueError, r"output_size must be a positive integer or a pair of them, got \(0, 1\)",
     lambda: functional.adaptive_avg_pool2d(X, (0, 1))),
    (ValueError, r"output_size must be a positive integer or a pair of them, got \(1, 2, 3\)",
     lambda: functional.adaptive_avg_pool2d(X, (1, 2, 3))),
    (ValueError, r"output_size must be positive and less than a stride from \(6, 6\), got \(8, 6\)",
     lambda: functional.max_unpool2d(Y, INDICES, 2, output_size=(8, 6))),
    (TypeError, r"indices must be integers, got float32", lambda: functional.max_unpool2d(Y, Y, 2)),
    (ValueError, r"indices must have shape \(1, 2, 3, 3\)", lambda: functional.max_unpool2d(Y, INDICES[:, :1], 2)),
    (ValueError, r"indices must be from 0 to 35, got 36 at \(0, 0, 0, 0\)",
     lambda: functional.max_unpool2d(Y, INDICES + 36, 2)),
    (ValueError, r"indices must have the images and channels of grad_output",
     lambda: grad.max_unpool2d(INDICES[:, :1], X)),
    (ValueError, r"input_size must be a shape of 4 integers, got \(1, 2\)",
     lambda: grad.max_pool2d((1, 2), BYTES, Y, 2)),
    (ValueError, r"grad_output must have shape \(1, 2, 3, 3\) for input_size \(1, 2, 6, 6\), got \(1, 2, 6, 6\)",
     lambda: grad.max_pool2d(X.shape, BYTES, X, 2)),
    (TypeError, r"positions must be uint8, as max_pool2d_with_positions returns them, got int64",
     lambda: grad.max_pool2d(X.shape, INDICES, Y, 2)),
    (ValueError, r"positions must have shape \(1, 2, 3, 3\) as grad_output, got \(1, 1, 3, 3\)",
     lambda: grad.max_pool2d(X.shape, BYTES[:, :1], Y, 2)),
    (ValueError, r"grad_output must have shape \(1, 2, 3, 3\) for input_size",
     lambda: grad.avg_pool2d(X.shape, X, 2)),
])
def test_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()
