"""Tasks shared among workers."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv.kernels.tasks import LINE, no_tasks_taken, take


@numba.njit(parallel=True)
def _share(times, workers):
    """How often each task was taken."""
    taken = no_tasks_taken(workers)
    for worker in numba.prange(workers):
        task = take(taken, np.int64(worker), times.size)
        while task >= 0:
            times[task] += 1
            task = take(taken, np.int64(worker), times.size)


@numba.njit
def _take(taken, worker, tasks):
    return take(taken, worker, tasks)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("tasks", [0, 1, 5, 1000])
def test_every_task_is_taken_once(tasks, workers):
    times = np.zeros(tasks, np.int64)
    _share(times, workers)
    assert_array_equal(times, 1)


def test_a_worker_takes_its_own_range_first_and_then_the_others():
    taken = np.zeros((3, LINE), np.int64)
    assert [_take(taken, 1, 8) for _ in range(4)] == [2, 3, 4, 5]
    assert _take(taken, 2, 8) == 6
    assert [_take(taken, 1, 8) for _ in range(4)] == [7, 0, 1, -1]
    assert [_take(taken, worker, 8) for worker in range(3)] == [-1, -1, -1]
