"""The block pool: a block that somebody holds is never handed out again, one that nobody holds is."""

from __future__ import annotations

import gc
import os
import threading

import numpy as np
import pytest

from fastconv import memory
from fastconv.kernels.pages import ALIGNMENT, SMALLEST
from fastconv.memory import SMALLEST_POOLED, empty, idle_bytes, release, zeros
from tests.processes import python

LARGE = (70, 31, 17)  # float32: more than the smallest pooled block


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def _nothing_idle():
    gc.collect()
    release()
    yield
    release()


@pytest.mark.parametrize("shape", [(), 0, 5, (3, 4), (0, 70_000), LARGE, 300_001])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_like_numpy(shape, dtype):
    for made, expected in (empty(shape, dtype), np.empty(shape, dtype)), (zeros(shape, dtype), np.zeros(shape, dtype)):
        assert type(made) is np.ndarray
        assert (made.shape, made.dtype, made.strides) == (expected.shape, expected.dtype, expected.strides)
        assert made.flags.carray
        made.fill(1)
    assert empty(3).dtype == np.float32


def test_zeros_of_a_used_block():
    empty(LARGE).fill(7)
    assert not zeros(LARGE).any()


def test_alignment():
    sizes = SMALLEST_POOLED, SMALLEST - 1, SMALLEST  # the last in huge pages
    arrays = [empty(size + extra, np.uint8) for size in sizes for extra in (0, 1, 63, 4097)]
    assert all(address(array) % ALIGNMENT == 0 for array in arrays)


def test_blocks_do_not_overlap():
    arrays = [empty(LARGE) for _ in range(5)]
    assert not any(np.may_share_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


def test_reused_after_the_last_view():
    array = empty(LARGE)
    first, size = address(array), array.nbytes
    views = [array[3:, ::2], array.reshape(-1), array.T, array.view(np.uint32), memoryview(array), array[0, 0]]
    del array
    while views:
        assert address(empty(LARGE)) != first
        assert first not in [address(empty(LARGE)) for _ in range(3)]
        del views[-1]
    gc.collect()
    assert idle_bytes() >= size
    assert first in [address(held) for held in [empty(LARGE) for _ in range(3)]]


def test_values_survive_what_comes_and_goes():
    kept = empty(LARGE)[5:]
    kept.fill(3)
    for _ in range(20):
        empty(LARGE).fill(9)
    assert (kept == 3).all()


def test_near_sizes_share_a_block():
    first = address(empty(1_000_000, np.uint8))
    assert address(empty(1_000_100, np.uint8)) == first
    assert memory._described(1_000_000, np.uint8)[2] < 1_000_000 * 9 / 8 + 4096


def test_small_arrays_are_not_pooled():
    empty(SMALLEST_POOLED - 1, np.uint8)
    assert idle_bytes() == 0


def test_release():
    empty(LARGE)
    assert idle_bytes() > 0
    release()
    assert idle_bytes() == 0


def test_limit(monkeypatch):
    """What would exceed it goes back to the system."""
    monkeypatch.setattr(memory, "LIMIT_BYTES", 500_000)
    held = [empty(400_000, np.uint8) for _ in range(3)]
    held.clear()
    assert 400_000 <= idle_bytes() <= 500_000


def test_negative_size_is_refused_as_by_numpy():
    with pytest.raises(ValueError, match="negative dimensions"):
        empty((3, -1))


def test_threads():
    """Blocks that many threads take and return are never held by two of them."""
    wrong = []

    def worker(number: int) -> None:
        for turn in range(200):
            array = empty(20_000 + 100 * (turn % 7), np.float64)
            array.fill(number)
            if not (array == number).all():
                wrong.append(number)

    workers = [threading.Thread(target=worker, args=(number,)) for number in range(4)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_while_another_thread_holds_the_lock():
    done = python("""
        import os, signal, threading
        from fastconv import memory

        held, finish = threading.Event(), threading.Event()

        def holder():
            with memory._pool.lock:
                held.set()
                finish.wait()

        threading.Thread(target=holder).start()
        held.wait()
        child = os.fork()
        if not child:
            signal.alarm(10)
            memory.empty(1_000_000)
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        finish.set()
    """)
    assert done.stdout == "0\n"
