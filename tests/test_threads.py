"""Thread counts, and that launching is safe from many threads, after a fork and beside torch."""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.util
import math
import re

import numba
import pytest

import fastconv
from tests.processes import python

threads = importlib.import_module("fastconv.threads")  # fastconv.threads is the context manager
MOST = numba.config.NUMBA_NUM_THREADS
SETTINGS = ("FASTCONV_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
LAYERS = [
    pytest.param("omp", marks=pytest.mark.skipif(not ctypes.util.find_library("gomp"), reason="needs libgomp")),
    "workqueue",
]
two_cores = pytest.mark.skipif(MOST < 2, reason="Numba has one thread")


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    before = fastconv.get_num_threads()
    yield
    fastconv.set_num_threads(before)


def test_set_and_get():
    for count in 1, MOST:
        fastconv.set_num_threads(count)
        assert fastconv.get_num_threads() == count


@pytest.mark.parametrize("count", [0, -1, MOST + 1, 1.0, True, "1", None])
def test_refused(count):
    with pytest.raises(ValueError, match=re.escape(f"num_threads must be an integer from 1 to {MOST}, got {count!r}")):
        fastconv.set_num_threads(count)


@two_cores
def test_context():
    fastconv.set_num_threads(2)
    with fastconv.threads(1):
        assert fastconv.get_num_threads() == 1
        with fastconv.threads(2):
            assert fastconv.get_num_threads() == 2
        assert fastconv.get_num_threads() == 1
    assert fastconv.get_num_threads() == 2
    with pytest.raises(KeyError), fastconv.threads(1):
        raise KeyError
    assert fastconv.get_num_threads() == 2
    with pytest.raises(ValueError, match="num_threads"), fastconv.threads(0):
        pass
    assert fastconv.get_num_threads() == 2


@two_cores
def test_default_is_the_least_limit(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: math.inf)
    assert threads.default_num_threads() == 2
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: 1.5)
    assert threads.default_num_threads() == 1
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: 0.5)
    assert threads.default_num_threads() == 1
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: 64.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1,4")  # a list is for nested regions
    assert threads.default_num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "many")  # not ours to complain about
    assert threads.default_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("FASTCONV_NUM_THREADS", "2")  # our own setting goes first
    assert threads.default_num_threads() == 2
    monkeypatch.setenv("FASTCONV_NUM_THREADS", "1000")
    assert threads.default_num_threads() == MOST


@pytest.mark.parametrize("files, quota", [
    ({}, math.inf),
    ({"cpu.max": "max 100000"}, math.inf),
    ({"cpu.max": "150000 100000"}, 1.5),
    ({"cpu.max": "nonsense"}, math.inf),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
    ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
])
def test_cgroup(files, quota, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(threads, "Path", lambda path: tmp_path / path.removeprefix("/sys/fs/cgroup").lstrip("/"))
    assert threads._cgroup_quota() == quota


def test_settings_at_import():
    count = "import fastconv; print(fastconv.get_num_threads())"
    assert python(count, FASTCONV_NUM_THREADS="1").stdout == "1\n"
    assert python(count, OMP_NUM_THREADS="1").stdout == "1\n"
    pinned = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + count
    assert python(pinned, NUMBA_NUM_THREADS="2").stdout == "1\n"
    for bad in "0", "two", "1.5":
        expected = f"FASTCONV_NUM_THREADS must be a positive integer, got {bad!r}"
        caught = python("""
            try:
                import fastconv
            except ValueError as error:
                print(error)
        """, FASTCONV_NUM_THREADS=bad)
        assert caught.stdout == expected + "\n"


# A bias gradient and a convolution large enough for two threads, and their results from one.
WORK = """
    import numpy as np
    import fastconv
    from fastconv.functional import conv2d
    from fastconv.grad import conv2d_bias
    from fastconv.kernels import jit

    jit.WORTH_SPLITTING = 0
    x = np.random.default_rng(0).standard_normal((4, 8, 20, 20)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((9, 8, 3, 3)).astype(np.float32)

    def work():
        return np.concatenate([conv2d_bias(x), conv2d(x, w, algorithm="direct").ravel()]).tobytes()

    fastconv.set_num_threads(1)
    expected = work()
    fastconv.set_num_threads(2)
"""


@two_cores
@pytest.mark.parametrize("layer", LAYERS)
def test_many_callers(layer):
    """Python threads that launch at once, the first launch of the process included."""
    done = python(WORK + """
    import threading
    wrong, start = [], threading.Barrier(4)

    def caller():
        start.wait()
        wrong.extend(1 for _ in range(50) if work() != expected)

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    print(len(wrong), jit.launch.layer)
    """, NUMBA_THREADING_LAYER=layer)
    assert done.stdout == f"0 {layer}\n"


@two_cores
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("before", ["work()", "pass"], ids=["launched", "not_launched"])
def test_forked_child(before, layer):
    """A child of a process that has launched, or not, gets the same bits; it is neither killed nor left hanging."""
    done = python(WORK + f"""
    import multiprocessing
    {before}
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print([found == expected for found in pool.starmap(work, [()] * 4)], work() == expected)
    """, NUMBA_THREADING_LAYER=layer)
    assert done.stdout == "[True, True, True, True] True\n"


@two_cores
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("first", ["import torch", "work()\n    import torch"], ids=["torch_first", "torch_later"])
def test_beside_torch(first):
    """The first launch leaves torch its thread count; a child forked after torch has used OpenMP does not hang."""
    done = python(WORK + f"""
    {first}
    for count in 1, 2:
        torch.set_num_threads(count)
        assert work() == expected
        print(torch.get_num_threads())
    """)
    assert done.stdout == "1\n2\n"
    forked = python(WORK + """
    import os
    import torch
    torch.set_num_threads(2)
    torch.randn(300, 300) @ torch.randn(300, 300)
    torch.nn.functional.conv2d(torch.randn(4, 16, 30, 30), torch.randn(16, 16, 3, 3))
    child = os.fork()
    if not child:
        os._exit(work() != expected)
    print(os.waitpid(child, 0)[1])
    """)
    assert forked.stdout == "0\n"
