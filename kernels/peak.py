"""What the machine can do, measured: multiply-adds in registers, and the triad from memory."""

from dataclasses import dataclass

import numba
import numpy as np
from llvmlite import ir

from .jit import kernel
from .simd import (
    INT,
    OfVectors,
    address,
    call_tile,
    compile_micro_kernel,
    element_type,
    load_vector,
    multiply_add,
    pointer,
    vector_unit,
)

STEPS = 1 << 17  # of each sum a call: about a millisecond


@dataclass(frozen=True)
class Sums(OfVectors):
    """As many running sums as there are registers, less two for the factors."""

    dtype: str

    @property
    def name(self):
        return f"multiply_adds_{self.dtype}"

    @property
    def count(self):
        return vector_unit().registers - 2


def _emit_sums(builder, sums, factors, steps, out):
    """``sum = sum * x + y``, so many steps, of each vector at ``out``; x and y are the two vectors at ``factors``."""
    size, lanes = sums.itemsize, sums.lanes
    vector = ir.VectorType(element_type(sums.dtype), lanes)
    places = [builder.add(out, INT(i * lanes * size)) for i in range(sums.count)]
    x, y = (load_vector(builder, builder.add(factors, INT(i * lanes * size)), vector, size) for i in range(2))
    before = [load_vector(builder, place, vector, size) for place in places]
    entry = builder.block
    loop, done = (builder.append_basic_block(name) for name in ("loop", "done"))
    builder.branch(loop)
    builder.position_at_end(loop)
    step, passing = builder.phi(INT), [builder.phi(vector) for _ in places]
    after, following = [multiply_add(builder, value, x, y) for value in passing], builder.sub(step, INT(1))
    for phi, first, next_one in zip((step, *passing), (steps, *before), (following, *after)):
        phi.add_incoming(first, entry)
        phi.add_incoming(next_one, loop)
    builder.cbranch(builder.icmp_signed(">", following, INT(0)), loop, done)
    builder.position_at_end(done)
    for place, value in zip(places, after):
        builder.store(value, pointer(builder, place, vector)).align = size


@kernel
def multiply_adds(sums, factors, entry, steps):
    """sums: (workers, vectors, lanes); factors: (2, lanes)."""
    for worker in numba.prange(sums.shape[0]):
        sums[worker] = 0
        call_tile(entry, (address(factors), np.int64(steps), address(sums[worker])))


@kernel
def triad(a, b, c, scale):
    """a, b, c: (workers, elements); ``a = b + scale * c``, as the STREAM benchmark has it."""
    for worker in numba.prange(a.shape[0]):
        for i in range(a.shape[1]):
            a[worker, i] = b[worker, i] + scale * c[worker, i]


def multiply_add_call(workers, dtype):
    """``(call, multiply-adds a call)`` on ``workers`` threads, all in registers; it returns the sums."""
    kind = Sums(np.dtype(dtype).name)
    factors, sums = np.ones((2, kind.lanes), dtype), np.zeros((workers, kind.count, kind.lanes), dtype)
    compiled = compile_micro_kernel(_emit_sums, kind, ("factors", "steps", "out"))

    def call():
        multiply_adds(sums, factors, compiled.address, STEPS)  # the closure keeps the code alive
        return sums

    return call, sums.size * STEPS


def triad_call(workers, bytes_an_array):
    """``(call, bytes a call)``: two arrays read and one written; the fetch of the written one does not count."""
    elements = bytes_an_array // 4 // workers
    a, b, c = (np.ones((workers, elements), np.float32) for _ in range(3))
    scale = np.float32(0.5)

    def call():
        triad(a, b, c, scale)
        return a

    return call, 3 * 4 * elements * workers
