"""The machine's vectors, and the one micro-kernel that every product here is made of, emitted as LLVM IR.

The tile computes, for rows i and vectors v of ``lanes`` elements,

    C[i][v] (+)= sum over t of  A[i * row_step + a_offset[t]] * B[b_offset[t] + v * lanes : ... + lanes]

A is read one scalar at a time and broadcast, B is read as vectors. Their offsets grow by a constant for each
reduction step t, or else a table of (a_offset, b_offset) pairs lists them, in bytes. Padding, stride, dilation, groups
and layout live in the table and the base addresses, so this one loop is forward, both gradients, Winograd's products
and the matrix product.

Rows come as ``groups`` x ``rows``: a tile over several short image rows has a second step.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from .jit import SourceCache
from .libraries import compiling

INT = ir.IntType(64)
INT32 = ir.IntType(32)
BYTE = ir.IntType(8)
LINE_BYTES = 64  # of a cache
SPARE_LOADS = 0.9  # loads a multiply-add, up to which a tile's loop has room for more

llvm.initialize_native_asmparser()  # for multiply_add_scalar


class VectorUnit(NamedTuple):
    """What the compiler's target can do."""

    name: str
    bits: int
    registers: int
    fma: bool

    def lanes(self, dtype):
        return self.bits // 8 // np.dtype(dtype).itemsize


@functools.cache
def vector_unit():
    """Asks the compiler itself: its target may differ from the CPU (NUMBA_CPU_NAME), whose flags may lie."""
    codegen = cpu_target.target_context.codegen()
    function = "define <16 x float> @probe(<16 x float> %a, <16 x float> %b) {\n" \
               "  %r = call <16 x float> @llvm.fma.v16f32(<16 x float> %a, <16 x float> %b, <16 x float> %a)\n" \
               "  ret <16 x float> %r\n}\n" \
               "declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)\n"
    module = llvm.parse_assembly(function)
    assembly = codegen._tm.emit_assembly(module)
    has_call = "fmaf" in assembly
    if "zmm" in assembly:
        return VectorUnit("AVX-512", 512, 32, True)
    if "ymm" in assembly and not has_call:
        return VectorUnit("AVX2 + FMA", 256, 16, True)
    if "xmm" in assembly:
        return VectorUnit("SSE2", 128, 16, not has_call)
    if "fmla" in assembly or "fmadd" in assembly:
        return VectorUnit("NEON", 128, 32, True)
    return VectorUnit("generic", 128, 16, not has_call)


