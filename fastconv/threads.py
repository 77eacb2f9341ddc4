"""How many threads kernels use, and what makes launching them safe."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
from numba.np.ufunc.parallel import _launch_threads

from fastconv.kernels.blocking import cores
from fastconv.kernels.jit import launch

settings: Any = numba.config  # it fills its own namespace at run time


def _cgroup_quota() -> float:
    """CPUs that the control group grants (version 2, then version 1); infinity where it sets no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        microseconds = int((folder / "cpu.cfs_quota_us").read_text())
        return math.inf if microseconds <= 0 else microseconds / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return math.inf


def _positive(name: str) -> float:
    text = os.environ.get(name, "").split(",")[0].strip()
    if not text:
        return math.inf
    if not text.isdigit() or int(text) < 1:
        if name.startswith("FASTCONV"):
            raise ValueError(f"{name} must be a positive integer, got {text!r}")
        return math.inf
    return int(text)


def limits() -> dict[str, float]:
    """What bounds the default number of threads; infinity where it sets no limit."""
    return {
        "CPU affinity": cores(),
        "cgroup quota": _cgroup_quota(),
        "OMP_NUM_THREADS": _positive("OMP_NUM_THREADS"),
        "NUMBA_NUM_THREADS": settings.NUMBA_NUM_THREADS,
    }


def default_num_threads() -> int:
    """FASTCONV_NUM_THREADS, else the least of affinity, cgroup quota and OMP_NUM_THREADS."""
    own = _positive("FASTCONV_NUM_THREADS")
    if math.isfinite(own):
        return int(min(own, settings.NUMBA_NUM_THREADS))
    return max(1, int(min(limits().values())))


def get_num_threads() -> int:
    """Threads that a kernel uses."""
    return launch.threads


def set_num_threads(count: int) -> None:
    """Use ``count`` threads, 1 to the number that Numba was started with. No result depends on it."""
    most = settings.NUMBA_NUM_THREADS
    if isinstance(count, bool) or not hasattr(count, "__index__") or not 1 <= int(count) <= most:
        raise ValueError(f"num_threads must be an integer from 1 to {most}, got {count!r}")
    launch.threads = int(count)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """``with threads(1): ...`` runs the block with that many threads."""
    before = get_num_threads()
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)


_started = threading.Lock()


def _start_layer() -> None:
    """The process's first launch: settles the layer, and gives torch its thread count back."""
    with _started:
        if launch.layer is None:
            torch = sys.modules.get("torch")
            torch_threads = torch.get_num_threads() if torch else None
            _launch_threads()
            layer = numba.threading_layer()
            if torch:
                torch.set_num_threads(torch_threads)
            if layer == "workqueue":
                launch.lock = threading.RLock()
            launch.layer = layer  # last: it tells other threads that all is settled


def _prepare() -> None:
    if launch.layer is None:
        _start_layer()
    numba.set_num_threads(launch.threads)
    launch.applied.threads = launch.threads


def _after_fork() -> None:
    """OpenMP's pool does not survive a fork, and launching on it kills or hangs the child: run serially there."""
    global _started
    _started = threading.Lock()  # another thread may have held it
    if launch.layer == "omp" or (launch.layer is None and _openmp_loaded()):
        launch.serial_only = True
    if launch.lock is not None:
        launch.lock = threading.RLock()


def _openmp_loaded() -> bool:
    """Whether somebody else (torch, say) may have started OpenMP's pool already."""
    try:
        return bool(re.search(r"/lib[gi]?omp\b", Path("/proc/self/maps").read_text()))
    except OSError:
        return False


launch.prepare = _prepare
launch.threads = default_num_threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
