"""What must hold of every operation: any memory layout is right, and the number of threads changes no bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from tests.functional.operations import OPERATIONS, Operation

EACH = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


def strided(array: np.ndarray) -> np.ndarray:
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def unaligned(array: np.ndarray) -> np.ndarray:
    shifted = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


FORMS = {
    "strided": strided,
    "unaligned": unaligned,
    "read-only": read_only,
    "reversed": lambda array: array[::-1].copy()[::-1],
    "fortran": np.asfortranarray,
    "byte-swapped": lambda array: array.astype(array.dtype.newbyteorder("S")),
}


def same(first: Any, second: Any) -> None:
    firsts, seconds = (result if isinstance(result, tuple) else (result,) for result in (first, second))
    for a, b in zip(firsts, seconds, strict=True):
        assert_array_equal(a, b)
        assert a.dtype == b.dtype


@EACH
def test_memory_layout_does_not_matter(operation: Operation, rng: np.random.Generator) -> None:
    arrays = operation.make(rng, 1, np.float32)
    before = [array.copy() for array in arrays]
    expected = operation.run(*arrays)
    for form in FORMS.values():
        same(operation.run(*map(form, arrays)), expected)
    same(tuple(arrays), tuple(before))


@EACH
def test_same_bits_for_any_number_of_threads(operation: Operation, rng: np.random.Generator) -> None:
    arrays = operation.make(rng, 16, np.float32)
    with fastconv.threads(1):
        alone = operation.run(*arrays)
    with fastconv.threads(2):
        same(operation.run(*arrays), alone)
        same(operation.run(*arrays), alone)