class OfVectors:
    """Machine code for elements of type ``dtype`` (NumPy's name), a vector at a time."""

    dtype: str

    @property
    def lanes(self):
        return vector_unit().lanes(self.dtype)

    @property
    def itemsize(self):
        return np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Tile(OfVectors):
    """One register tile: ``groups`` x ``rows`` rows by ``vectors`` vectors.

    ``row_step`` and ``group_step`` are the distances of A's rows in elements. They are constants of the machine
    code, which makes each address an immediate: with the step in a register a 14 x 2 tile spills and falls from
    117 to 74 GFLOP/s. ``a_step`` and ``b_step`` are those of reduction steps, 0 where the table has the offsets:
    without its loads a 6 x 2 tile takes up to a sixth less on a core whose other thread is busy. Such a tile may fetch
    cache lines instead, for what runs next: from the address ``table`` on, ``ahead`` bytes further at each step; any
    tile may fetch what lies ``b_ahead`` bytes behind each row of B. A tile compiles in 40 ms and loads from the cache
    in 2.
    """

    dtype: str
    rows: int
    vectors: int
    row_step: int
    groups: int = 1
    group_step: int = 0
    a_step: int = 0
    b_step: int = 0
    ahead: int = 0
    b_ahead: int = 0
    across: bool = False  # whether it begins from a row of numbers, one a column, instead of one a row

    @property
    def width(self):
        return self.vectors * self.lanes

    @property
    def name(self):
        rows = f"{self.groups}x{self.rows}" if self.groups > 1 else f"{self.rows}"
        return f"tile_{self.dtype}_{rows}x{self.vectors}"

    @property
    def folded(self):
        """Rows whose scalars the multiply-adds broadcast themselves, each as often as there are vectors.

        That takes fewer instructions and more loads; as many rows as the loads leave room for.
        """
        if vector_unit().bits < 512 or self.vectors == 1 or not self.a_step:
            return 0
        rows = self.groups * self.rows
        lines = self.vectors * self.lanes * self.itemsize // LINE_BYTES if self.b_ahead else 0
        loads = rows + self.vectors + lines + (not self.b_step) + bool(self.ahead)
        return max(0, min(rows, int(SPARE_LOADS * rows * self.vectors - loads) // (self.vectors - 1)))

    def fits(self):
        """Accumulators, one row of B and one broadcast must stay in registers."""
        return self.groups * self.rows * self.vectors + self.vectors + 1 <= vector_unit().registers


ARGUMENTS = ("a", "b", "table", "steps", "c", "c_row", "initial")  # addresses and strides in bytes
FROM_ZERO, FROM_SUMS = 0, 1  # what a tile adds to: nothing, what C holds, or else numbers at that address


def element_type(dtype):
    return ir.FloatType() if dtype == "float32" else ir.DoubleType()


def multiply_add(builder, x, y, z):
    """x y + z of vectors or scalars."""
    if not vector_unit().fma:  # llvm.fma would be a library call for each lane
        return builder.fadd(builder.fmul(x, y), z)
    kind = x.type
    lanes = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    bits = "f32" if getattr(kind, "element", kind) == ir.FloatType() else "f64"
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fma.{lanes}{bits}")
    return builder.call(fma, [x, y, z])


def multiply_add_scalar(builder, base, distance, y, z):
    """x y + z, where x is the element at ``base + distance`` in all lanes: one instruction of AVX-512.

    LLVM would load an x that is used twice once, by an instruction of its own, and index the address by two registers,
    which the core splits in two again.
    """
    single = z.type.element == ir.FloatType()
    code = f"vfmadd231p{'s' if single else 'd'} {distance}($3){{1to{z.type.count}}}, $2, $0"
    return builder.asm(ir.FunctionType(z.type, [z.type, y.type, base.type]), code, "=v,0,v,r", [z, y, base], False)


def broadcast(builder, scalar, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, INT32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, vector.count), None))


def pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def load_vector(builder, address, kind, align):
    loaded = builder.load(pointer(builder, address, kind))
    loaded.align = align
    return loaded


def _name_of(kind):
    """LLVM's, in the names of its intrinsics."""
    return f"v{kind.count}f{32 if kind.element == ir.FloatType() else 64}"


def store_where(builder, vector, place, mask, align):
    """Store the lanes of a vector that the mask has; no other memory is touched."""
    kind = vector.type
    name = _name_of(kind)
    store = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [kind, kind.as_pointer(), INT32, mask.type]),
        f"llvm.masked.store.{name}.p0{name}")
    builder.call(store, [vector, place, INT32(align), mask])


def load_where(builder, place, mask, align):
    """The vector at a pointer where the mask has a lane, else 0; no other memory is touched."""
    kind = place.type.pointee
    name = _name_of(kind)
    load = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [place.type, INT32, mask.type, kind]),
        f"llvm.masked.load.{name}.p0{name}")
    return builder.call(load, [place, INT32(align), mask, ir.Constant(kind, None)])


def prefetch(builder, address, level=1):
    """Fetch the cache line at an address, which need not be one of the process, into the cache of a level."""
    place = BYTE.as_pointer()
    fetch = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [place, INT32, INT32, INT32]), "llvm.prefetch.p0i8")
    builder.call(fetch, [builder.inttoptr(address, place), INT32(0), INT32(4 - level), INT32(1)])  # to read; data


