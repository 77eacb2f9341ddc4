"""A convolution and its max-pool in one pass: the bits of the two passes, and who takes it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from fastconv import functional, grad, pooling, problems
from fastconv.kernels import algorithms
from tests.tolerance import assert_close, integers

# size of x (N, H, W, C), of w, geometry, window: tails of rows and of windows, several strips and blocks of channels
CASES = {
    "digits": ((3, 28, 28, 1), (32, 1, 3, 3), {}, (2, 2)),
    "padded": ((2, 17, 15, 3), (16, 3, 3, 3), {"padding": 1}, (2, 2)),
    "uneven padding": ((2, 9, 11, 3), (16, 3, 3, 2), {"padding": ((2, 0), (0, 1))}, (2, 2)),
    "stride": ((2, 31, 29, 3), (48, 3, 5, 5), {"stride": 2, "padding": 2}, (3, 2)),
    "dilation": ((2, 19, 23, 2), (32, 2, 3, 3), {"dilation": (2, 1), "stride": (1, 2)}, (3, 2)),
    "short rows": ((4, 30, 5, 2), (16, 2, 2, 2), {}, (3, 2)),
    "strips": ((1, 230, 50, 4), (64, 4, 3, 3), {"padding": 1}, (2, 2)),
    "one window": ((5, 4, 4, 8), (32, 8, 3, 3), {}, (2, 2)),
    "tall window": ((2, 14, 14, 1), (16, 1, 3, 3), {}, (3, 2)),
}
EACH = pytest.mark.parametrize("x_size, w_size, geometry, window", CASES.values(), ids=CASES)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def one_pass(direction, x, w_size, geometry, window):
    """What runs both in one pass."""
    moves = {"stride": 1, "padding": 0, "dilation": 1, **geometry}
    found = pooling.pooled_convolution(direction, x.shape, w_size, *moves.values(), 1, window, "NHWC", x.dtype.char)
    return found.run


@pytest.mark.parametrize("odd", [0, 0.02])
@pytest.mark.parametrize("relu", [False, True])
@DTYPES
@EACH
def test_forward(x_size, w_size, geometry, window, dtype, relu, odd, rng):
    """Values and positions; with NaN, and infinities, whose difference is one."""
    x, w, b = integers(rng, x_size, dtype), integers(rng, w_size, dtype), integers(rng, w_size[:1], dtype)
    for value in (np.nan, np.inf, -np.inf):
        x[rng.random(x_size) < odd] = value
    assert one_pass("forward", x, w_size, geometry, window)
    for bias in (b, None):
        y = functional.conv2d(x, w, bias, **geometry, layout="NHWC", algorithm="direct")
        expected = functional.max_pool2d_with_positions(y, window, relu=relu, layout="NHWC")
        found = functional.conv2d_max_pool2d(x, w, bias, **geometry, kernel_size=window, relu=relu, layout="NHWC")
        for a, e in zip(found, expected, strict=True):
            assert_array_equal(a, e)
            assert a.dtype == e.dtype


@DTYPES
@EACH
def test_filter_gradient(x_size, w_size, geometry, window, dtype, rng):
    """Also where no pixel of a window gets anything."""
    x, w = integers(rng, x_size, dtype), integers(rng, w_size, dtype)
    assert one_pass("filter_gradient", x, w_size, geometry, window)
    y = functional.conv2d(x, w, **geometry, layout="NHWC")
    pooled, positions = functional.max_pool2d_with_positions(y, window, relu=True, layout="NHWC")
    dy = integers(rng, pooled.shape, dtype)
    pixels = grad.max_pool2d(y.shape, positions, dy, window, layout="NHWC")
    expected = grad.conv2d_weight(x, w_size, pixels, **geometry, layout="NHWC", algorithm="direct")
    found = grad.conv2d_max_pool2d_weight(x, w_size, positions, dy, **geometry, kernel_size=window, layout="NHWC")
    assert_array_equal(found, expected)


@pytest.mark.parametrize("layout, groups, k", [("NCHW", 1, 16), ("NHWC", 2, 32), ("NHWC", 1, 13)])
def test_in_two_passes(layout, groups, k, rng):
    """Where nothing does both: planes, groups, channels that fill no vectors."""
    x = integers(rng, (2, 4, 13, 12) if layout == "NCHW" else (2, 13, 12, 4))
    w = integers(rng, (k, 4 // groups, 3, 3))
    y = functional.conv2d(x, w, groups=groups, layout=layout)
    expected = functional.max_pool2d_with_positions(y, 2, layout=layout)
    found = functional.conv2d_max_pool2d(x, w, groups=groups, kernel_size=2, layout=layout)
    for a, e in zip(found, expected, strict=True):
        assert_array_equal(a, e)
    dy = integers(rng, expected[0].shape)
    dw = grad.conv2d_max_pool2d_weight(x, w.shape, found[1], dy, groups=groups, kernel_size=2, layout=layout)
    pixels = grad.max_pool2d(y.shape, expected[1], dy, 2, layout=layout)
    assert_close(dw, grad.conv2d_weight(x, w.shape, pixels, groups=groups, layout=layout), dy.size, x, dy)


@pytest.mark.parametrize("name", ["digits.conv1", "cifar.conv1", "vgg.1_1"])
@pytest.mark.parametrize("direction", ["forward", "filter_gradient"])
def test_first_layers_take_one_pass(direction, name):
    (problem,) = problems.find([name]).values()
    assert algorithms.pooled_runner(direction, problem, "NHWC", "float32", (2, 2))


def test_first_layers_of_any_thread_count(rng):
    x, w = rng.standard_normal((7, 28, 28, 1), np.float32), rng.standard_normal((32, 1, 3, 3), np.float32)
    results = []
    for threads in (1, 2, 2):
        with fastconv.threads(threads):
            y, positions = functional.conv2d_max_pool2d(x, w, kernel_size=2, layout="NHWC")
            results.append((y, positions, grad.conv2d_max_pool2d_weight(
                x, w.shape, positions, y, kernel_size=2, layout="NHWC")))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert_array_equal(a, b)


def test_no_images():
    x, w = np.zeros((0, 8, 8, 3), np.float32), np.ones((16, 3, 3, 3), np.float32)
    y, positions = functional.conv2d_max_pool2d(x, w, kernel_size=2, layout="NHWC")
    assert y.shape == positions.shape == (0, 3, 3, 16)
    dw = grad.conv2d_max_pool2d_weight(x, w.shape, positions, y, kernel_size=2, layout="NHWC")
    assert_array_equal(dw, np.zeros(w.shape))


@pytest.mark.parametrize("change, error, message", [
    ({"kernel_size": 9}, ValueError, "kernel"),
    ({"kernel_size": 0}, ValueError, "kernel_size must be a positive integer"),
    ({"layout": "CHWN"}, ValueError, "layout"),
    ({"weight": np.ones((16, 3, 3, 3))}, TypeError, "weight"),
    ({"bias": np.ones(3, np.float32)}, ValueError, "bias"),
])
def test_wrong_argument(change, error, message):
    given = {"input": np.zeros((1, 8, 8, 3), np.float32), "weight": np.ones((16, 3, 3, 3), np.float32),
             "kernel_size": 2, "layout": "NHWC"}
    with pytest.raises(error, match=message):
        functional.conv2d_max_pool2d(**given | change)


@pytest.mark.parametrize("change, error, message", [
    ({"positions": np.zeros((1, 3, 3, 16), np.int64)}, TypeError, "positions must be uint8"),
    ({"positions": np.zeros((1, 3, 2, 16), np.uint8)}, ValueError, "positions"),
    ({"grad_output": np.ones((1, 6, 6, 16), np.float32)}, ValueError, "grad_output"),
    ({"weight_size": (16, 3, 3)}, ValueError, "weight_size"),
])
def test_wrong_argument_of_the_gradient(change, error, message):
    given = {"input": np.zeros((1, 8, 8, 3), np.float32), "weight_size": (16, 3, 3, 3), "kernel_size": 2,
             "positions": np.zeros((1, 3, 3, 16), np.uint8), "grad_output": np.ones((1, 3, 3, 16), np.float32)}
    with pytest.raises(error, match=message):
        grad.conv2d_max_pool2d_weight(**given | change, layout="NHWC")
