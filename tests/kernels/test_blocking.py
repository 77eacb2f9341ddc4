"""Tiles and blocks cover everything once and stay in registers and caches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv.kernels import blocking
from fastconv.kernels.blocking import (
    LARGEST_OFFSET,
    cache_bytes,
    cover_image,
    cover_rows,
    divide,
    most_rows,
    offset_table,
    reduction_block,
)
from fastconv.kernels.simd import vector_unit

SIZE = st.integers(1, 300)


@given(length=SIZE, most=st.integers(1, 40))
def test_divide(length, most):
    size, full, short = divide(length, most)
    assert 1 <= size <= most
    assert full >= 1 and short >= 0
    assert full * size + short * (size - 1) == length
    assert full + short == -(-length // most)  # as few parts as there can be


@given(height=SIZE, width=SIZE, channels=SIZE, steps=SIZE, dtype=st.sampled_from(["float32", "float64"]))
def test_cover_image(height, width, channels, steps, dtype):
    tile, full, short, cycles = cover_image(height, width, channels, steps, dtype, 3, 1000)
    assert full * tile.rows + short * (tile.rows - 1) == width
    assert 1 <= tile.groups * tile.rows <= most_rows(tile.vectors)
    assert tile.groups <= height
    assert tile.groups == 1 or (full == 1 and not short)  # several image rows only where a tile spans one
    assert (tile.vectors - 1) * vector_unit().lanes(dtype) < channels
    assert cycles > 0


@given(length=SIZE, channels=SIZE, steps=SIZE)
def test_cover_rows(length, channels, steps):
    tile, full, short, _ = cover_rows(length, channels, steps, "float32", 7)
    assert full * tile.rows + short * (tile.rows - 1) == length
    assert tile.groups == 1 and tile.rows <= most_rows(tile.vectors)


@given(steps=st.integers(1, 200), units=SIZE, width_bytes=st.sampled_from([16, 64, 256]),
       unit_bytes=st.sampled_from([4, 1 << 20, LARGEST_OFFSET // 3, LARGEST_OFFSET, 1 << 40]))
def test_reduction_block(steps, units, width_bytes, unit_bytes):
    block = reduction_block(steps, units, width_bytes, unit_bytes)
    assert 1 <= block <= units
    assert block == 1 or block * steps * width_bytes <= 1.15 * cache_bytes()[0]
    assert (block - 1) * unit_bytes <= LARGEST_OFFSET


def test_offsets():
    """They are 32 bits wide: what does not fit is refused, never wrapped."""
    reach = np.arange(3) * (LARGEST_OFFSET // 2)
    table = offset_table(reach, np.arange(3))
    assert table.dtype == np.int32
    np.testing.assert_array_equal(table[:, 0], reach)
    assert offset_table(np.arange(0), np.arange(0)).shape == (0, 2)  # a phase without taps
    with pytest.raises(ValueError, match=r"the image is too large.* more than 2147483647 bytes apart"):
        offset_table(reach + 2, np.arange(3))


def test_caches(tmp_path, monkeypatch):
    """The sizes the system tells; what it does not tell has a common size."""
    monkeypatch.setattr(blocking, "Path", lambda _: tmp_path)
    assert cache_bytes.__wrapped__() == (32 << 10, 1 << 20)
    for number, (level, kind, size) in enumerate([("1", "Data", "48K"), ("1", "Instruction", "64K"),
                                                  ("2", "Unified", "2048K"), ("3", "Unified", "32768K")]):
        index = tmp_path / f"index{number}"
        index.mkdir()
        for name, text in ("level", level), ("type", kind), ("size", size):
            (index / name).write_text(text + "\n")
    assert cache_bytes.__wrapped__() == (48 << 10, 2 << 20)
    (tmp_path / "index2" / "size").write_text("large")
    assert cache_bytes.__wrapped__() == (48 << 10, 1 << 20)
