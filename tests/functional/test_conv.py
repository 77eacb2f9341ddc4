"""conv2d, convolve2d and conv_transpose2d as a user calls them: exact on integers where no algorithm rounds."""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastconv
from fastconv.functional import conv2d, conv_transpose2d, convolve2d
from fastconv.grad import conv2d_input, conv2d_weight
from fastconv.kernels import algorithms
from fastconv.kernels.plan import ConvProblem
from fastconv.reference import naive
from tests.conv_cases import DTYPES, LAYOUTS, arguments, case, nchw, stored, transposed_arguments
from tests.test_check import KINDS, read_only
from tests.tolerance import assert_close, integers, problems

NO_TORCH = importlib.util.find_spec("torch") is None


def kernel_terms(w: np.ndarray) -> int:
    """Products in one output."""
    return w[0].size


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", problems())
def test_problems(problem, layout):
    """Whatever "auto" chooses, with a bias; and the flipped kernel."""
    found = case(problem).stored(layout, "float32")
    expected = found.y + (found.b[:, None, None] if layout == "NCHW" else found.b)
    options = dict(arguments(problem), layout=layout)
    assert_close(conv2d(found.x, found.w, found.b, **options), expected, kernel_terms(found.w) + 1, found.x, found.w)
    assert_array_equal(conv2d(found.x, found.w, found.b, algorithm="direct", **options), expected)
    turned = np.flip(found.w, (2, 3))
    assert_array_equal(convolve2d(found.x, turned, found.b, algorithm="direct", **options), expected)


@pytest.mark.usefixtures("no_winograd")
@pytest.mark.parametrize("layout, dtype", [("NCHW", "float32"), ("NHWC", "float32"), ("NCHW", "float64")])
@pytest.mark.parametrize("problem", problems())
def test_transposed(problem, layout, dtype, rng):
    """It is the input gradient, plus a bias."""
    found = case(problem).stored(layout, dtype)
    bias = integers(rng, problem.c, dtype)
    y = conv_transpose2d(found.dy, found.w, bias, layout=layout, **transposed_arguments(problem))
    assert_array_equal(y, found.dx + (bias[:, None, None] if layout == "NCHW" else bias))


@pytest.fixture
def no_winograd():
    """What has no ``algorithm=`` argument is exact too."""
    before = algorithms.winograd_allowed()
    fastconv.set_winograd(False)
    yield
    fastconv.set_winograd(before)


SMALL = st.integers(1, 20)
PADS = st.tuples(st.integers(0, 4), st.integers(0, 4))


