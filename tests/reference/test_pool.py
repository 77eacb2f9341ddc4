"""The pooling oracles against torch and against the matrix form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fastconv.reference import im2col, naive
from tests.tolerance import assert_close, integers


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


@st.composite
def pool_cases(draw, dilated: bool):
    """An image size and what max_pool2d or avg_pool2d of torch take; padding at most half the kernel."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    options = dict(kernel_size=kernel, stride=stride, padding=padding, ceil_mode=draw(st.booleans()))
    reach = kernel
    if dilated:
        dilation = options["dilation"] = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        reach = tuple(d * (size - 1) + 1 for size, d in zip(kernel, dilation))
    rows, columns = (draw(st.integers(max(1, size - 2 * p), size + 6)) for size, p in zip(reach, padding))
    return (draw(st.integers(1, 2)), draw(st.integers(1, 3)), rows, columns), options


@given(case=pool_cases(dilated=True), seed=st.integers(0, 999), odd=st.sampled_from([0, 0.1, 0.6]))
def test_max_pool_equals_torch(case, seed, odd):
    """Values, indices and gradient, with many ties, and with NaN and -inf anywhere."""
    torch = pytest.importorskip("torch")
    size, options = case
    rng = np.random.default_rng(seed)
    x = integers(rng, size, np.float64)
    x[rng.random(size) < odd] = np.nan
    x[rng.random(size) < odd] = -np.inf
    y, indices = naive.max_pool2d(x, return_indices=True, **options)
    assume((indices >= 0).all())  # torch's index of a window wholly in the padding lies outside the image
    tx = torch.tensor(x, requires_grad=True)
    ty, expected = torch.nn.functional.max_pool2d(tx, return_indices=True, **options)
    assert_array_equal(y, ty.detach())
    assert_array_equal(indices, expected)
    dy = integers(rng, y.shape, np.float64)
    ty.backward(torch.tensor(dy))
    _, positions = naive.max_pool2d_with_positions(x, **options)
    assert_array_equal(naive.max_pool2d_grad(x.shape, positions, dy, **options), tx.grad)
    channels_last, places = naive.max_pool2d(nhwc(x), return_indices=True, layout="NHWC", **options)
    assert_array_equal(channels_last, nhwc(y))
    assert_array_equal(places, nhwc(indices))


def test_several_nan_name_the_last_and_equals_the_first():
    x = np.array([[np.nan, 5], [np.nan, 7]]).reshape(1, 1, 2, 2)
    y, positions = naive.max_pool2d_with_positions(x, 2)
    assert np.isnan(y).all()
    assert positions.item() == 2
    _, positions = naive.max_pool2d_with_positions(np.ones((1, 1, 3, 3)), 2, 1)
    assert not positions.any()
    assert positions.dtype == np.uint8


def test_windows_of_more_than_256_cells():
    x = np.zeros((1, 1, 17, 17), np.float32)
    x[0, 0, 16, 15] = 1
    for module in naive, im2col:
        y, positions = module.max_pool2d_with_positions(x, 17)
        assert positions.item() == 16 * 17 + 15
        assert_array_equal(module.max_pool2d_grad(x.shape, positions, y, 17), x)


def test_minus_infinity_is_won_inside_the_image():
    x = np.full((1, 1, 2, 2), -np.inf)
    y, indices = naive.max_pool2d(x, 2, 2, 1, return_indices=True)
    assert_array_equal(y, x)
    assert_array_equal(indices, [[[[0, 1], [2, 3]]]])


def test_window_wholly_in_the_padding():
    """Two taps three pixels apart miss an image of two."""
    x = np.arange(4.0).reshape(1, 1, 2, 2)
    options = dict(kernel_size=2, stride=1, padding=1, dilation=3)
    y, indices = naive.max_pool2d(x, return_indices=True, **options)
    _, positions = naive.max_pool2d_with_positions(x, **options)
    assert (y.item(), indices.item(), positions.item()) == (-np.inf, -1, 0)
    assert not naive.max_pool2d_grad(x.shape, positions, np.ones_like(y), **options).any()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=2),
        dict(kernel_size=3, stride=2, padding=1),
        dict(kernel_size=(2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
    ],
)
def test_matrix_form(options, layout, rng):
    x = integers(rng, (2, 9, 8, 3))
    y, positions = naive.max_pool2d_with_positions(x, layout=layout, **options)
    assert_array_equal(im2col.max_pool2d(x, layout=layout, **options), y)
    matrix_y, matrix_positions = im2col.max_pool2d_with_positions(x, layout=layout, **options)
    assert_array_equal(matrix_y, y)
    assert_array_equal(matrix_positions, positions)
    dy = integers(rng, y.shape)
    dx = naive.max_pool2d_grad(x.shape, positions, dy, layout=layout, **options)
    assert_array_equal(im2col.max_pool2d_grad(x.shape, positions, dy, layout=layout, **options), dx)
    assert dx.sum() == dy.sum()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("output_size", [None, (9, 10)])
