"""The kernels' loops are vector code: one representative of each kind of loop."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest

from fastconv import pooling
from fastconv.kernels import activation, loss, norm, optim, pool, pool_average
from fastconv.kernels.pool_tile import VECTOR_BYTES
from fastconv.kernels.simd import vector_unit
from tests.kernels.assembly import assembly, has_vectors

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 registers")
X = np.zeros(512, np.float32)


def zeros(dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(512, dtype)


ROWS = np.zeros(8, np.int64)
ONE = np.float32(1)
CASES = {  # a kernel, the instructions it must have (in exponentials there are shifts), arguments
    "relu": (activation.relu, "max|cmp|and", (zeros(), X)),
    "relu_gradient": (activation.relu_gradient, "cmp|blend|and", (zeros(), X, X)),
    "softmax": (activation.softmax, "max pslld", (zeros(), X, 64, 8)),
    "softmax_gradient": (activation.softmax_gradient, "fmadd|mul", (zeros(), X, X, 64, 8)),
    "log_softmax": (activation.log_softmax, "max pslld sub", (zeros(), X, 64, 8)),
    "log_softmax_gradient": (activation.log_softmax_gradient, "pslld fn?madd|mul", (zeros(), X, X, 64, 8)),
    "dropout": (activation.dropout, "psrlq", (zeros(), zeros(np.uint8), X, np.uint64(1), np.uint64(2), np.float32(2))),
    "cross_entropy": (
        loss.cross_entropy, "max pslld fmadd|mul",
        (zeros(), X, ROWS, np.ones(64, np.float32), np.float32(64), np.float32(0), 8)),
    "cross_entropy_with_gradient": (
        loss.cross_entropy_with_gradient, "max pslld fmadd|mul",
        (zeros(), zeros(), X, ROWS, np.ones(64, np.float32), np.float32(64), np.float32(0), np.ones(8, np.float32), 8)),
    "binary_cross_entropy": (loss.binary_cross_entropy, "mul", (zeros(), X, X)),
    "plane_moments": (norm.plane_moments, "cvtps2 fmadd|mul", (np.zeros(8), np.zeros(8), X, 64, 8)),
    "plane_products": (norm.plane_products, "cvtps2 fmadd|mul", (np.zeros(8), np.zeros(8), X, X, X[:8], 64, 8)),
    "pixel_moments": (norm.pixel_moments, "cvtps2 fmadd|mul", (np.zeros(64), np.zeros(64), X, 64, 8)),
    "pixel_products": (norm.pixel_products, "cvtps2 fmadd|mul", (np.zeros(64), np.zeros(64), X, X, X[:64], 64, 8)),
    "normalise_pixels": (norm.normalise_pixels, "mul|fm?add", (zeros(), X, X[:64], X[:64], X[:64], 64, 8)),
    "channel_norm": (norm.channel_norm, "cvtps2 fmadd|mul", (
        zeros(), np.zeros(8), np.zeros(8), *np.zeros((2, 4)), X, X[:4], X[:4], 1e-5, 64)),
    "channel_gradient": (norm.channel_gradient, "cvtps2 fmadd|mul", (
        zeros(), *np.zeros((2, 4)), X, X, X[:4], np.ones(4), X[:4], 64)),
    "adam": (optim.adam, "sqrt div", (zeros(), zeros(), zeros(), X, *[ONE] * 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_loops(name):
    kernel, instructions, args = CASES[name]
    if name == "dropout" and vector_unit().bits < 256:
        pytest.skip("two products of 64 bits are not worth a vector of 128")
    text = assembly(kernel, *args)
    for one in instructions.split():
        assert has_vectors(text, rf"(?:{one})\w*"), one


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("options", [(2, 2), (3, 2)], ids=str)
def test_max_pool_tiles(options, layout):
    """No scalar path but the one for the rim: a vector maximum forward, a comparison of positions backward."""
    shape = (1, 2, 12, 40) if layout == "NCHW" else (1, 12, 40, 32)
    kernel_size, stride = options
    step, window = stride if layout == "NCHW" else 1, (kernel_size, kernel_size)
    inside = (pool.max_pool_planes(step, window, VECTOR_BYTES) if layout == "NCHW"
              else pool.max_pool_pixels(window, VECTOR_BYTES))
    for padding, forward in (1, pool.max_pool(layout, step, window, VECTOR_BYTES)), (0, inside):
        found = pooling.max_pool(shape, kernel_size, stride, padding, 1, False, layout)
        x, y = np.zeros(shape, np.float32), np.zeros(found.output_size, np.float32)
        positions = np.zeros(y.shape, np.uint8)
        text = assembly(forward, y.reshape(-1), positions.reshape(-1), x.reshape(-1), *found.plan.forward)
        assert has_vectors(text, "maxps")
    backward = pool.max_pool_gradient(layout, step, kernel_size == stride, None)
    text = assembly(backward, x.reshape(-1), positions.reshape(-1), y.reshape(-1), *found.plan.backward)
    assert "pcmpeqb" in text
    assert has_vectors(text, "mov[au]ps")


@pytest.mark.parametrize("options", [(2, 2, 0), (3, 1, 1), (7, 7, 0)], ids=str)
def test_average_pool_of_planes(options):
    """A sum and a quotient of whole vectors, forward; sums and a shuffle backward."""
    shape = (1, 2, 14, 40)
    found = pooling.average_pool(shape, *options, False, True, None, "NCHW", "f")
    x, y = np.zeros(shape, np.float32), np.zeros(found.output_size, np.float32)
    kernel_size, stride, _ = options
    forward = pool_average.average_planes_regular(stride, kernel_size, kernel_size)
    text = assembly(forward, y.reshape(-1), x.reshape(-1), *found.plan.forward)
    assert has_vectors(text, "addps")
    assert has_vectors(text, "divps")
    most = -(-kernel_size // stride)
    backward = pool_average.average_planes_regular_gradient(stride, kernel_size, most)
    assert has_vectors(assembly(backward, x.reshape(-1), y.reshape(-1), *found.plan.backward), "divps")
