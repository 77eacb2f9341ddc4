"""Gradients of convolution and transposed convolution, as a user calls them."""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from fastconv.functional import conv2d, conv_transpose2d
from fastconv.grad import (
    conv2d_bias,
    conv2d_input,
    conv2d_weight,
    conv_transpose2d_input,
    conv_transpose2d_weight,
)
from fastconv.kernels import algorithms
from fastconv.reference import naive
from tests.conv_cases import LAYOUTS, arguments, case, transposed_arguments
from tests.test_check import KINDS, read_only
from tests.tolerance import assert_close, integers, problems


@pytest.fixture
def no_winograd():
    """What has no ``algorithm=`` argument is exact too."""
    before = algorithms.winograd_allowed()
    fastconv.set_winograd(False)
    yield
    fastconv.set_winograd(before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", problems())
def test_problems(problem, layout):
    """Whatever "auto" chooses is close, "direct" is exact; into a given array too."""
    found = case(problem).stored(layout, "float32")
    options = dict(arguments(problem), layout=layout)
    dx = conv2d_input(found.x.shape, found.w, found.dy, **options)
    dw = conv2d_weight(found.x, found.w.shape, found.dy, **options)
    assert_close(dx, found.dx, found.w[:, 0].size, found.dy, found.w)
    assert_close(dw, found.dw, found.dy.size // problem.k, found.x, found.dy)
    assert_array_equal(conv2d_bias(found.dy, layout=layout), found.db)
    options["algorithm"] = "direct"
    for out in dx, dw:
        out.fill(np.nan)
    assert conv2d_input(found.x.shape, found.w, found.dy, out=dx, **options) is dx
    assert conv2d_weight(found.x, found.w.shape, found.dy, out=dw, **options) is dw
    assert_array_equal(dx, found.dx)
    assert_array_equal(dw, found.dw)


@pytest.mark.usefixtures("no_winograd")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", problems())
def test_transposed(problem, layout):
    """The transposed convolution's input gradient is the convolution, its filter gradient that of the convolution."""
    found = case(problem).stored(layout, "float32")
    options = dict(transposed_arguments(problem), layout=layout)
    assert_array_equal(conv_transpose2d_input(found.dy.shape, found.w, found.x, **options), found.y)
    assert_array_equal(conv_transpose2d_weight(found.dy, found.w.shape, found.x, **options), found.dw)


@pytest.mark.usefixtures("no_winograd")
def test_transposed_with_output_padding_beyond_the_stride(rng):
    """Rows and columns that no window starts in, but that the dilated taps reach."""
    x, w = integers(rng, (2, 4, 5, 6)), integers(rng, (4, 3, 2, 3))
    options = dict(stride=(1, 2), dilation=(4, 3), output_padding=(3, 2), padding=1)
    dy = integers(rng, conv_transpose2d(x, w, **options).shape)
    assert_array_equal(conv_transpose2d_input(x.shape, w, dy, **options),
                       naive.conv_transpose2d_input(x.shape, w, dy, **options))
    assert_array_equal(conv_transpose2d_weight(x, w.shape, dy, **options),
                       naive.conv_transpose2d_weight(x, w.shape, dy, **options))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.usefixtures("no_winograd")
@pytest.mark.parametrize("options", [
    dict(), dict(stride=2, padding=1), dict(stride=(1, 3), padding=(0, 2), dilation=(2, 1)), dict(groups=2, padding=1)])
def test_equals_autograd(options, rng):
    import torch
    x, w, b = integers(rng, (2, 4, 9, 11)), integers(rng, (6, 4 // options.get("groups", 1), 3, 3)), integers(rng, 6)
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, w, b)]
    y = torch.nn.functional.conv2d(*tensors, **options)
    dy = integers(rng, y.shape)
    y.backward(torch.tensor(dy))
    assert_array_equal(conv2d_input(x.shape, w, dy, **options), tensors[0].grad)
    assert_array_equal(conv2d_weight(x, w.shape, dy, **options), tensors[1].grad)
    assert_array_equal(conv2d_bias(dy), tensors[2].grad)
    options = dict(options, output_padding=1) if options.get("stride") else options
    weight = integers(rng, (4, 3, 3, 3))
    tensors = [torch.tensor(array, requires_grad=True) for array in (x, weight)]
    y = torch.nn.functional.conv_transpose2d(*tensors, **options)
    dy = integers(rng, y.shape)
    y.backward(torch.tensor(dy))
    assert_array_equal(conv_transpose2d_input(x.shape, weight, dy, **options), tensors[0].grad)
    assert_array_equal(conv_transpose2d_weight(x, weight.shape, dy, **options), tensors[1].grad)


X = np.arange(2 * 4 * 7 * 6, dtype=np.float32).reshape(2, 4, 7, 6) % 9 - 4
W = np.arange(6 * 4 * 3 * 3, dtype=np.float32).reshape(6, 4, 3, 3) % 7 - 3
DY = np.arange(2 * 6 * 5 * 4, dtype=np.float32).reshape(2, 6, 5, 4) % 5 - 2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "list"])
def test_any_right_input(kind):
    x, w, dy = (KINDS[kind](array) for array in (X, W, DY))
    copies = [np.array(array, np.float32) for array in (x, w, dy)]
    for function, first, second in (conv2d_input, 1, 2), (conv2d_weight, 0, 2):
        def call(arrays, function=function, first=first, second=second):
            if function is conv2d_input:
                return function(X.shape, arrays[first], arrays[second])
            return function(arrays[first], W.shape, arrays[second])
        assert_array_equal(call((x, w, dy)), call(copies))
    assert_array_equal(conv2d_bias(dy), conv2d_bias(copies[2]))
    for array, copy in zip((x, w, dy), copies):
        assert_array_equal(array, copy)


