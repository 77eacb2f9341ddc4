"""The convolution oracles against each other, their adjoints and torch: all exact on integers."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastconv.reference
from fastconv.kernels.plan import ConvProblem
from fastconv.reference import im2col, naive
from tests.tolerance import integers, problems

SHAPES = problems("basic", "strided", "padding", "dilated", "grouped", "thin", "regression")


def arguments(problem: ConvProblem) -> dict:
    return {key: getattr(problem, key) for key in ("stride", "padding", "dilation", "groups")}


def operands(
    problem: ConvProblem, rng: np.random.Generator, dtype: type = np.float32
) -> tuple[np.ndarray, ...]:
    """Integer input, filters and output gradient."""
    shapes = problem.input_shape("NCHW"), problem.weight_shape, problem.output_shape("NCHW")
    return tuple(integers(rng, shape, dtype) for shape in shapes)


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1))


def nhwc_shape(size: tuple[int, ...]) -> tuple[int, ...]:
    return size[0], size[2], size[3], size[1]


@pytest.mark.parametrize("problem", SHAPES)
def test_naive_equals_im2col(problem, rng):
    x, w, dy = operands(problem, rng)
    b, options = integers(rng, problem.k), arguments(problem)
    y = naive.conv2d(x, w, b, **options)
    assert y.shape == problem.output_shape("NCHW")
    assert y.dtype == np.float32
    assert_array_equal(im2col.conv2d(x, w, b, **options), y)
    dx, dw = naive.conv2d_input(x.shape, w, dy, **options), naive.conv2d_weight(x, w.shape, dy, **options)
    assert_array_equal(im2col.conv2d_input(x.shape, w, dy, **options), dx)
    assert_array_equal(im2col.conv2d_weight(x, w.shape, dy, **options), dw)
    # the gradients are the adjoints of the forward pass: <conv(x, w), dy> = <x, dx> = <w, dw>
    total = np.vdot(y - b[:, None, None], dy)
    assert total == np.vdot(x, dx)
    assert total == np.vdot(w, dw)
    assert_array_equal(naive.conv2d_bias(dy), dy.sum(axis=(0, 2, 3)))


@pytest.mark.parametrize("module", [naive, im2col], ids=["naive", "im2col"])
@pytest.mark.parametrize("problem", problems("grouped", "thin"))
def test_layouts_agree(module, problem, rng):
    x, w, dy = operands(problem, rng)
    options = arguments(problem)
    y = module.conv2d(nhwc(x), w, layout="NHWC", **options)
    assert_array_equal(y, nhwc(module.conv2d(x, w, **options)))
    dx = module.conv2d_input(nhwc_shape(x.shape), w, nhwc(dy), layout="NHWC", **options)
    assert_array_equal(dx, nhwc(module.conv2d_input(x.shape, w, dy, **options)))
    dw = module.conv2d_weight(nhwc(x), w.shape, nhwc(dy), layout="NHWC", **options)
    assert_array_equal(dw, module.conv2d_weight(x, w.shape, dy, **options))
    assert_array_equal(naive.conv2d_bias(nhwc(dy), layout="NHWC"), naive.conv2d_bias(dy))


def test_float64_accumulation(rng):
    """A sum that float32 cannot hold on its way comes back right."""
    x = np.float32([2.0**25, 1, -(2.0**25)]).reshape(1, 3, 1, 1)
    assert naive.conv2d(x, np.ones((1, 3, 1, 1), np.float32)).item() == 1


def test_convolve2d_flips_the_kernel(rng):
    x, w = integers(rng, (2, 3, 6, 7)), integers(rng, (4, 3, 3, 2))
    impulse = np.zeros((1, 1, 5, 5), np.float32)
    impulse[0, 0, 2, 2] = 1
    kernel = integers(rng, (1, 1, 3, 3))
    assert_array_equal(naive.convolve2d(impulse, kernel)[0, 0], kernel[0, 0])
    assert_array_equal(naive.conv2d(impulse, kernel)[0, 0], kernel[0, 0, ::-1, ::-1])
    assert_array_equal(naive.convolve2d(x, w), naive.conv2d(x, np.flip(w, (2, 3))))


@pytest.mark.parametrize(
    "kernel, dilation, padding",
    [
        ((3, 3), 1, ((1, 1), (1, 1))),
        ((2, 4), 1, ((0, 1), (1, 2))),  # an odd total puts the larger part after, as torch does
        ((2, 3), (3, 2), ((1, 2), (2, 2))),
        ((1, 5), 2, ((0, 0), (4, 4))),
    ],
)
def test_named_padding(kernel, dilation, padding, rng):
    x, w = integers(rng, (1, 2, 9, 10)), integers(rng, (3, 2, *kernel))
    same = naive.conv2d(x, w, padding="same", dilation=dilation)
    assert same.shape == (1, 3, 9, 10)
    assert_array_equal(same, naive.conv2d(x, w, padding=padding, dilation=dilation))
    valid = naive.conv2d(x, w, padding="valid", dilation=dilation)
    assert_array_equal(valid, naive.conv2d(x, w, dilation=dilation))


def test_uneven_padding_is_a_padded_image(rng):
    x, w, dy = integers(rng, (2, 3, 6, 7)), integers(rng, (4, 3, 3, 2)), integers(rng, (2, 4, 7, 9))
    padding = ((3, 0), (1, 2))
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    for module in naive, im2col:
        assert_array_equal(module.conv2d(x, w, padding=padding), naive.conv2d(padded, w))
        dw = module.conv2d_weight(x, w.shape, dy, padding=padding)
        assert_array_equal(dw, naive.conv2d_weight(padded, w.shape, dy))
        dx = module.conv2d_input(x.shape, w, dy, padding=padding)
        assert_array_equal(dx, naive.conv2d_input(padded.shape, w, dy)[:, :, 3:, 1:8])


def test_matrix_size(rng):
    x = integers(rng, (2, 3, 9, 8), np.float64)
    arguments = dict(stride=(2, 1), padding=1, dilation=(1, 2))
    matrix = im2col.im2col(x, (3, 2), **arguments)
    assert matrix.nbytes == im2col.im2col_bytes(x.shape, (3, 2), **arguments, dtype=np.float64)
    assert 2 * im2col.im2col_bytes((2, 9, 8, 3), (3, 2), **arguments, layout="NHWC") == matrix.nbytes


@st.composite
def torch_cases(draw):
    """Arguments over every parameter, with torch's padding made from ours by padding the input first."""
    small = st.integers(1, 3)
    groups, stride, dilation = draw(small), draw(st.tuples(small, small)), draw(st.tuples(small, small))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pad = st.integers(0, 3)
    padding = draw(st.tuples(st.tuples(pad, pad), st.tuples(pad, pad)))
    reach = [d * (r - 1) + 1 for d, r in zip(dilation, kernel)]
    rows, columns = (
        draw(st.integers(max(1, need - sum(pads)), need + 5)) for need, pads in zip(reach, padding)
    )
    n, c, k = draw(st.integers(0, 2)), groups * draw(small), groups * draw(small)
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    return (n, c, rows, columns), (k, c // groups, *kernel), options


@given(case=torch_cases(), seed=st.integers(0, 999))
def test_convolution_equals_torch(case, seed):
    torch = pytest.importorskip("torch")
    size, weight_size, options = case
    rng = np.random.default_rng(seed)
    x, w, b = (integers(rng, shape, np.float64) for shape in (size, weight_size, weight_size[0]))
    tx, tw, tb = (torch.tensor(array, requires_grad=True) for array in (x, w, b))
    (top, bottom), (left, right) = options["padding"]
    padded = torch.nn.functional.pad(tx, (left, right, top, bottom))
    ty = torch.nn.functional.conv2d(padded, tw, tb, **{**options, "padding": 0})
    dy = integers(rng, ty.shape, np.float64)
    ty.backward(torch.tensor(dy))
    assert_array_equal(naive.conv2d(x, w, b, **options), ty.detach())
    assert_array_equal(naive.conv2d_input(x.shape, w, dy, **options), tx.grad)
    assert_array_equal(naive.conv2d_weight(x, w.shape, dy, **options), tw.grad)
    assert_array_equal(naive.conv2d_bias(dy), tb.grad)


@st.composite
def transposed_cases(draw):
    """Arguments of a transposed convolution; torch wants output_padding below the stride or the dilation."""
    small = st.integers(1, 3)
    stride, dilation, kernel = (draw(st.tuples(small, small)) for _ in range(3))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    extra = tuple(draw(st.integers(0, max(u, d) - 1)) for u, d in zip(stride, dilation))
    need = [
        -((d * (r - 1) + e - 2 * p) // u) + 1
        for u, p, d, r, e in zip(stride, padding, dilation, kernel, extra)
    ]
    rows, columns = (draw(st.integers(max(1, least), max(1, least) + 3)) for least in need)
    groups, n = draw(small), draw(st.integers(1, 2))
    options = dict(stride=stride, padding=padding, output_padding=extra, groups=groups, dilation=dilation)
    c = groups * draw(small)
    return (n, c, rows, columns), (c, draw(small), *kernel), options


@given(case=transposed_cases(), seed=st.integers(0, 999))
def test_transposed_convolution_equals_torch(case, seed):
    torch = pytest.importorskip("torch")
    size, weight_size, options = case
    rng = np.random.default_rng(seed)
    k = weight_size[1] * options["groups"]
    x, w, b = (integers(rng, shape, np.float64) for shape in (size, weight_size, k))
    tx, tw, tb = (torch.tensor(array, requires_grad=True) for array in (x, w, b))
    ty = torch.nn.functional.conv_transpose2d(tx, tw, tb, **options)
    dy = integers(rng, ty.shape, np.float64)
    ty.backward(torch.tensor(dy))
    assert_array_equal(naive.conv_transpose2d(x, w, b, **options), ty.detach())
    assert_array_equal(naive.conv_transpose2d_input(x.shape, w, dy, **options), tx.grad)
    assert_array_equal(naive.conv_transpose2d_weight(x, w.shape, dy, **options), tw.grad)
    y = naive.conv_transpose2d(nhwc(x), w, b, layout="NHWC", **options)
    assert_array_equal(y, nhwc(ty.detach().numpy()))
    if all(extra < u for extra, u in zip(options["output_padding"], options["stride"])):
        assert_array_equal(im2col.conv_transpose2d(x, w, b, **options), ty.detach())


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_transposed_adjoint(layout, rng):
    """<conv_transpose(x, w), dy> = <x, dx> = <w, dw>."""
    x, w = integers(rng, (2, 4, 5, 6)), integers(rng, (4, 3, 3, 2))
    if layout == "NHWC":
        x = nhwc(x)
    options = dict(stride=(2, 3), padding=1, output_padding=1, groups=2, layout=layout)
    y = naive.conv_transpose2d(x, w, **options)
    assert_array_equal(im2col.conv_transpose2d(x, w, np.zeros(6, np.float32), **options), y)
    dy = integers(rng, y.shape)
    total = np.vdot(y, dy)
    assert total == np.vdot(x, naive.conv_transpose2d_input(x.shape, w, dy, **options))
    assert total == np.vdot(w, naive.conv_transpose2d_weight(x, w.shape, dy, **options))


@pytest.mark.parametrize(
    "kernel, options", [((3, 2), {}), ((2, 3), dict(stride=2, padding=(1, 0), dilation=(1, 2)))]
)
def test_columns_equal_torch_unfold(kernel, options, rng):
    torch = pytest.importorskip("torch")
    x = integers(rng, (2, 3, 7, 9), np.float64)
    columns = im2col.im2col(x, kernel, **options)
    assert_array_equal(columns, torch.nn.functional.unfold(torch.tensor(x), kernel, **options))
    folded = torch.nn.functional.fold(torch.tensor(columns), x.shape[2:], kernel, **options)
    assert_array_equal(im2col.col2im(columns, x.shape, kernel, **options), folded)


def test_the_oracles_import_nothing_but_numpy():
    folder = Path(fastconv.reference.__file__).parent
    for path in folder.rglob("*.py"):
        depth = len(path.relative_to(folder).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= depth, f"{path} reaches out of the reference"
                modules = [] if node.level else [node.module]
            else:
                continue
            for name in (module.split(".")[0] for module in modules):
                assert name == "numpy" or name in sys.stdlib_module_names, f"{path} imports {name}"
