"""What the tests of convolution share: integer operands and the oracle's results for a problem, and layouts."""

from __future__ import annotations

import functools
import zlib
from typing import Any, NamedTuple

import numpy as np

from fastconv.kernels.plan import ConvProblem
from fastconv.reference import im2col, naive
from tests.tolerance import integers

LAYOUTS = ("NCHW", "NHWC")
DTYPES = ("float32", "float64")
NAIVE_LOOPS = 6_000  # products of a filter tap and an output that the plain loops may take


class Case(NamedTuple):
    """Integer operands of one convolution and, from an oracle, its results; all NCHW."""

    x: np.ndarray
    w: np.ndarray
    b: np.ndarray
    dy: np.ndarray
    y: np.ndarray  # without bias
    dx: np.ndarray
    dw: np.ndarray
    db: np.ndarray

    def stored(self, layout: str, dtype: str) -> Case:
        """The same in another layout and dtype."""
        return Case(*(stored(array, layout, dtype) if name in ("x", "dy", "y", "dx") else array.astype(dtype)
                      for name, array in self._asdict().items()))


@functools.lru_cache(maxsize=256)
def case(problem: ConvProblem) -> Case:
    """Operands and results for ``problem``, in float64."""
    return solved(problem, *operands(problem))


def operands(problem: ConvProblem) -> tuple[np.ndarray, ...]:
    """x, w, b, dy: integers that depend on the problem alone, in float64."""
    rng = np.random.default_rng(zlib.crc32(repr(problem).encode()))
    shapes = problem.input_shape(), problem.weight_shape, (problem.k,), problem.output_shape()
    return tuple(integers(rng, shape, np.float64) for shape in shapes)


def solved(problem: ConvProblem, x: np.ndarray, w: np.ndarray, b: np.ndarray, dy: np.ndarray) -> Case:
    """These operands with the results of an oracle: the plain loops, or where they are slow the matrix form."""
    loops = problem.n * problem.k * problem.p * problem.q * problem.r * problem.s
    oracle: Any = naive if loops <= NAIVE_LOOPS else im2col
    options = arguments(problem)
    return Case(x, w, b, dy, oracle.conv2d(x, w, **options), oracle.conv2d_input(x.shape, w, dy, **options),
                oracle.conv2d_weight(x, w.shape, dy, **options), naive.conv2d_bias(dy))


def arguments(problem: ConvProblem) -> dict[str, Any]:
    """The keyword arguments of torch's functions for ``problem``."""
    return {name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups")}


def transposed_arguments(problem: ConvProblem) -> dict[str, Any]:
    """The transposed convolution that gives an image of the problem's size."""
    extra = tuple((size + sum(pads) - d * (t - 1) - 1) % u for size, pads, d, t, u in zip(
        (problem.h, problem.w), problem.padding, problem.dilation, (problem.r, problem.s), problem.stride))
    return dict(arguments(problem), output_padding=extra)


def stored(array: np.ndarray, layout: str, dtype: Any = None) -> np.ndarray:
    """An NCHW array as a contiguous one of ``layout``."""
    turned = array if layout == "NCHW" else array.transpose(0, 2, 3, 1)
    return np.array(turned, dtype, order="C")


def nchw(array: np.ndarray, layout: str) -> np.ndarray:
    """A view of an array of ``layout`` as NCHW."""
    return array if layout == "NCHW" else array.transpose(0, 3, 1, 2)
