"""Scratch for kernels: one buffer a Python thread, grown when a plan needs more, never returned in between."""

import threading

from .pages import empty_bytes

_local = threading.local()


def scratch(elements, dtype):
    """At least ``elements`` of uninitialised, cache-line-aligned memory, valid until the thread's next call."""
    needed = -(-elements * dtype.itemsize // 16) * 16
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.nbytes < needed:
        _local.buffer = None  # release before taking more
        buffer = _local.buffer = empty_bytes(max(needed, 1 << 16))
        _local.views = {}
    view = _local.views.get(dtype)
    if view is None:
        view = _local.views[dtype] = buffer.view(dtype)
    return view


def release():
    """Give the calling thread's buffer back to the system."""
    _local.__dict__.clear()
