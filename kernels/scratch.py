"""Scratch for kernels: one buffer a Python thread, grown when a plan needs more, never returned in between."""

import threading

from .pages import empty_bytes

_local = threading.local()


def scratch(elements, dtype):
    """At least ``elements`` of uninitialised, cache-line-aligned memory, valid until the thread's next call."""
    views = _local.__dict__
    view = views.get(dtype)
    if view is not None and view.size >= elements:
        return view
    needed = -(-elements * dtype.itemsize // 16) * 16
    buffer = views.get(bytes)
    if buffer is None or buffer.nbytes < needed:
        views.clear()  # release before taking more
        buffer = views[bytes] = empty_bytes(max(needed, 1 << 16))
    view = views[dtype] = buffer.view(dtype)
    return view


def release():
    """Give the calling thread's buffer back to the system."""
    _local.__dict__.clear()
