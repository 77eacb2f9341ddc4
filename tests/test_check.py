"""The gate: what it lets through, as what, and what it says to everything else."""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv import check

FLOAT32 = np.dtype(np.float32)


def values(dtype=np.float32) -> np.ndarray:
    return np.arange(24, dtype=dtype).reshape(2, 3, 4)


def unaligned(array: np.ndarray) -> np.ndarray:
    """The same values one byte off their natural address."""
    raw = np.empty(array.nbytes + 1, np.uint8)[1:]
    raw[:] = array.reshape(-1).view(np.uint8)
    found = raw.view(array.dtype).reshape(array.shape)
    assert not found.flags.aligned
    return found


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


KINDS = {
    "contiguous": lambda a: a.copy(),
    "sliced": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "fortran": np.asfortranarray,
    "transposed": lambda a: a.T.copy().T,
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "swapped_sliced": lambda a: np.repeat(a, 2, axis=0).astype(a.dtype.newbyteorder())[::2],
    "unaligned": unaligned,
    "read_only": read_only,
    "read_only_sliced": lambda a: read_only(np.repeat(a, 2, axis=-1))[..., ::2],
    "read_only_swapped": lambda a: read_only(a.astype(a.dtype.newbyteorder())),
    "subclass": lambda a: a.view(type("Mine", (np.ndarray,), {})),
    "list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_array(kind, dtype):
    """One type reaches the kernels, whatever came: plain, contiguous, aligned, native, writable."""
    given = KINDS[kind](values(dtype))
    expected = np.array(given, dtype)
    found = check.array("input", given, 3)
    assert type(found) is np.ndarray
    assert found.flags.carray
    assert found.dtype == (np.float64 if kind == "list" else dtype) and found.dtype.isnative
    assert_array_equal(found, expected)
    assert_array_equal(np.array(given, dtype), expected)


def test_no_copy_where_none_is_needed():
    given = values()
    assert check.array("input", given) is given
    locked = read_only(given)
    found = check.array("input", locked)
    assert np.shares_memory(found, locked)
    assert found.flags.writeable and not locked.flags.writeable
    for other in (check.array("input", KINDS[kind](given)) for kind in ("sliced", "swapped", "unaligned", "fortran")):
        assert not np.shares_memory(other, given)


def test_alias_keeps_its_memory():
    found = check.array("input", read_only(values()))  # the array itself is gone
    assert_array_equal(found, values())


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1, 1, 1)])
@pytest.mark.parametrize("kind", ["read_only", "swapped", "contiguous"])
def test_rank_is_kept(shape, kind):
    assert check.array("input", KINDS[kind](np.ones(shape, np.float32))).shape == shape


class Tensor:
    def detach(self):
        return self


