"""Results that no cache holds until they are read again go to memory past the caches.

A store to a line that is in no cache reads it from memory first. Whole lines that are streamed are not read, which
takes a third of the traffic from an elementwise operation. They are made in a buffer in L1, a short piece at a time,
so that reads go on meanwhile.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .blocking import LAST_CACHE_BYTES
from .jit import device_function
from .simd import INT, INT32, LINE_BYTES, address, element_type, load_vector, pointer, vector_unit

STREAMED = 128  # elements of a piece


@device_function
def streams(y, row):
    """Whether to stream results to ``y``: many, and in rows of whole lines of the cache."""
    return (y.size * y.itemsize > LAST_CACHE_BYTES and address(y) % LINE_BYTES == 0
            and row * y.itemsize % LINE_BYTES == 0)


@intrinsic
def stream(typing_context, y, start, buffer, count):
    """The first ``count`` elements of the buffer to y[start:], where a line begins."""
    def codegen(context, builder, signature, values):
        dtype = str(signature.args[0].dtype)
        size, lanes = np.dtype(dtype).itemsize, vector_unit().lanes(dtype)
        element = element_type(dtype)
        y, start, buffer, count = values
        source, out = (builder.ptrtoint(context.make_array(kind)(context, builder, array).data, INT)
                       for kind, array in ((signature.args[2], buffer), (signature.args[0], y)))
        out = builder.add(out, builder.mul(start, INT(size)))
        whole = builder.and_(count, INT(-lanes))

        def move(position, kind, **metadata):
            distance = builder.mul(position, INT(size))
            store = builder.store(load_vector(builder, builder.add(source, distance), kind, size),
                                  pointer(builder, builder.add(out, distance), kind))
            store.align = size * getattr(kind, "count", 1)
            for name in metadata:
                store.set_metadata(name, builder.module.add_metadata([INT32(1)]))

        with cgutils.for_range_slice(builder, INT(0), whole, INT(lanes), INT) as (position, _):
            move(position, ir.VectorType(element, lanes), nontemporal=True)
        with cgutils.for_range_slice(builder, whole, count, INT(1), INT) as (position, _):
            move(position, element)
        return context.get_dummy_value()
    return types.void(y, types.intp, buffer, types.intp), codegen


@intrinsic
def fence(typing_context):
    """What was streamed before is in memory before what is stored after."""
    def codegen(context, builder, signature, values):
        builder.fence("seq_cst")
        return context.get_dummy_value()
    return types.void(), codegen
