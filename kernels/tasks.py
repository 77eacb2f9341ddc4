"""Tasks shared among workers: each takes those of its own range first, then what is left of the others'.

A worker's range is the same at each call. What it wrote it therefore reads again in the next layer, from its own
caches.
"""

import numpy as np

from .jit import device_function
from .simd import address, fetch_add

LINE = 8  # int64 to a cache line: counters of two workers on one would send it to and fro


@device_function(allocates=True)
def no_tasks_taken(workers):
    """A counter a worker, for :func:`take`; a call, since a parallel kernel would make a loop of its own of it."""
    return np.zeros((workers, LINE), np.int64)


@device_function
def take(taken, worker, tasks):
    """The next of ``tasks`` for a worker, or -1 where none is left."""
    workers = taken.shape[0]
    for i in range(workers):
        owner = (worker + i) % workers
        first, last = tasks * owner // workers, tasks * (owner + 1) // workers
        if first + taken[owner, 0] < last:
            task = first + fetch_add(address(taken) + owner * LINE * 8)
            if task < last:
                return task
    return -1
