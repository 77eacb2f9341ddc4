"""Pools and activations compiled for machines with shorter vectors, and without fused multiply-add."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
from fastconv import functional, grad
from fastconv.kernels.simd import vector_unit
from fastconv.reference import naive

rng = np.random.default_rng(0)
assert vector_unit().bits == {bits}
for layout, shape in (("NCHW", (2, 3, 12, 45)), ("NHWC", (2, 12, 9, 20))):
    for options in ((2, 2, 0), (3, 2, 1)):
        x = rng.integers(-4, 5, shape).astype(np.float32)
        y, positions = functional.max_pool2d_with_positions(x, *options, layout=layout)
        expected, places = naive.max_pool2d_with_positions(x, *options, layout=layout)
        assert (y == expected).all() and (positions == places).all()
        dx = grad.max_pool2d(x.shape, positions, y, *options, layout=layout)
        assert (dx == naive.max_pool2d_grad(x.shape, positions, y, *options, layout=layout)).all()
x = np.linspace(-20, 20, 10_001, dtype=np.float32)
for name in ("tanh", "sigmoid"):
    exact = getattr(naive, name)(x.astype(np.float64))
    ulps = np.abs(getattr(functional, name)(x) - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert ulps.max() < 3, (name, ulps.max())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 machines")
@pytest.mark.parametrize("cpu, bits", [("haswell", 256), ("generic", 128)])
def test_shorter_vectors(cpu, bits):
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    result = subprocess.run([sys.executable, "-c", PROGRAM.format(bits=bits)], env=environment, text=True,
                            capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr
