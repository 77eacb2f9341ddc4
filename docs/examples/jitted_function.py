"""Kernels called from your own ``@njit`` function: no Python between them."""

import numpy as np
from numba import njit

from fastconv.functional import conv2d
from fastconv.kernels import algorithms
from fastconv.kernels.activation import relu
from fastconv.kernels.plan import ConvProblem

problem = ConvProblem.parse("n8c3h16w16k8r3s3p1")
run = algorithms.runner("forward", problem, "NCHW", "float32", "direct")
correlate = run.kernel  # that of the algorithm which fits the problem best
arguments = run.arguments(workers=2)  # geometry, tables, scratch


@njit
def convolve_and_rectify(y, x, w, b, arguments):
    correlate(y, x, w, b, *arguments)
    relu(y.reshape(-1), y.reshape(-1))


rng = np.random.default_rng(0)
x = rng.standard_normal(problem.input_shape(), np.float32)
w = rng.standard_normal(problem.weight_shape, np.float32)
b = rng.standard_normal(problem.k, np.float32)
y = np.empty(problem.output_shape(), np.float32)
convolve_and_rectify(y, x, w, b, arguments)
assert np.array_equal(y, np.maximum(conv2d(x, w, b, padding=1, algorithm="direct"), 0))
print(f"{y.size:,} outputs, {np.mean(y > 0):.0%} positive")
