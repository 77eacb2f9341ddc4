"""What is measured: one operation on one problem, its arrays, its useful work, and its right result."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastconv.bench.layers import LAYERS, statistics_and_labels
from fastconv.kernels.plan import ConvProblem
from fastconv.reference import im2col
from fastconv.reference.tolerance import WINOGRAD_TERMS, bound

SECONDS_A_NAIVE_STEP = 2e-6  # of the naive convolution's innermost loop
NAIVE_SECONDS = 0.3  # the batch is cut so that the naive path takes about that long


class Operation(NamedTuple):
    """Arrays by the names that kernels use."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    is_convolution: bool = True


OPERATIONS = {
    "forward": Operation(("x", "w", "b"), ("y",)),
    "input_gradient": Operation(("dy", "w"), ("x",)),
    "filter_gradient": Operation(("x", "dy"), ("w",)),
    "max_pool": Operation(("x",), ("y", "positions"), is_convolution=False),
    "max_pool_gradient": Operation(("dy", "positions"), ("x",), is_convolution=False),
    **{op: Operation(layer.reads, layer.writes, is_convolution=False) for op, layer in LAYERS.items()},
}
CONVOLUTIONS = tuple(op for op, operation in OPERATIONS.items() if operation.is_convolution)
MAX_POOLS = tuple(op for op in OPERATIONS if op.startswith("max_pool"))
AVERAGE_POOLS = tuple(op for op in OPERATIONS if op.startswith("avg_pool"))


def first(result: Any) -> Any:
    """What is compared of a result with more in it."""
    return result[0] if isinstance(result, tuple) else result


@dataclass(frozen=True)
class Case:
    """One operation on one problem; of a pool the problem gives image and window, of a layer the image alone."""

    op: str
    name: str
    problem: ConvProblem
    layout: str = "NCHW"
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"op={self.op}-problem={self.name}"

    @property
    def images(self) -> int:
        """The batch."""
        return self.problem.n

    @property
    def text(self) -> str:
        """The problem string."""
        return str(self.problem)

    def as_json(self) -> dict[str, Any]:
        """What the worker makes it from."""
        return {**vars(self), "problem": self.text}

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Stride, padding and dilation; problem strings know only even padding."""
        top, left = (pads[0] for pads in self.problem.padding)
        return self.problem.stride, (top, left), self.problem.dilation

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Rows and columns of the kernel or window."""
        return self.problem.r, self.problem.s

    @property
    def flops(self) -> int:
        """Useful floating-point operations, padding counted as work; 0 for pools."""
        return 2 * self.problem.multiply_adds if OPERATIONS[self.op].is_convolution else 0

    @property
    def bytes(self) -> int:
        """Every tensor once: what must move where no cache holds it."""
        operation, item = OPERATIONS[self.op], np.dtype(self.dtype).itemsize
        sizes = {name: math.prod(shape) for name, shape in self._shapes().items()}
        return sum(sizes[name] * (1 if name == "positions" else item)
                   for name in operation.reads + operation.writes)

    @property
    def result_bytes(self) -> int:
        """Size of what the operation returns."""
        shape = self._shapes()[OPERATIONS[self.op].writes[0]]
        return math.prod(shape) * np.dtype(self.dtype).itemsize

    @property
    def im2col_bytes(self) -> int:
        """Size of the matrix that the im2col path makes."""
        return im2col.im2col_bytes(self.problem.input_shape(self.layout), self.kernel_size, *self.window,
                                   layout=self.layout, dtype=np.dtype(self.dtype))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        output = self.problem.output_shape(self.layout)
        return {"x": self.problem.input_shape(self.layout), "w": self.problem.weight_shape,
                "b": (self.problem.k,), "y": output, "dy": output, "positions": output}

    def arrays(self) -> SimpleNamespace:
        """x, w, b and dy, uniform in [-1, 1), the same in every process; positions where a gradient reads them."""
        rng = np.random.default_rng(zlib.crc32(f"{self.problem} {self.layout}".encode()))
        shapes = self._shapes()
        arrays = SimpleNamespace(**{
            name: (rng.random(shapes[name], np.float32) * 2 - 1).astype(self.dtype, copy=False)
            for name in ("x", "w", "b", "dy")})
        if "positions" in OPERATIONS[self.op].reads:
            _, arrays.positions = im2col.max_pool2d_with_positions(
                arrays.x, self.kernel_size, *self.window, layout=self.layout)
        if self.op in LAYERS:
            vars(arrays).update(statistics_and_labels(self, arrays.x))
        return arrays

    def expected(self) -> np.ndarray:
        """The result by way of im2col, image by image, so that its matrix stays small; of a layer by plain NumPy."""
        if self.op in LAYERS:
            return first(LAYERS[self.op].naive(self, self.arrays())())
        a, window, layout = self.arrays(), (*self.window, self.problem.groups), self.layout
        kernel_size, moves = self.kernel_size, self.window
        one = (1, *a.x.shape[1:])
        images = {
            "forward": lambda n: im2col.conv2d(a.x[n], a.w, a.b, *window, layout=layout),
            "input_gradient": lambda n: im2col.conv2d_input(one, a.w, a.dy[n], *window, layout=layout),
            "filter_gradient": lambda n: im2col.conv2d_weight(a.x[n], a.w.shape, a.dy[n], *window, layout=layout),
            "max_pool": lambda n: im2col.max_pool2d(a.x[n], kernel_size, *moves, layout=layout),
            "max_pool_gradient": lambda n: im2col.max_pool2d_grad(
                one, a.positions[n], a.dy[n], kernel_size, *moves, layout=layout),
        }[self.op]
        results = [images(slice(n, n + 1)) for n in range(self.problem.n)]
        return np.sum(results, axis=0) if self.op == "filter_gradient" else np.concatenate(results)

    def bound(self, expected: np.ndarray) -> float:
        """How far a right result may lie from the expected one."""
        if self.op in LAYERS:
            return bound(LAYERS[self.op].terms, expected)
        p = self.problem
        one = np.ones(1, self.dtype)  # no element is larger
        terms = {
            "forward": p.c // p.groups * p.r * p.s + 1,
            "input_gradient": p.k // p.groups * p.r * p.s,
            "filter_gradient": p.n * p.p * p.q,
            "max_pool": -1,  # none: it is exact
            "max_pool_gradient": p.r * p.s,
        }[self.op]
        winograd = bound(WINOGRAD_TERMS, expected) if OPERATIONS[self.op].is_convolution else 0.0
        return max(bound(terms, one, one), winograd)

    def for_path(self, path: str) -> Case:
        """The case as ``path`` can run it: naive, on as many images as take about NAIVE_SECONDS."""
        if path != "naive" or not OPERATIONS[self.op].is_convolution:
            return self
        p = self.problem
        seconds = p.k * p.p * p.q * p.r * p.s * SECONDS_A_NAIVE_STEP  # an image
        images = max(1, min(p.n, int(NAIVE_SECONDS / seconds)))
        if images == p.n:
            return self
        problem = replace(p, n=images)
        return replace(self, name=str(problem), problem=problem)
