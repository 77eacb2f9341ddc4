"""Looking at machine code."""

from __future__ import annotations

import re
from typing import Any

import numba

from fastconv.kernels.jit import Kernel
from fastconv.kernels.simd import vector_unit

REGISTERS = {512: "[zy]", 256: "y", 128: "x"}  # LLVM itself prefers ymm on some AVX-512 machines


def assembly(kernel: Kernel, *args: Any) -> str:
    """The serial twin's assembly for such arguments, compiled afresh: Numba has none of what came from a cache."""
    fresh = numba.njit(nogil=True, error_model="numpy")(kernel.serial.py_func)
    fresh(*args)
    (text,) = fresh.inspect_asm().values()
    return text


def has_vectors(text: str, instructions: str) -> bool:
    """Whether one of the instructions (a pattern, without the prefix v) works on the machine's long vectors."""
    register = REGISTERS[vector_unit().bits]
    return re.search(rf"^\s*v?(?:{instructions})\s.*%{register}mm", text, re.MULTILINE) is not None
