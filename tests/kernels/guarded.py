"""Runs every algorithm on arrays between pages that nobody may touch: a read or write out of bounds is a crash.

A program of its own, as a crash takes the process with it: `python -m tests.kernels.guarded [DTYPE,DTYPE [FILE...]]`.
Inputs, output and scratch have exactly the size asked for; what is named last on standard output is what crashed.
Results are held against the oracle on the way.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys

import numpy as np

from fastconv import set_num_threads
from fastconv.kernels import algorithms, gemm
from fastconv.kernels.gemm import Product
from tests.conv_cases import DTYPES, LAYOUTS, case
from tests.tolerance import integers, problems

PAGE = mmap.PAGESIZE
PROT_NONE = 0
LIBC = ctypes.CDLL(None, use_errno=True)


def guarded(array: np.ndarray, at_end: bool) -> np.ndarray:
    """A copy that ends where a forbidden page starts, or starts where one ends."""
    inside = -(-array.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, inside + 2 * PAGE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in first, first + PAGE + inside:
        if LIBC.mprotect(ctypes.c_void_p(page), PAGE, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + (inside - array.nbytes if at_end else 0)
    copy = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy


def guard_scratch(at_end: bool) -> None:
    def scratch(elements: int, dtype: np.dtype) -> np.ndarray:
        return guarded(np.full(elements, np.nan, dtype), at_end)

    algorithms.scratch = gemm.scratch = scratch


def convolutions(names: list[str], dtypes: list[str], at_end: bool) -> None:
    for parameter in problems(*names):
        problem = parameter.values[0]
        for layout, dtype in itertools.product(LAYOUTS, dtypes) if problem.n else ():
            given = case(problem).stored(layout, dtype)
            x, w, dy = (guarded(array, at_end) for array in (given.x, given.w, given.dy))
            calls = {"forward": (given.y, (x, w, None)), "input_gradient": (given.dx, (dy, w)),
                     "filter_gradient": (given.dw, (x, dy))}
            for direction, (expected, operands) in calls.items():
                for algorithm in algorithms.ALGORITHMS[direction]:
                    reason = algorithm.supports(problem, layout, dtype)
                    if reason is not None:
                        continue
                    print(f"{direction} {algorithm.name} {problem} {layout} {dtype}", flush=True)
                    out = guarded(np.full_like(expected, np.nan), at_end)
                    algorithm.make_runner(problem, layout, dtype)(out, *operands)
                    if algorithm.exact:
                        np.testing.assert_array_equal(out, expected)


def products(dtypes: list[str], at_end: bool) -> None:
    rng = np.random.default_rng(0)
    for m, n, steps in (1, 1, 1), (7, 5, 3), (15, 17, 16), (64, 33, 70), (3, 129, 515), (113, 16, 9):
        for dtype, a_turned, b_turned in itertools.product(dtypes, (False, True), (False, True)):
            print(f"product {m}x{n}x{steps} {a_turned} {b_turned} {dtype}", flush=True)
            a, b, bias = (integers(rng, size, dtype) for size in ((m, steps), (steps, n), n))
            c = guarded(np.full((m, n), np.nan, dtype), at_end)
            given = guarded(a.T.copy() if a_turned else a, at_end), guarded(b.T.copy() if b_turned else b, at_end)
            sizes = Product(m, n, steps, *((1, m) if a_turned else (steps, 1)), *((1, steps) if b_turned else (n, 1)),
                            dtype)
            gemm.run(c, *given, guarded(bias, at_end), sizes)
            np.testing.assert_array_equal(c, a @ b + bias)


def pooled(names: list[str], dtypes: list[str], at_end: bool) -> None:
    """Convolutions that pool in the same pass."""
    for parameter, dtype in itertools.product(problems(*names), dtypes):
        problem, window = parameter.values[0], (2, 2)
        if problem.n == 0 or min(problem.p, problem.q) < 2:
            continue
        runs = {direction: algorithms.pooled_runner(direction, problem, "NHWC", dtype, window)
                for direction in ("forward", "filter_gradient")}
        given = case(problem).stored("NHWC", dtype)
        x, w, no_bias = (guarded(array, at_end) for array in (given.x, given.w, np.empty(0, dtype)))
        size = problem.n, problem.p // window[0], problem.q // window[1], problem.k
        if runs["forward"]:
            print(f"pooled forward {problem} {dtype}", flush=True)
            y, where = (guarded(np.full(size, 7, kind), at_end) for kind in (dtype, np.uint8))
            runs["forward"](y.reshape(-1), where.reshape(-1), x, w, no_bias, 0)
            rows, columns = (slice(0, size[axis + 1] * window[axis]) for axis in (0, 1))
            cells = given.y[:, rows, columns].reshape(size[0], size[1], window[0], size[2], window[1], size[3])
            np.testing.assert_array_equal(y, cells.max((2, 4)))
        if runs["filter_gradient"]:
            print(f"pooled filter_gradient {problem} {dtype}", flush=True)
            dy, where = (guarded(np.ones(size, kind), at_end) for kind in (dtype, np.uint8))
            dw = guarded(np.full_like(given.dw, np.nan), at_end)
            runs["filter_gradient"](dw, x, (dy.reshape(-1), where.reshape(-1)))
            assert np.isfinite(dw).all()


if __name__ == "__main__":
    set_num_threads(1)
    chosen = sys.argv[1].split(",") if sys.argv[1:] else list(DTYPES)
    for end in True, False:
        guard_scratch(end)
        products(chosen, end)
        convolutions(sys.argv[2:], chosen, end)
        pooled(sys.argv[2:], chosen, end)
    print("no crash, all right")