@st.composite
def convolutions(draw):
    """A problem over every parameter, a layout and a dtype."""
    stride, dilation, kernel = (draw(st.tuples(st.integers(1, most), st.integers(1, most))) for most in (3, 3, 4))
    padding = draw(st.tuples(PADS, PADS))
    size = [draw(st.integers(max(1, d * (t - 1) + 1 - sum(p)), 20)) for d, t, p in zip(dilation, kernel, padding)]
    groups = draw(st.integers(1, 4))
    c, k = (groups * draw(st.integers(1, 20 // groups)) for _ in range(2))
    problem = ConvProblem(draw(st.integers(0, 3)), c, *size, k, *kernel, stride, padding, dilation, groups)
    return problem, draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(DTYPES))


@settings(max_examples=60)
@given(convolutions())
def test_any_convolution(drawn):
    """Exact against the oracle, in all three directions."""
    problem, layout, dtype = drawn
    found = case(problem).stored(layout, dtype)
    options = dict(arguments(problem), layout=layout, algorithm="direct")
    y = conv2d(found.x, found.w, found.b, **options)
    assert y.dtype == dtype
    assert_array_equal(y, found.y + (found.b[:, None, None] if layout == "NCHW" else found.b))
    dx = conv2d_input(found.x.shape, found.w, found.dy, **options)
    dw = conv2d_weight(found.x, found.w.shape, found.dy, **options)
    assert_array_equal(dx, found.dx)
    assert_array_equal(dw, found.dw)
    # <conv(x, w), dy> = <x, input gradient> = <w, filter gradient>
    total = np.vdot(conv2d(found.x, found.w, **options).astype(np.float64), found.dy)
    assert total == np.vdot(found.x, dx.astype(np.float64)) == np.vdot(found.w, dw.astype(np.float64))


@st.composite
def transposed(draw):
    """Arguments of a transposed convolution; output_padding up to the stride or the dilation."""
    stride, dilation, kernel = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(3))
    padding = draw(st.tuples(PADS, PADS))
    extra = tuple(draw(st.integers(0, max(u, d) - 1)) for u, d in zip(stride, dilation))
    size = [draw(st.integers(max(1, -((d * (t - 1) + e - sum(p)) // u) + 1), 12))
            for u, d, t, p, e in zip(stride, dilation, kernel, padding, extra)]
    groups, n, c = draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(st.integers(1, 5))
    k = groups * draw(st.integers(1, 6))
    return (n, k, *size), (k, c, *kernel), dict(stride=stride, padding=padding, output_padding=extra, groups=groups,
                                                dilation=dilation)


@settings(max_examples=40)
@given(transposed(), st.sampled_from(LAYOUTS), st.integers(0, 99))
def test_any_transposed_convolution(drawn, layout, seed):
    size, weight_size, options = drawn
    rng = np.random.default_rng(seed)
    x, w, b = (integers(rng, shape) for shape in (size, weight_size, weight_size[1] * options["groups"]))
    expected = naive.conv_transpose2d(x, w, b, **options)
    assert_array_equal(nchw(conv_transpose2d(stored(x, layout), w, b, layout=layout, **options), layout), expected)


def test_output_padding_beyond_the_stride():
    """Regression: output_padding of a whole stride, which a dilation allows, read past the input."""
    x, w = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)
    options = dict(dilation=3, output_padding=2)
    assert_array_equal(conv_transpose2d(x, w, **options), naive.conv_transpose2d(x, w, **options))


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
@settings(max_examples=30)
@given(convolutions(), transposed())
def test_equals_torch(drawn, drawn_transposed):
    """A second oracle; torch pads evenly only, so its input is padded before."""
    import torch
    problem, _, dtype = drawn
    if not problem.n:
        return
    found = case(problem).stored("NCHW", dtype)
    (top, bottom), (left, right) = problem.padding
    padded = torch.nn.functional.pad(torch.tensor(found.x), (left, right, top, bottom))
    options = arguments(problem)
    theirs = torch.nn.functional.conv2d(padded, *map(torch.tensor, (found.w, found.b)), **dict(options, padding=0))
    assert_array_equal(conv2d(found.x, found.w, found.b, algorithm="direct", **options), theirs)
    size, weight_size, options = drawn_transposed
    rng = np.random.default_rng(0)
    x, w = integers(rng, size), integers(rng, weight_size)
    even = dict(options, padding=tuple(min(pads) for pads in options["padding"]))
    if min(naive.conv_transpose2d(x, w, **even).shape[2:]) > 0:
        theirs = torch.nn.functional.conv_transpose2d(torch.tensor(x), torch.tensor(w), **even)
        assert_array_equal(conv_transpose2d(x, w, **even), theirs)


@pytest.mark.skipif(NO_TORCH, reason="torch is not installed")
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 5)])
def test_named_padding_equals_torch(kernel, padding, rng):
    import torch
    x, w = integers(rng, (2, 3, 9, 10)), integers(rng, (4, 3, *kernel))
    for dilation in 1, 2:
        theirs = torch.nn.functional.conv2d(torch.tensor(x), torch.tensor(w), padding=padding, dilation=dilation)
        assert_array_equal(conv2d(x, w, padding=padding, dilation=dilation), theirs)


X = np.arange(2 * 4 * 7 * 6, dtype=np.float32).reshape(2, 4, 7, 6) % 9 - 4
W = np.arange(6 * 4 * 3 * 3, dtype=np.float32).reshape(6, 4, 3, 3) % 7 - 3
B = np.arange(6, dtype=np.float32)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "list"])
@pytest.mark.parametrize("function", [conv2d, convolve2d, conv_transpose2d])
def test_any_right_input(function, kind):
    """The result is that of the contiguous copies, and no input is changed."""
    weight = W if function is not conv_transpose2d else W[:4].copy()
    bias = B if function is not conv_transpose2d else B[:4].copy()
    x, w, b = (KINDS[kind](array) for array in (X, weight, bias))
    copies = [np.array(array, np.float32) for array in (x, w, b)]
    expected = function(*copies, padding=1)
    assert_array_equal(function(x, w, b, padding=1), expected)
    out = np.full_like(expected, np.nan)
    assert function(x, w, b, padding=1, out=out) is out
    assert_array_equal(out, expected)
    for array, copy in zip((x, w, b), copies):
        assert_array_equal(array, copy)


def test_lists_are_float64():
    assert_array_equal(conv2d(X.tolist(), W.tolist(), B.tolist()), conv2d(X, W, B))
    assert conv2d(X.tolist(), W.tolist()).dtype == np.float64