@pytest.mark.parametrize("value, message", [
    (np.ones(3, int), "input must be float32 or float64, got int64; write input.astype(np.float32)"),
    (np.ones(3, np.uint8), "got uint8; write input.astype(np.float32)"),
    (np.ones(3, bool), "got bool; write input.astype(np.float32)"),
    (np.ones(3, ">i2"), "got int16; write input.astype(np.float32)"),
    (np.ones(3, np.float16), "input must be float32 or float64, got float16; write input.astype(np.float32)"),
    (np.ones(3, complex), "input must be float32 or float64, got complex128"),
    ("text", "input must be float32 or float64, got <U4"),
    (None, "got an object array; its rows may differ in length or hold something that is not a number"),
    (np.array([1.0, None]), "got an object array"),
    (np.ma.ones(3), "input must be a plain array, got a masked array; fill it first: input.filled(0)"),
    (Tensor(), "input must be a NumPy array, got a torch tensor; pass input.numpy(), or use fastconv.torch"),
])
def test_type_refused(value, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        check.array("input", value)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_tensor():
    import torch
    with pytest.raises(TypeError, match="input must be a NumPy array, got a torch tensor"):
        check.array("input", torch.ones(3))


def test_rows_of_uneven_length():
    with pytest.raises(ValueError, match="input must be an array, got what NumPy cannot make one of"):
        check.array("input", [[1.0, 2.0], [3.0]])


def test_rank_and_dtype_refused():
    with pytest.raises(ValueError, match=re.escape("input must have 4 dimensions, got 3 (shape (2, 3, 4))")):
        check.array("input", values(), 4)
    message = "weight must be float32, as the other arguments, got float64; write weight.astype(np.float32)"
    with pytest.raises(TypeError, match=re.escape(message)):
        check.array("weight", values(np.float64), dtype=FLOAT32)
    assert check.array("weight", values().astype(">f4"), dtype=FLOAT32).dtype == FLOAT32


def test_same_dtype():
    assert check.same_dtype({"input": values(), "weight": values(), "bias": None}) == FLOAT32
    message = ("input and weight must have one dtype, got input float32, weight float64; "
               "convert with .astype(np.float32)")
    with pytest.raises(TypeError, match=re.escape(message)):
        check.same_dtype({"input": values(), "bias": None, "weight": values(np.float64)})


def test_integer():
    assert check.integer("groups", np.int8(3), 1) == 3
    assert type(check.integer("groups", np.int8(3), 1)) is int


@pytest.mark.parametrize("value", [0, -2, 1.0, True, np.True_, "1", None, (1,), float("nan")])
def test_integer_refused(value):
    with pytest.raises(ValueError, match=re.escape(f"groups must be a positive integer, got {value!r}")):
        check.integer("groups", value, 1)


def test_minimum_is_named():
    with pytest.raises(ValueError, match="p must be a non-negative integer, got -1"):
        check.integer("p", -1, 0)
    with pytest.raises(ValueError, match="size must be an integer of at least 2, got 1"):
        check.integer("size", 1, 2)


@pytest.mark.parametrize("value, found", [(2, (2, 2)), ((2, 3), (2, 3)), ([2, 3], (2, 3)), (np.int64(4), (4, 4))])
def test_pair(value, found):
    assert check.pair("stride", value, 1) == found


@pytest.mark.parametrize("value", [0, (1, 0), (1, -1), (1,), (1, 2, 3), (), 1.5, (1, 1.0), True, (1, True), "12", None,
                                   {1, 2}, ((1, 1), (1, 1))])
def test_pair_refused(value):
    with pytest.raises(ValueError, match=re.escape(
            f"stride must be a positive integer or a pair of them, got {value!r}")):
        check.pair("stride", value, 1)


def test_layout():
    assert check.layout("NHWC") == "NHWC"
    for value in "nhwc", "NCHW ", None, 3:
        with pytest.raises(ValueError, match=re.escape(f'layout must be "NCHW" or "NHWC", got {value!r}')):
            check.layout(value)


def test_one_of():
    assert check.one_of("reduction", "sum", ("mean", "sum")) == "sum"
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', got 'max'"):
        check.one_of("reduction", "max", ("mean", "sum"))


def test_shape():
    check.shape("bias", np.ones(3), (3,))
    with pytest.raises(ValueError, match=re.escape("bias must have shape (3,) (one a channel), got (4,)")):
        check.shape("bias", np.ones(4), (3,), "(one a channel)")
    with pytest.raises(ValueError, match=re.escape("bias must have shape (3,), got (4,)")):
        check.shape("bias", np.ones(4), (3,))


def test_output_made():
    found = check.output(None, (2, 3), FLOAT32)
    assert (found.shape, found.dtype) == ((2, 3), FLOAT32)
    assert check.output(found, (2, 3), FLOAT32, np.ones(3), None) is found


@pytest.mark.parametrize("out, error, message", [
    ([[0.0] * 3] * 2, TypeError, "out must be a NumPy array, got list"),
    (np.ma.ones((2, 3), np.float32), TypeError, "out must be a NumPy array, got MaskedArray"),
    (np.ones((3, 2), np.float32), ValueError, "out must have shape (2, 3) and dtype float32, got (3, 2) and float32"),
    (np.ones((2, 3)), ValueError, "out must have shape (2, 3) and dtype float32, got (2, 3) and float64"),
    (np.ones((2, 3), ">f4"), ValueError, "out must have shape (2, 3) and dtype float32, got (2, 3) and >f4"),
    (np.ones((3, 2), np.float32).T, ValueError, "out must be C-contiguous, aligned and writable"),
    (read_only(np.ones((2, 3), np.float32)), ValueError, "out must be C-contiguous, aligned and writable"),
    (unaligned(np.ones((2, 3), np.float32)), ValueError, "out must be C-contiguous, aligned and writable"),
])
def test_output_refused(out, error, message):
    with pytest.raises(error, match=re.escape(message)):
        check.output(out, (2, 3), FLOAT32)


def test_output_that_overlaps():
    buffer = np.zeros(20, np.float32)
    out = buffer[:6].reshape(2, 3)
    assert check.output(out, (2, 3), FLOAT32, buffer[6:]) is out
    for other in buffer[5:8], buffer[::7], check.array("input", read_only(buffer)[:0]), buffer:
        if np.may_share_memory(out, other):
            with pytest.raises(ValueError, match="out must not overlap an input"):
                check.output(out, (2, 3), FLOAT32, np.ones(2), other)


@pytest.mark.parametrize(("value", "text"), [
    (3, "3"),
    ("NHCW", "'NHCW'"),
    (np.float32(1.5), repr(np.float32(1.5))),
    (np.ones((2, 3)), "an array of shape (2, 3)"),
    (list(range(1000)), str(list(range(1000)))[:77] + "..."),
    ([np.ones((9, 9))], " ".join(repr([np.ones((9, 9))]).split())[:77] + "..."),
])
def test_shown(value, text):
    """A message stays one line, whatever was passed."""
    assert check.shown(value) == text


@pytest.mark.parametrize("refuse", [
    lambda value: check.integer("groups", value, 1),
    lambda value: check.pair("stride", value, 1),
    lambda value: check.layout(value),
    lambda value: check.one_of("reduction", value, ("mean", "sum")),
])
def test_an_array_instead_of_an_option(refuse):
    with pytest.raises(ValueError, match=re.escape("got an array of shape (2, 3)")):
        refuse(np.ones((2, 3)))
