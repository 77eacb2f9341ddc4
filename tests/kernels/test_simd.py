"""The micro-kernel: what it computes, and that its machine code is vector multiply-adds and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv.kernels import jit
from fastconv.kernels.blocking import PAGE_BYTES, most_rows
from fastconv.kernels.simd import (
    LINE_BYTES,
    Tile,
    address,
    call_tile,
    compile_tile,
    fetch_add,
    transpose_block,
    vector_unit,
)
from tests.conv_cases import DTYPES
from tests.tolerance import integers

X86 = vector_unit().name in ("AVX-512", "AVX2 + FMA", "SSE2")


def tiles() -> list[Tile]:
    """The tallest tile of each width, and one over two image rows, with steps as far as a row of channels."""
    found = []
    for dtype in DTYPES:
        for vectors in 1, 2, 3, 4:
            rows = most_rows(vectors)
            found.append(Tile(dtype, rows, vectors, 64))
            found.append(Tile(dtype, rows, vectors, 1, a_step=rows, b_step=40))
            found.append(Tile(dtype, rows, vectors, 1, a_step=rows, b_step=40, ahead=22))
            found.append(Tile(dtype, rows, vectors, 64, b_ahead=PAGE_BYTES))
            if rows > 1:
                found.append(Tile(dtype, rows // 2, vectors, 1, 2, 400))
    return found


def named(tile: Tile) -> str:
    return f"{tile.name}-{tile.row_step}"


def inner_loop(assembly: str, having: str = "") -> list[str]:
    """Instructions of the shortest loop with a line that matches ``having``: from its label to the jump back."""
    lines = [line.split("#")[0].strip() for line in assembly.splitlines()]
    labels = {line[:-1]: number for number, line in enumerate(lines) if re.fullmatch(r"\.LBB\w+:", line)}
    jumps = [(labels[target], number) for number, line in enumerate(lines)
             for target in re.findall(r"^j[a-z]+\s+(\.LBB\w+)", line) if labels.get(target, number) < number]
    jumps = [(first, last) for first, last in jumps if any(re.match(having, line) for line in lines[first:last])]
    first, last = min(jumps, key=lambda span: span[1] - span[0])
    return [line for line in lines[first + 1:last] if line and not line.startswith(".")]


@pytest.mark.skipif(not X86, reason="reads x86 assembly")
@pytest.mark.parametrize("tile", tiles(), ids=named)
def test_machine_code(tile, monkeypatch):
    """The loop has one multiply-add for each accumulator, in full vectors, and no accumulator on the stack."""
    monkeypatch.setattr(jit, "cache_folder", lambda: None)
    loop = inner_loop(compile_tile.__wrapped__(tile).assembly)
    register = {512: "zmm", 256: "ymm", 128: "xmm"}[vector_unit().bits]
    precision = {"float32": "s", "float64": "d"}[tile.dtype]
    products = rf"(vfn?madd\w+|{'-' if vector_unit().fma else 'mul'})p{precision}\s.*%{register}"
    assert sum(bool(re.match(products, line)) for line in loop) == tile.groups * tile.rows * tile.vectors, loop
    assert not [line for line in loop if re.match(r"v?(f\w+|mul|add|sub)s[sd]\s", line)], "scalar arithmetic"
    assert not [line for line in loop if re.search(r"\(%r[sb]p|call", line)], "spills or calls"
    if tile.vectors > 1:
        assert sum("{1to" in line for line in loop) == tile.folded * tile.vectors
    of_b = len(range(0, tile.width * np.dtype(tile.dtype).itemsize, LINE_BYTES)) if tile.b_ahead else 0
    assert sum(line.startswith("prefetch") for line in loop) == bool(tile.ahead) + of_b


@pytest.mark.parametrize("accumulate", [0, 1])
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("groups, group_step", [(1, 0), (2, 29)])
@pytest.mark.parametrize("a_step, b_step, ahead, b_ahead", [
    (0, 0, 0, 0), (3, 0, 0, 0), (0, 7, 0, 0), (2, 5, 0, 0), (2, 5, 1 << 30, 0), (0, 0, 0, 1 << 30)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tile(dtype, a_step, b_step, ahead, b_ahead, groups, group_step, steps, accumulate, rng):
    """C[i][v] (+)= sum over t of A[i row_step + a[t]] B[b[t] + v], at offsets in no order, or those of the steps.

    Nothing else is written, and what is fetched ahead need not be the process's.
    """
    tile = Tile(dtype, 3, 2, row_step=4, groups=groups, group_step=group_step, a_step=a_step, b_step=b_step,
                ahead=ahead, b_ahead=b_ahead)
    a, b = integers(rng, 64, dtype), integers(rng, 5 * tile.width + 28, dtype)
    c = integers(rng, (groups * 3 + 2, tile.width + 1), dtype)
    a_offsets, b_offsets = rng.permutation(20)[:steps], rng.integers(0, 4 * tile.width, steps)
    table = (np.stack([a_offsets, b_offsets], axis=1) * a.itemsize).astype(np.int32)
    expected = c.copy()
    if a_step:
        a_offsets = np.arange(steps) * a_step
    if b_step:
        b_offsets = np.arange(steps) * b_step
    for row in range(groups * 3):
        first = row // 3 * group_step + row % 3 * 4
        product = sum((a[first + i] * b[j:j + tile.width] for i, j in zip(a_offsets, b_offsets)), np.zeros(tile.width))
        expected[row, :-1] = product + accumulate * c[row, :-1]
    _run_tile(compile_tile(tile).address, a, b, table, steps, c, accumulate)
    assert_array_equal(c, expected)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tile_begins_from_numbers(dtype, steps, across, rng):
    """One a row, or one a column."""
    tile = Tile(dtype, 3, 2, row_step=4, a_step=1, b_step=64, across=across)
    a, b = integers(rng, 64, dtype), integers(rng, 5 * 64, dtype)
    numbers = integers(rng, tile.width if across else 3, dtype)
    c = np.full((3, tile.width), np.nan, dtype)
    product = sum((np.outer(a[[t, 4 + t, 8 + t]], b[64 * t:64 * t + tile.width]) for t in range(steps)), 0)
    _run_tile_from(compile_tile(tile).address, a, b, steps, c, numbers)
    assert_array_equal(c, product + (numbers if across else numbers[:, None]) + np.zeros_like(c))


@numba.njit
def _run_tile_from(entry, a, b, steps, c, numbers):
    call_tile(entry, (address(a), address(b), np.int64(0), steps, address(c), c.strides[0], address(numbers)))


@numba.njit
def _run_tile(entry, a, b, table, steps, c, accumulate):
    call_tile(entry, (address(a), address(b), address(table), steps, address(c), c.strides[0], accumulate))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_transposition(dtype, with_bias, rng):
    """Every number of rows read and stored; rows beyond them are neither."""
    lanes = vector_unit().lanes(dtype)
    source = integers(rng, (lanes, lanes + 3), dtype)
    bias = integers(rng, lanes, dtype)
    for rows in range(1, lanes + 1):
        for stored in range(lanes + 1):
            given = source.copy()
            given[rows:] = np.nan
            out = np.full((lanes, lanes + 5), np.nan, dtype)
            expected = out.copy()
            expected[:stored, :rows] = (source[:rows, :stored] + with_bias * bias[:stored]).T
            _transpose(given, rows, out, stored, bias, with_bias)
            assert_array_equal(out[:, :rows], expected[:, :rows])
            assert np.isnan(out[stored:]).all() and np.isnan(out[:, lanes:]).all()


@numba.njit
def _transpose(source, rows, out, stored, bias, with_bias):
    transpose_block(source, (address(source), source.strides[0], np.int64(rows), address(out), out.strides[0],
                             np.int64(stored), address(bias) if with_bias else np.int64(0)))


def test_counter():
    """Every worker takes other numbers."""
    counter, taken = np.zeros(1, np.int64), np.zeros(10_000, np.int64)
    _count(counter, taken)
    assert counter[0] == taken.size
    assert_array_equal(np.sort(taken), np.arange(taken.size))


@numba.njit(parallel=True)
def _count(counter, taken):
    for i in numba.prange(taken.size):
        taken[i] = fetch_add(address(counter))


def test_this_machine():
    unit = vector_unit()
    assert unit.lanes("float32") == 2 * unit.lanes("float64") == unit.bits // 32
    assert most_rows(1) > most_rows(2) > most_rows(4) >= 1


@pytest.mark.skipif(not X86, reason="needs an x86 target")
@pytest.mark.parametrize("cpu, unit", [("haswell", "AVX2 + FMA|256|16|True"), ("generic", "SSE2|128|16|False")])
def test_other_machines(cpu, unit, other_machine):
    """The width follows what the compiler is told of the CPU; every algorithm is right there and stays in bounds."""
    found = other_machine(cpu, "-c", "from fastconv.kernels.simd import vector_unit; print(*vector_unit(), sep='|')")
    assert found.stdout.strip() == unit
    done = other_machine(cpu, "-m", "tests.kernels.guarded", "float32", "regression")
    assert done.stdout.endswith("no crash, all right\n"), (done.stdout[-200:], done.stderr)
    code = other_machine(cpu, "-m", "pytest", __file__, str(Path(__file__).with_name("test_reductions.py")),
                         "-k", "test_machine_code or test_tile or test_transposition or test_reductions")
    assert code.returncode == 0, code.stdout


@pytest.fixture
def other_machine(monkeypatch):
    """Runs Python with a compiler that is told of another CPU."""
    def run(cpu, *arguments):
        monkeypatch.setenv("NUMBA_CPU_NAME", cpu)
        monkeypatch.setenv("NUMBA_CPU_FEATURES", "")
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    return run
