"""Scratch for kernels: one buffer a Python thread, grown when a plan needs more, never returned in between."""

import threading

import numpy as np

from .pages import empty_bytes

BYTES = np.dtype(np.uint8)
_local = threading.local()


def scratch(elements, dtype):
    """At least ``elements`` of uninitialised, cache-line-aligned memory, valid until the thread's next call."""
    views = _local.__dict__
    view = views.get(dtype)
    if view is not None and view.size >= elements:
        return view
    needed = -(-elements * dtype.itemsize // 16) * 16
    buffer = views.get(BYTES)
    if buffer is None or buffer.nbytes < needed:
        views.clear()  # release before taking more
        buffer = views[BYTES] = empty_bytes(max(needed, 1 << 16))
    view = views[dtype] = buffer.view(dtype)
    return view


def release():
    """Give the calling thread's buffer back to the system."""
    _local.__dict__.clear()