def test_read_only_input_compiles_nothing():
    """A read-only array is a type of its own to Numba; kernels must see one type only."""
    def signatures():
        runner = algorithms.runner("forward", ConvProblem(2, 4, 7, 6, 6, 3, 3), "NCHW", "float32")
        return [len(twin.signatures) for twin in (runner.kernel.serial, runner.kernel.parallel)]

    conv2d(X, W, B)
    before = signatures()
    conv2d(read_only(X), read_only(W), read_only(B))
    conv2d(np.broadcast_to(X, X.shape), W)
    assert signatures() == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arguments_in_every_form(layout):
    x = stored(X, layout)
    for same in [
        [dict(padding=1), dict(padding=(1, 1)), dict(padding=[1, 1]), dict(padding=((1, 1), (1, 1))),
         dict(padding=[[1, 1], [1, 1]]), dict(padding="same"), dict(padding=np.int64(1)), dict(padding=((1, 1), 1))],
        [dict(stride=2), dict(stride=(2, 2)), dict(stride=[2, 2]), dict(stride=2, dilation=(1, 1), padding="valid")],
        [dict(dilation=(2, 1)), dict(dilation=[2, 1], groups=1, algorithm="auto")],
    ]:
        results = [conv2d(x, W, layout=layout, **options) for options in same]
        for result in results[1:]:
            assert_array_equal(result, results[0])
    assert_array_equal(conv2d(x, W, B, 2, 1, layout=layout), conv2d(x, W, bias=B, stride=2, padding=1, layout=layout))


def test_image_does_not_depend_on_its_batch(rng):
    x = rng.standard_normal((9, 40, 12, 12)).astype(np.float32)
    w = rng.standard_normal((40, 40, 3, 3)).astype(np.float32)
    together = conv2d(x, w, padding=1, algorithm="direct")
    for image in range(9):
        assert_array_equal(conv2d(x[image:image + 1], w, padding=1, algorithm="direct")[0], together[image])


def test_empty_batch():
    x = np.empty((0, 4, 7, 6), np.float32)
    assert conv2d(x, W, B, padding=1).shape == (0, 6, 7, 6)
    assert conv2d(x.transpose(0, 2, 3, 1), W, B, layout="NHWC").shape == (0, 5, 4, 6)
    assert conv_transpose2d(x, W[:4], stride=2).shape == (0, 4, 15, 13)