def test_empty_batch():
    """No images: no input gradient, and a filter and bias gradient of zero."""
    x, dy = X[:0], DY[:0]
    assert conv2d_input(x.shape, W, dy).shape == x.shape
    out = np.full_like(W, np.nan)
    assert_array_equal(conv2d_weight(x, W.shape, dy, out=out), np.zeros_like(W))
    assert_array_equal(conv2d_bias(dy), np.zeros(6))
    assert_array_equal(conv2d_bias(dy.transpose(0, 2, 3, 1), layout="NHWC"), np.zeros(6))
    assert conv_transpose2d_input(dy.shape, W, x).shape == dy.shape
    assert_array_equal(conv_transpose2d_weight(dy, W.shape, x), np.zeros_like(W))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("algorithm", ["direct", "auto"])
def test_same_bits_from_run_to_run(algorithm, layout, rng):
    """And for one and two threads, at a size where both are used."""
    x, dy = (rng.standard_normal((4, 32, 28, 28)).astype(np.float32) for _ in range(2))
    w = rng.standard_normal((32, 32, 3, 3)).astype(np.float32)
    options = dict(padding=1, layout=layout, algorithm=algorithm)
    if layout == "NHWC":
        x, dy = (np.ascontiguousarray(array.transpose(0, 2, 3, 1)) for array in (x, dy))

    def step():
        return (conv2d(x, w, **options), conv2d_input(x.shape, w, dy, **options),
                conv2d_weight(x, w.shape, dy, **options), conv2d_bias(dy, layout=layout))

    with fastconv.threads(1):
        expected = step()
    for _ in range(3):
        for actual, wanted in zip(step(), expected):
            assert_array_equal(actual, wanted)


@pytest.mark.parametrize("call, error, message", [
    (lambda: conv2d_input((2, 4, 7), W, DY), ValueError, "input_size must be a shape of 4 integers, got (2, 4, 7)"),
    (lambda: conv2d_input(7, W, DY), ValueError, "input_size must be a shape of 4 integers, got 7"),
    (lambda: conv2d_input((2, 4, 7, 6.0), W, DY), ValueError, "input_size must be a non-negative integer, got 6.0"),
    (lambda: conv2d_input((2, 4, 7, -6), W, DY), ValueError, "input_size must be a non-negative integer, got -6"),
    (lambda: conv2d_input((2, 4, 7, 7), W, DY), ValueError,
     "grad_output must have shape (2, 6, 5, 5) (that of the output), got (2, 6, 5, 4)"),
    (lambda: conv2d_input(X.shape, W, DY[:1]), ValueError, "grad_output must have shape (2, 6, 5, 4)"),
    (lambda: conv2d_input(X.shape, W[0], DY), ValueError, "weight must have 4 dimensions, got 3"),
    (lambda: conv2d_input(X.shape, W.astype(float), DY), TypeError, "weight must be float32, as the other arguments"),
    (lambda: conv2d_input(X.shape, W, DY.astype(int)), TypeError, "grad_output must be float32 or float64, got int64"),
    (lambda: conv2d_input(X.shape, W, DY, out=DY), ValueError, "out must have shape (2, 4, 7, 6) and dtype float32"),
    (lambda: conv2d_input(X.shape, W, DY, algorithm="none"), ValueError, "algorithm must be one of 'auto', "),
    (lambda: conv2d_weight(X, (6, 4, 3), DY), ValueError, "weight_size must be a shape of 4 integers, got (6, 4, 3)"),
    (lambda: conv2d_weight(X, (6, 4, 0, 3), DY), ValueError, "weight must have no empty dimension"),
    (lambda: conv2d_weight(X, (6, 5, 3, 3), DY), ValueError, "takes 5 input channels, got input of shape (2, 4, 7, 6)"),
    (lambda: conv2d_weight(X[0], W.shape, DY), ValueError, "input must have 4 dimensions, got 3"),
    (lambda: conv2d_weight(X, W.shape, DY.astype(float)), TypeError, "grad_output must be float32, as the other"),
    (lambda: conv2d_weight(X, W.shape, DY, stride=2), ValueError, "grad_output must have shape (2, 6, 3, 2)"),
    (lambda: conv2d_weight(X, W.shape, DY, out=read_only(W)), ValueError, "out must be C-contiguous"),
    (lambda: conv2d_weight(X, W.shape, DY, stride=-1), ValueError, "stride must be a positive integer"),
    (lambda: conv2d_bias(DY[0]), ValueError, "grad_output must have 4 dimensions, got 3"),
    (lambda: conv2d_bias(DY, layout="CHWN"), ValueError, 'layout must be "NCHW" or "NHWC", got \'CHWN\''),
    (lambda: conv_transpose2d_input(DY.shape, W, X[:, :, :5]), ValueError,
     "grad_output must have shape (2, 4, 7, 6) (that of the output), got (2, 4, 5, 6)"),
    (lambda: conv_transpose2d_input((2, 6, 5), W, X), ValueError, "input_size must be a shape of 4 integers"),
    (lambda: conv_transpose2d_weight(DY, W.shape, X, output_padding=1), ValueError, "output_padding must be smaller"),
    (lambda: conv_transpose2d_weight(DY, (5, 4, 3, 3), X), ValueError, "takes 5 input channels, got input of shape"),
    (lambda: conv_transpose2d_weight(DY, W.shape, X[:1]), ValueError, "grad_output must have shape (2, 4, 7, 6)"),
])
def test_wrong_argument(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