def _initial_sums(builder, tile, initial, cells, vector, size):
    """The accumulators' first values; leaves the builder where they meet."""
    start = builder.block
    sums, numbers, some, head = (builder.append_basic_block(name) for name in ("sums", "numbers", "some", "head"))
    builder.cbranch(builder.icmp_signed("!=", initial, INT(FROM_ZERO)), some, head)
    builder.position_at_end(some)
    builder.cbranch(builder.icmp_signed("==", initial, INT(FROM_SUMS)), sums, numbers)
    builder.position_at_end(sums)
    loaded = [load_vector(builder, cell, vector, size) for cell in cells]
    builder.branch(head)
    builder.position_at_end(numbers)
    rows = len(cells) // tile.vectors
    if tile.across:
        spread = [load_vector(builder, builder.add(initial, INT(v * tile.lanes * size)), vector, size)
                  for v in range(tile.vectors)] * rows
    else:
        numbers_of_rows = [load_vector(builder, builder.add(initial, INT(i * size)), vector.element, size)
                           for i in range(rows)]
        spread = [broadcast(builder, number, vector) for number in numbers_of_rows for _ in range(tile.vectors)]
    builder.branch(head)
    builder.position_at_end(head)
    blank = ir.Constant(vector, None)
    values = []
    for index in range(len(cells)):
        phi = builder.phi(vector)
        phi.add_incoming(blank, start)
        phi.add_incoming(loaded[index], sums)
        phi.add_incoming(spread[index], numbers)
        values.append(phi)
    return values


def _emit_tile(builder, tile, a, b, table, steps, c, c_row, initial):
    element = element_type(tile.dtype)
    size = tile.itemsize
    vector = ir.VectorType(element, tile.lanes)
    bytes_ = tile.lanes * size
    a_rows = [(g * tile.group_step + i * tile.row_step) * size
              for g in range(tile.groups) for i in range(tile.rows)]
    cells = [builder.add(builder.add(c, builder.mul(c_row, INT(i))), INT(v * bytes_))
             for i in range(len(a_rows)) for v in range(tile.vectors)]

    first = _initial_sums(builder, tile, initial, cells, vector, size)
    head = builder.block
    loop, done = (builder.append_basic_block(name) for name in ("loop", "done"))
    counted, count_step = (b, tile.b_step * size) if tile.b_step else (table, 8)
    end = builder.add(counted, builder.mul(steps, INT(count_step)))
    builder.cbranch(builder.icmp_signed(">", steps, INT(0)), loop, done)

    builder.position_at_end(loop)
    passing = {}
    for name, first_address in (("a", a), ("b", b), ("table", table)):
        passing[name] = builder.phi(INT)
        passing[name].add_incoming(first_address, head)
    sums = [builder.phi(vector) for _ in cells]
    for phi, value in zip(sums, first):
        phi.add_incoming(value, head)
    a_t, b_t = passing["a"], passing["b"]
    if not tile.a_step:
        a_t = builder.add(a, builder.sext(load_vector(builder, passing["table"], INT32, 4), INT))
    if not tile.b_step:
        entry = builder.add(passing["table"], INT(4))
        b_t = builder.add(b, builder.sext(load_vector(builder, entry, INT32, 4), INT))
    b_row = [load_vector(builder, builder.add(b_t, INT(v * bytes_)), vector, size) for v in range(tile.vectors)]
    updated = []
    for index, distance in enumerate(a_rows):
        row = sums[len(updated):len(updated) + tile.vectors]
        if (index + 1) * tile.folded // len(a_rows) > index * tile.folded // len(a_rows):
            updated += [multiply_add_scalar(builder, a_t, distance, b_row[v], row[v]) for v in range(tile.vectors)]
        else:
            scalar = load_vector(builder, builder.add(a_t, INT(distance)), element, size)
            spread = broadcast(builder, scalar, vector)
            updated += [multiply_add(builder, spread, b_row[v], row[v]) for v in range(tile.vectors)]
    for line in range(0, tile.vectors * bytes_ if tile.b_ahead else 0, LINE_BYTES):
        prefetch(builder, builder.add(b_t, INT(tile.b_ahead + line)))
    if tile.ahead:
        prefetch(builder, passing["table"], level=2)
    following = {}
    for name, step in (("a", tile.a_step * size), ("b", tile.b_step * size), ("table", tile.ahead or 8)):
        following[name] = builder.add(passing[name], INT(step))
        passing[name].add_incoming(following[name], loop)
    for phi, value in zip(sums, updated):
        phi.add_incoming(value, loop)
    reached = following["b" if tile.b_step else "table"]
    builder.cbranch(builder.icmp_signed("<", reached, end), loop, done)

    builder.position_at_end(done)
    results = []
    for before, after in zip(first, updated):
        result = builder.phi(vector)
        result.add_incoming(before, head)
        result.add_incoming(after, loop)
        results.append(result)
    for cell, result in zip(cells, results):
        builder.store(result, pointer(builder, cell, vector)).align = size


