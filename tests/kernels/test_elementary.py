"""exp, log, log1p, tanh and sigmoid against NumPy in a longer format, everywhere, and in vectors."""

from __future__ import annotations

import platform
import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv.kernels import elementary
from fastconv.kernels.activation import elementwise
from tests.kernels.assembly import assembly, has_vectors

LONGER = {np.float32: np.float64, np.float64: np.longdouble}
BITS = {np.float32: np.int32, np.float64: np.int64}
ULPS = {"exp": 1, "log": 1, "log1p": 1.5, "tanh": 3, "sigmoid": 3}
REFERENCE = {"exp": np.exp, "log": np.log, "log1p": np.log1p, "tanh": np.tanh,
             "sigmoid": lambda x: np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))}


@elementwise
def exp(x):
    return elementary.exp(x)


@elementwise
def log(x):
    return elementary.log(x)


@elementwise
def log1p(x):
    return elementary.log1p(x)


@elementwise
def tanh(x):
    return elementary.tanh(x)


@elementwise
def sigmoid(x):
    return elementary.sigmoid(x)


KERNELS = {"exp": exp, "log": log, "log1p": log1p, "tanh": tanh, "sigmoid": sigmoid}
EACH = pytest.mark.parametrize("name", KERNELS)
DTYPES = pytest.mark.parametrize("dtype", LONGER)


def computed(name: str, x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    KERNELS[name].serial(y, x)
    return y


def points(rng: np.random.Generator, dtype: type) -> np.ndarray:
    """Any bit pattern at all, the ranges where results change, and a fine grid round zero and one."""
    info, limit = np.iinfo(BITS[dtype]), 110 if dtype == np.float32 else 760
    return np.concatenate([
        rng.integers(info.min, info.max, 200_000, BITS[dtype]).view(dtype), rng.uniform(-limit, limit, 100_000),
        rng.normal(0, 2, 100_000), rng.uniform(0, 2, 100_000),
        rng.choice([-1, 1], 100_000) * 10.0**rng.uniform(-12, 0, 100_000)], dtype=dtype, casting="unsafe")


@EACH
@DTYPES
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_within_units_in_the_last_place(name, dtype, rng):
    if np.finfo(LONGER[dtype]).eps > np.finfo(dtype).eps / 1000:
        pytest.skip("no longer format here")
    x = points(rng, dtype)
    x = x[x >= -1] if name == "log1p" else x
    exact = REFERENCE[name](x.astype(LONGER[dtype]))
    rounded, y = exact.astype(dtype), computed(name, x)
    finite = np.isfinite(rounded)
    assert_array_equal(y[~finite], rounded[~finite])
    ulps = np.abs(y[finite] - exact[finite]) / np.spacing(np.abs(rounded[finite]))
    assert ulps.max() <= ULPS[name]


@EACH
@DTYPES
def test_special_numbers(name, dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, -2.0], dtype)
    nan, inf = np.nan, np.inf
    expected = {"exp": [nan, inf, 0, 1, 1], "log": [nan, inf, nan, -inf, -inf, nan],
                "log1p": [nan, inf, nan, 0, 0, nan], "tanh": [nan, 1, -1, 0, -0.0],
                "sigmoid": [nan, 1, 0, 0.5, 0.5]}[name]
    y = computed(name, x)[:len(expected)]
    assert_array_equal(y, np.array(expected, dtype))
    if name == "tanh":
        assert np.signbit(y[4]) and not np.signbit(y[3])


def test_denormal_results():
    x = np.linspace(-103, -88, 1000, dtype=np.float32)
    y = computed("exp", x)
    assert (y > 0).all()
    assert (np.abs(y - np.exp(x.astype(np.float64))) <= np.spacing(np.float32(0))).all()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 registers")
@EACH
@DTYPES
def test_vector_code(name, dtype):
    x = np.zeros(8, dtype)
    text = assembly(KERNELS[name], x, x)
    suffix = "ps" if dtype == np.float32 else "pd"
    assert has_vectors(text, rf"f\w*m?add\w*{suffix}|mul{suffix}")
    assert not re.search(r"\$(?:exp|log|log1p|tanh|fma)f?\b", text), "calls the C library"