def test_max_unpool_equals_torch(output_size, layout, rng):
    torch = pytest.importorskip("torch")
    place = nhwc if layout == "NHWC" else np.asarray
    x = rng.permutation(2 * 3 * 8 * 10).reshape(2, 3, 8, 10).astype(np.float64)
    pooled, indices = naive.max_pool2d(x, 2, return_indices=True)
    tx = torch.tensor(pooled, requires_grad=True)
    ty = torch.nn.functional.max_unpool2d(tx, torch.tensor(indices), 2, output_size=output_size)
    dy = integers(rng, ty.shape, np.float64)
    ty.backward(torch.tensor(dy))
    y = naive.max_unpool2d(place(pooled), place(indices), 2, output_size=output_size, layout=layout)
    assert_array_equal(y, place(ty.detach().numpy()))
    assert_array_equal(
        naive.max_unpool2d(place(pooled), place(indices), 2, None, 0, y.shape, layout=layout), y
    )
    dx = naive.max_unpool2d_grad(place(indices), place(dy), layout=layout)
    assert_array_equal(dx, place(tx.grad.numpy()))


def test_max_unpool_size_with_padding():
    torch = pytest.importorskip("torch")
    x, indices = np.arange(1.0, 10).reshape(1, 1, 3, 3), np.arange(9).reshape(1, 1, 3, 3)
    arguments = dict(kernel_size=(3, 2), stride=2, padding=(1, 0))
    expected = torch.nn.functional.max_unpool2d(torch.tensor(x), torch.tensor(indices), **arguments)
    assert_array_equal(naive.max_unpool2d(x, indices, **arguments), expected)


@given(
    case=pool_cases(dilated=False),
    seed=st.integers(0, 999),
    count_include_pad=st.booleans(),
    divisor_override=st.none() | st.integers(1, 5),
)
def test_average_pool_equals_torch(case, seed, count_include_pad, divisor_override):
    torch = pytest.importorskip("torch")
    size, options = case
    options |= dict(count_include_pad=count_include_pad, divisor_override=divisor_override)
    rng = np.random.default_rng(seed)
    x = integers(rng, size, np.float64)
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.avg_pool2d(tx, **options)
    y, cells = naive.avg_pool2d(x, **options), int(np.prod(options["kernel_size"]))
    assert_close(y, ty.detach().numpy(), cells, x)
    dy = integers(rng, y.shape, np.float64)
    ty.backward(torch.tensor(dy))
    assert_close(naive.avg_pool2d_grad(x.shape, dy, **options), tx.grad.numpy(), cells, dy)
    assert_array_equal(naive.avg_pool2d(nhwc(x), **options, layout="NHWC"), nhwc(y))


def test_ceil_mode_keeps_windows_that_start_in_the_image():
    """Rows of 5 by 2 have half a window left over; padded to 4, a third window would start in the padding."""
    x = np.arange(25.0).reshape(1, 1, 5, 5)
    assert_array_equal(naive.max_pool2d(x, 2, ceil_mode=True)[0, 0, 2], [21, 23, 24])
    assert naive.max_pool2d(x, 2).shape == (1, 1, 2, 2)
    assert naive.max_pool2d(x[:, :, :3, :3], 2, 2, 1, ceil_mode=True).shape == (1, 1, 2, 2)


def test_average_of_ones(rng):
    """It is one where only the image counts, and gradients spread without loss."""
    x, options = np.ones((2, 3, 5, 6)), dict(kernel_size=4, stride=2, padding=1, ceil_mode=True)
    y = naive.avg_pool2d(x, count_include_pad=False, **options)
    assert_array_equal(y, np.ones((2, 3, 3, 3)))
    assert naive.avg_pool2d(x, **options)[0, 0, 0, 0] == 9 / 16
    dx = naive.avg_pool2d_grad(x.shape, y, count_include_pad=False, **options)
    assert_close(dx.sum(), y.sum(), x.size, x)


def test_average_of_uneven_padding_counts_its_zeros(rng):
    x = integers(rng, (2, 3, 5, 6))
    padded = np.pad(x, ((0, 0), (0, 0), (2, 0), (1, 1)))
    assert_array_equal(naive.avg_pool2d(x, 4, 1, ((2, 0), (1, 1))), naive.avg_pool2d(padded, 4, 1))


@pytest.mark.parametrize("output_size", [1, (3, 2), (5, None), (None, 7), (8, 9)])
def test_adaptive_average_pool_equals_torch(output_size, rng):
    torch = pytest.importorskip("torch")
    x = integers(rng, (2, 3, 5, 6), np.float64)
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.adaptive_avg_pool2d(tx, output_size)
    y = naive.adaptive_avg_pool2d(x, output_size)
    assert_close(y, ty.detach().numpy(), 30, x)
    dy = integers(rng, y.shape, np.float64)
    ty.backward(torch.tensor(dy))
    dx = naive.adaptive_avg_pool2d_grad(x.shape, dy)
    assert_close(dx, tx.grad.numpy(), 30, dy)
    assert_array_equal(naive.adaptive_avg_pool2d(nhwc(x), output_size, layout="NHWC"), nhwc(y))
    assert_array_equal(naive.adaptive_avg_pool2d_grad(nhwc(x).shape, nhwc(dy), layout="NHWC"), nhwc(dx))