class MicroKernel:
    """Machine code that :func:`call_tile` runs at its ``.address``."""

    def __init__(self, compiled):
        self._compiled = compiled  # keeps it alive
        self.address = compiled.ctypes()

    @property
    def assembly(self):
        return self._compiled._library.get_asm_str()


def compile_micro_kernel(emit, tile, arguments):
    """The code that ``emit(builder, tile, *arguments)`` makes, kept under the tile's name; ``arguments`` name integers.

    What Numba compiles is a function that returns the code's address. Numba's own callbacks for C pass their arguments
    on to the function within; from the seventh on they are read from the stack, 16 bytes where 8 were just written, and
    the core waits until all stores before are done: an eighth of Winograd's transforms of few channels.
    """
    @intrinsic
    def place(typing_context):
        def codegen(context, builder, signature, values):
            kind = ir.FunctionType(ir.VoidType(), [INT] * len(arguments))
            function = ir.Function(builder.module, kind, "micro_kernel")
            function.linkage = "internal"
            body = ir.IRBuilder(function.append_basic_block())
            emit(body, tile, *function.args)
            body.ret_void()
            return builder.ptrtoint(function, INT)
        return types.intp(), codegen

    def micro_kernel():
        return place()

    compiled = CFunc(micro_kernel, ((), types.intp), locals={}, options={"nopython": True})
    compiled._cache = SourceCache(tile.name, repr((tile, vector_unit())))
    with compiling(micro_kernel.__qualname__):
        compiled.compile()
    return MicroKernel(compiled)


@functools.cache
def compile_tile(tile):
    """The tile as machine code."""
    return compile_micro_kernel(_emit_tile, tile, ARGUMENTS)


@intrinsic
def call_tile(typing_context, entry, arguments):
    """Call the micro-kernel at address ``entry`` with the tuple ``arguments``, in the order of its ARGUMENTS."""
    def codegen(context, builder, signature, values):
        kind = ir.FunctionType(ir.VoidType(), [INT] * arguments.count)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), cgutils.unpack_tuple(builder, values[1]))
        return context.get_dummy_value()
    return types.void(types.intp, types.UniTuple(types.intp, arguments.count)), codegen


@intrinsic
def fetch_add(typing_context, counter):
    """Atomically take the next number from the int64 at the address ``counter``."""
    def codegen(context, builder, signature, values):
        return builder.atomic_rmw("add", pointer(builder, values[0], INT), INT(1), "monotonic")
    return types.int64(types.intp), codegen


def _transposed(builder, rows):
    """Transpose a square block of vectors: swap ever smaller off-diagonal blocks, two shuffles a pair."""
    lanes = len(rows)
    distance = lanes // 2
    while distance:
        low = ir.Constant(ir.VectorType(INT32, lanes),
                          [j if not j & distance else lanes + j - distance for j in range(lanes)])
        high = ir.Constant(ir.VectorType(INT32, lanes),
                           [j + distance if not j & distance else lanes + j for j in range(lanes)])
        for i in range(lanes):
            if not i & distance:
                a, b = rows[i], rows[i + distance]
                rows[i] = builder.shuffle_vector(a, b, low)
                rows[i + distance] = builder.shuffle_vector(a, b, high)
        distance //= 2
    return rows