@pytest.mark.parametrize("change, error, message", [
    (dict(input=X[0]), ValueError, "input must have 4 dimensions, got 3 (shape (4, 7, 6))"),
    (dict(weight=W[0]), ValueError, "weight must have 4 dimensions, got 3"),
    (dict(bias=B[:, None]), ValueError, "bias must have 1 dimensions, got 2"),
    (dict(bias=B[:5]), ValueError, "bias must have shape (6,) (one number an output channel), got (5,)"),
    (dict(input=X.astype(int)), TypeError, "input must be float32 or float64, got int64; write input.astype"),
    (dict(weight=W.astype(float)), TypeError, "weight must be float32, as the other arguments, got float64"),
    (dict(bias=B.astype(float)), TypeError, "bias must be float32, as the other arguments, got float64"),
    (dict(input=np.ma.array(X)), TypeError, "input must be a plain array, got a masked array"),
    (dict(stride=0), ValueError, "stride must be a positive integer or a pair of them, got 0"),
    (dict(stride=(1, -1)), ValueError, "stride must be a positive integer or a pair of them, got (1, -1)"),
    (dict(stride=1.0), ValueError, "stride must be a positive integer or a pair of them, got 1.0"),
    (dict(stride=True), ValueError, "stride must be a positive integer or a pair of them, got True"),
    (dict(stride=np.ones(2, int)), ValueError, "stride must be a positive integer or a pair of them"),
    (dict(stride=[1, 1, 1]), ValueError, "stride must be a positive integer or a pair of them, got (1, 1, 1)"),
    (dict(dilation=0), ValueError, "dilation must be a positive integer or a pair of them, got 0"),
    (dict(padding=-1), ValueError, "padding must be a non-negative integer or a pair of them, got -1"),
    (dict(padding=((1, -1), (0, 0))), ValueError, "padding must be a non-negative integer or a pair of them"),
    (dict(padding={1, 2}), ValueError, "padding must be 'same', 'valid', an integer, a pair or two pairs"),
    (dict(padding="full"), ValueError, "padding must be 'same', 'valid', an integer, a pair or two pairs, got 'full'"),
    (dict(padding="same", stride=2), ValueError, "padding='same' needs stride 1, got stride (2, 2)"),
    (dict(groups=0), ValueError, "groups must be a positive integer, got 0"),
    (dict(groups=[1]), ValueError, "groups must be a positive integer"),
    (dict(groups=3), ValueError, "groups must divide the input channels (4) and the output channels (6), got 3"),
    (dict(groups=2), ValueError, "weight of shape (6, 4, 3, 3) with groups=2 takes 8 input channels, got input of "
                                 "shape (2, 4, 7, 6) (NCHW) with 4"),
    (dict(layout="NHWC"), ValueError, "takes 4 input channels, got input of shape (2, 4, 7, 6) (NHWC) with 6"),
    (dict(layout="nchw"), ValueError, 'layout must be "NCHW" or "NHWC", got \'nchw\''),
    (dict(layout=["NCHW"]), ValueError, 'layout must be "NCHW" or "NHWC", got'),
    (dict(dilation=4), ValueError, "kernel of 9x9 (dilation included) is larger than the padded input of 7x6"),
    (dict(weight=W[:0]), ValueError, "weight must have no empty dimension, got shape (0, 4, 3, 3)"),
    (dict(input=X[:, :, :0]), ValueError, "input must have no empty dimension but the batch, got shape (2, 4, 0, 6)"),
    (dict(algorithm="fft"), ValueError, "algorithm must be one of 'auto', "),
    (dict(algorithm="winograd", stride=3), ValueError,
     "algorithm 'winograd' cannot run the forward of n2c4h7w6k6r3s3u3: needs a square kernel of 2 to 5 taps, or of "
     "3 to 9 with stride 2 and no dilation"),
    (dict(out=np.empty((2, 6, 5, 5), np.float32)), ValueError, "out must have shape (2, 6, 5, 4) and dtype float32"),
])
def test_wrong_argument(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        conv2d(**{"input": X, "weight": W, "bias": B, **change})


@pytest.mark.parametrize("change, error, message", [
    (dict(weight=W), ValueError, "weight of shape (6, 4, 3, 3) takes 6 input channels, got input of shape (2, 4, 7, 6) "
                                 "(NCHW) with 4"),
    (dict(groups=3), ValueError, "groups must divide the input channels (4), got 3"),
    (dict(bias=B), ValueError, "bias must have shape (4,) (one number an output channel), got (6,)"),
    (dict(output_padding=1), ValueError, "output_padding must be smaller than stride or dilation, got 1"),
    (dict(output_padding=(0, -1)), ValueError, "output_padding must be a non-negative integer or a pair of them"),
    (dict(padding=5), ValueError, "padding 5 leaves an output of -1x-2; it must be at least 1x1"),
    (dict(weight=W[:4, :0]), ValueError, "weight must have no empty dimension, got shape (4, 0, 3, 3)"),
    (dict(input=X[:, :, :0]), ValueError, "input must have no empty dimension but the batch, got shape (2, 4, 0, 6)"),
    (dict(layout="HWCN"), ValueError, 'layout must be "NCHW" or "NHWC"'),
    (dict(out=np.empty((2, 4, 9, 9), np.float32)), ValueError, "out must have shape (2, 4, 9, 8) and dtype float32"),
])
def test_wrong_argument_of_the_transposed(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        conv_transpose2d(**{"input": X, "weight": W[:4], **change})


def test_a_checked_argument_is_checked_again():
    """Results are looked up by the arguments; 1.0 and True equal 1 and must not find what 1 left there."""
    conv2d(X, W, stride=1, groups=1)
    for value in 1.0, True:
        with pytest.raises(ValueError, match="stride"):
            conv2d(X, W, stride=value)
        with pytest.raises(ValueError, match="groups"):
            conv2d(X, W, groups=value)


@pytest.mark.parametrize("overlapping", ["input", "weight", "bias"])
def test_out_that_overlaps(overlapping):
    buffer, arrays = np.ones(400, np.float32), {"input": X, "weight": W, "bias": B}
    like = arrays[overlapping]
    arrays[overlapping] = buffer[:like.size].reshape(like.shape)
    with pytest.raises(ValueError, match="out must not overlap an input"):
        conv2d(**arrays, out=buffer[:240].reshape(2, 6, 5, 4))


@pytest.mark.usefixtures("no_winograd")
def test_switching_winograd_off(rng):
    """It holds for arguments seen before, and back; Winograd's last bits tell."""
    x = rng.standard_normal((4, 64, 28, 28)).astype(np.float32)
    w = rng.standard_normal((64, 64, 3, 3)).astype(np.float32)
    direct, fast = (conv2d(x, w, algorithm=name) for name in ("direct", "winograd"))
    assert (direct != fast).any()
    assert_close(fast, direct, kernel_terms(w), x, w)
    for allowed, expected in (True, fast), (False, direct), (True, fast):
        fastconv.set_winograd(allowed)
        assert_array_equal(conv2d(x, w), expected)
