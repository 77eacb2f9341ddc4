"""The gate: every argument is checked and normalised here, in Python, before a kernel starts."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fastconv import memory

Layout = Literal["NCHW", "NHWC"]
LONGEST_SHOWN = 80  # characters of a value in a message
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def array(name: str, value: Any, ndim: int | None = None, dtype: np.dtype | None = None) -> np.ndarray:
    """``value`` as a C-contiguous, native-order float32 or float64 array of rank ``ndim``; refused otherwise.

    A copy where it is strided, byte-swapped, unaligned or in Fortran order. What is read-only comes back as a
    writable alias, for kernels that only read it: to Numba a read-only array is a type of its own.
    """
    if type(value) is np.ndarray:
        array = value
    elif isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked array; fill it first: {name}.filled(0)")
    elif hasattr(value, "detach"):
        raise TypeError(f"{name} must be a NumPy array, got a torch tensor; pass {name}.numpy(), "
                        "or use fastconv.torch")
    else:
        array = _converted(name, value)
    found = array.dtype if array.dtype in FLOATS else array.dtype.newbyteorder("=")
    if found not in FLOATS:
        raise TypeError(_dtype_message(name, found))
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got {array.ndim} (shape {array.shape})")
    if dtype is not None and found != dtype:
        raise TypeError(f"{name} must be {dtype}, as the other arguments, got {found}; "
                        f"write {name}.astype(np.{dtype})")
    if array.flags.carray and found is array.dtype:  # contiguous, aligned and writable
        return array
    array = np.require(array, found, ("C", "A"))
    return array if array.flags.writeable else np.asarray(_Writable(array))


class _Writable:
    """Shows NumPy the memory of a read-only array as writable, and keeps it alive."""

    __slots__ = ("__array_interface__", "array")

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _converted(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} must be an array, got what NumPy cannot make one of: {error}") from None


def _dtype_message(name: str, dtype: np.dtype) -> str:
    if dtype.kind in "iubf":
        return f"{name} must be float32 or float64, got {dtype}; write {name}.astype(np.float32)"
    if dtype.kind == "O":
        return (f"{name} must be float32 or float64, got an object array; "
                "its rows may differ in length or hold something that is not a number")
    return f"{name} must be float32 or float64, got {dtype}"


def same_dtype(arrays: Mapping[str, np.ndarray | None]) -> np.dtype:
    """The dtype that all of these share; refuses a mixture, as torch does."""
    present = {name: value.dtype for name, value in arrays.items() if value is not None}
    first = next(iter(present.values()))
    if any(dtype != first for dtype in present.values()):
        listed = ", ".join(f"{name} {dtype}" for name, dtype in present.items())
        raise TypeError(f"{' and '.join(present)} must have one dtype, got {listed}; "
                        "convert with .astype(np.float32)")
    return first


def shown(value: Any) -> str:
    """``value`` in a message: an array by its shape, and nothing at length."""
    if getattr(value, "shape", ()):
        return f"an array of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN - 3] + "..."


def integer(name: str, value: Any, minimum: int) -> int:
    """``value`` as an int that is at least ``minimum``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_) or number < minimum:
        raise ValueError(f"{name} must be {_kind(minimum)}, got {shown(value)}")
    return number


def pair(name: str, value: Any, minimum: int) -> tuple[int, int]:
    """One integer, or a pair (rows, columns), each at least ``minimum``, as a pair."""
    values = value if isinstance(value, tuple | list) else (value, value)
    try:
        rows, columns = (operator.index(v) for v in values)
    except (TypeError, ValueError):
        rows = columns = minimum - 1
    if min(rows, columns) < minimum or any(isinstance(v, bool) for v in values):
        raise ValueError(f"{name} must be {_kind(minimum)} or a pair of them, got {shown(value)}")
    return rows, columns


def _kind(minimum: int) -> str:
    names = {0: "a non-negative integer", 1: "a positive integer"}
    return names.get(minimum, f"an integer of at least {minimum}")


def layout(value: Any) -> Layout:
    """"NCHW" or "NHWC"."""
    if isinstance(value, np.ndarray) or value not in ("NCHW", "NHWC"):
        raise ValueError(f'layout must be "NCHW" or "NHWC", got {shown(value)}')
    return value


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """``value`` where it is allowed; the error lists what is."""
    if isinstance(value, np.ndarray) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}")
    return value


def shape(name: str, value: np.ndarray, expected: tuple[int, ...], why: str = "") -> None:
    """Refuse an array whose shape is not ``expected``."""
    if value.shape != expected:
        raise ValueError(f"{name} must have shape {expected}{why and ' ' + why}, got {value.shape}")


def output(out: Any, shape: tuple[int, ...], dtype: np.dtype, *inputs: np.ndarray | None) -> np.ndarray:
    """A new array from the pool, or the user's ``out`` once it is known to fit and to overlap no input."""
    if out is None:
        return memory.empty(shape, dtype)
    if type(out) is not np.ndarray:
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.shape != shape or out.dtype != dtype or not out.dtype.isnative:
        raise ValueError(f"out must have shape {shape} and dtype {dtype}, got {out.shape} and {out.dtype}")
    if not out.flags.carray:
        raise ValueError("out must be C-contiguous, aligned and writable")
    if any(other is not None and np.may_share_memory(out, other) for other in inputs):
        raise ValueError("out must not overlap an input")
    return out