@intrinsic
def transpose_block(typing_context, like, arguments):
    """Transpose lanes x lanes elements: ``(source, source_row, source_count, out, out_row, out_count, bias)``.

    Addresses and row strides in bytes. Source rows from ``source_count`` on are not read (the last one is read
    again), rows of the result from ``out_count`` on are not stored. ``bias``, where not 0, is the address of
    ``lanes`` elements added to every source row. ``like`` is an array of the element type.
    """
    def codegen(context, builder, signature, values):
        source, source_row, source_count, out, out_row, out_count, bias = cgutils.unpack_tuple(
            builder, values[1])
        dtype = str(signature.args[0].dtype)
        size = np.dtype(dtype).itemsize
        lanes = vector_unit().lanes(dtype)
        vector = ir.VectorType(element_type(dtype), lanes)
        last = builder.sub(source_count, INT(1))
        rows = []
        for i in range(lanes):
            row = builder.select(builder.icmp_signed("<", INT(i), source_count), INT(i), last)
            rows.append(load_vector(builder, builder.add(source, builder.mul(row, source_row)), vector, size))
        plain = builder.block
        with builder.if_then(builder.icmp_signed("!=", bias, INT(0))):
            addend = load_vector(builder, bias, vector, size)
            sums = [builder.fadd(row, addend) for row in rows]
            biased = builder.block
        merged = []
        for row, total in zip(rows, sums):
            phi = builder.phi(vector)
            phi.add_incoming(row, plain)
            phi.add_incoming(total, biased)
            merged.append(phi)
        places = [pointer(builder, builder.add(out, builder.mul(out_row, INT(i))), vector) for i in range(lanes)]
        turned = _transposed(builder, merged)
        with builder.if_else(builder.icmp_signed(">=", out_count, INT(lanes)), likely=True) as (whole, part):
            with whole:
                for row, place in zip(turned, places):
                    builder.store(row, place).align = size
            with part:
                for i, (row, place) in enumerate(zip(turned, places)):
                    with builder.if_then(builder.icmp_signed("<", INT(i), out_count), likely=True):
                        builder.store(row, place).align = size
        return context.get_dummy_value()
    return types.void(like, types.UniTuple(types.intp, 7)), codegen


@intrinsic
def address(typing_context, array):
    """Address of an array's first element, as int64."""
    def codegen(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.ptrtoint(data, INT)
    return types.int64(array), codegen


@intrinsic
def lanes_of(typing_context, like):
    """Elements of the type of this array or number to one of the machine's vectors."""
    count = vector_unit().lanes(str(getattr(like, "dtype", like)))
    return types.intp(like), lambda context, builder, signature, values: INT(count)


def unknown(builder, value):
    """The same integer, of which LLVM knows nothing: what is computed with it stays as it is written."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], False)


def sum_of_lanes(builder, vector):
    """Sum of a vector's lanes, by halves."""
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        half = [builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(INT32, lanes), list(lane)))
                for lane in (range(lanes), range(lanes, 2 * lanes))]
        vector = builder.fadd(*half)
    return builder.extract_element(vector, INT32(0))


@intrinsic
def sum_lanes(typing_context, like, source):
    """Sum of the vector at an address, of elements of the type of the scalar ``like``, by halves."""
    def codegen(context, builder, signature, values):
        dtype = str(signature.args[0])
        vector = ir.VectorType(element_type(dtype), vector_unit().lanes(dtype))
        return sum_of_lanes(builder, load_vector(builder, values[1], vector, np.dtype(dtype).itemsize))
    return like(like, types.intp), codegen
