"""exp, log, log1p, tanh and sigmoid as polynomials that LLVM turns into vector code.

Numba has no vector mathematics library: ``np.exp`` is a scalar call for each element. Here every function is
free of branches and tables, within 3 units in the last place over its whole range (denormal results included),
and right at infinities, NaN and -0.0. The polynomials are minimax fits by the Remez exchange.

For use inside kernels, on scalars: with x a float32, ``exp(x)`` is float32 arithmetic throughout.
"""

import math
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from . import simd

# What LLVM has not inlined into a loop it cannot vectorise, and these are longer than it would inline by itself.
OPTIONS = {"forceinline": True, "error_model": "numpy", "nogil": True}


class Format(NamedTuple):
    """What differs between float32 and float64."""

    cast: type
    log2e: float
    ln2_high: float  # few enough bits that its product with any exponent is exact
    ln2_low: float
    exp_least: float  # exp of less is 0
    exp_largest: float  # exp of more is infinite
    tanh_one: float  # from here on tanh rounds to 1
    exp_tail: tuple  # (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2
    log_tail: tuple  # (2 atanh(s) / s - 2) / s^2 in powers of s^2, for |s| <= (sqrt(2) - 1) / (sqrt(2) + 1)
    mantissa_bits: int
    normal: float  # the smallest normal number
    lift: int  # 2^lift makes any denormal normal


SINGLE = Format(
    np.float32, *map(np.float32, (1 / math.log(2), 0.693145751953125, 1.4286068203094172e-6, -104, 89, 10)),
    exp_tail=tuple(map(np.float32, (
        0.5000000046413686204, 0.16666666816709719535, 0.041666354664002948402, 0.0083332730451559803133,
        0.0013941008278654855224, 0.00019914172708428463924))),
    log_tail=tuple(map(np.float32, (
        0.66666665644623775798, 0.40000335396583445461, 0.28537294493308863573, 0.23582435001729775461))),
    mantissa_bits=23, normal=np.finfo(np.float32).tiny, lift=24)
DOUBLE = Format(
    np.float64, *map(np.float64, (1 / math.log(2), 0.6931471805582987, 1.6465949582897081e-12, -746, 710, 20)),
    exp_tail=tuple(map(np.float64, (
        0.49999999999999999986, 0.16666666666666676599, 0.041666666666666701346, 0.0083333333333216158363,
        0.0013888888888866849933, 0.00019841269886158406168, 0.000024801587360528238558,
        2.7557244182111505828e-6, 2.755724278628352085e-7, 2.5109044810357212825e-8,
        2.0924434414339066961e-9))),
    log_tail=tuple(map(np.float64, (
        0.66666666666667345093, 0.39999999999413959663, 0.28571428742562798802, 0.22222198553736854754,
        0.181835654090718191, 0.15314021086040607616, 0.14796261382999655805))),
    mantissa_bits=52, normal=np.finfo(np.float64).tiny, lift=53)
FORMATS = {types.float32: SINGLE, types.float64: DOUBLE}


@intrinsic
def polynomial(typing_context, x, coefficients):
    """Horner's rule, lowest power first."""
    def codegen(context, builder, signature, values):
        coefficients = cgutils.unpack_tuple(builder, values[1])
        value = coefficients[-1]
        for coefficient in coefficients[-2::-1]:
            value = simd.multiply_add(builder, value, values[0], coefficient)
        return value
    return x(x, coefficients), codegen


@intrinsic
def multiply_add(typing_context, x, y, z):
    """x y + z, rounded once where the machine has an instruction for it."""
    return x(x, x, x), lambda context, builder, signature, values: simd.multiply_add(builder, *values)


@intrinsic
def nearest_integer(typing_context, x, factor):
    """The integer nearest to x * factor, as a number and as an integer of as many bits; x is moderate.

    Added to a number whose last bit counts ones, the product is rounded, and left in the low bits.
    """
    integer_type = types.Integer.from_bitwidth(x.bitwidth)

    def codegen(context, builder, signature, values):
        integer, shift = ir.IntType(x.bitwidth), values[0].type(1.5 * 2.0**FORMATS[x].mantissa_bits)
        shifted = simd.multiply_add(builder, *values, shift)
        low_bits = builder.sub(builder.bitcast(shifted, integer), builder.bitcast(shift, integer))
        return context.make_tuple(builder, signature.return_type, [builder.fsub(shifted, shift), low_bits])
    return types.Tuple((x, integer_type))(x, x), codegen


@intrinsic
def scale(typing_context, y, exponent):
    """y * 2^exponent for y near 1: half by y's exponent, half by a factor, so that it may be denormal or overflow."""
    def codegen(context, builder, signature, values):
        y, exponent = values
        number, integer = y.type, exponent.type
        bits = integer(FORMATS[signature.return_type].mantissa_bits)
        half = builder.ashr(exponent, integer(1))
        halved = builder.add(builder.bitcast(y, integer), builder.shl(half, bits))
        rest = builder.add(builder.bitcast(number(1.0), integer), builder.shl(builder.sub(exponent, half), bits))
        return builder.fmul(builder.bitcast(halved, number), builder.bitcast(rest, number))
    return y(y, exponent), codegen


@intrinsic
def split(typing_context, x):
    """(m, e) with x = m * 2^e and m in [1/sqrt(2), sqrt(2)), for a positive normal x."""
    kind = FORMATS[x]

    def codegen(context, builder, signature, values):
        integer = ir.IntType(x.bitwidth)
        shift = integer(kind.mantissa_bits)
        root = integer(int(kind.cast(math.sqrt(0.5)).view(f"i{x.bitwidth // 8}")))
        bits = builder.bitcast(values[0], integer)
        exponent = builder.ashr(builder.sub(bits, root), shift)
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, shift)), values[0].type)
        exponent = exponent if integer.width == 32 else builder.trunc(exponent, ir.IntType(32))
        return context.make_tuple(builder, signature.return_type, [mantissa, exponent])
    return types.Tuple((x, types.int32))(x), codegen


@intrinsic
def like(typing_context, x, value):
    """``value`` with the type of x: a bare 1 or 0.5 would turn float32 arithmetic into float64."""
    def codegen(context, builder, signature, values):
        return context.cast(builder, values[1], signature.args[1], signature.return_type)
    return x(x, value), codegen


def _llvm_of_two(name):
    """Code generator for an LLVM intrinsic of two numbers."""
    def codegen(context, builder, signature, values):
        kind = values[0].type
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind, kind]), f"llvm.{name}.f{signature.return_type.bitwidth}")
        return builder.call(function, values)
    return codegen


@intrinsic
def with_sign(typing_context, magnitude, sign):
    """``magnitude`` with the sign of ``sign``."""
    return magnitude(magnitude, magnitude), _llvm_of_two("copysign")


@intrinsic
def larger(typing_context, a, b):
    """The larger of two numbers, or NaN."""
    return a(a, a), _llvm_of_two("maximum")


def reduced_exp(x):
    """(e, n) with exp(x) - 1 = 2^n e + (2^n - 1) and \\|e\\| at most about 0.41; x is a moderate number."""


def exp(x):
    """e^x."""


def sigmoid(x):
    """1 / (1 + e^-x)."""


def tanh(x):
    """(e^2x - 1) / (e^2x + 1)."""


def log(x):
    """The natural logarithm: NaN below 0, -inf at 0."""


def log1p(x):
    """log(1 + x), precise for small x: NaN below -1, -inf there."""


@overload(reduced_exp, jit_options=OPTIONS)
def _reduced_exp(x):
    kind = FORMATS[x]
    log2e, ln2_high, ln2_low, tail = kind.log2e, kind.ln2_high, kind.ln2_low, kind.exp_tail

    def implementation(x):
        number, n = nearest_integer(x, log2e)
        r = multiply_add(number, -ln2_low, multiply_add(number, -ln2_high, x))
        return multiply_add(r * r, polynomial(r, tail), r), n
    return implementation


@overload(exp, jit_options=OPTIONS)
def _exp(x):
    least, largest, one = FORMATS[x].exp_least, FORMATS[x].exp_largest, FORMATS[x].cast(1)

    def implementation(x):
        inside = x if x > least else least  # also for NaN, which has no integer
        inside = inside if inside < largest else largest
        e, n = reduced_exp(inside)
        return scale(one + e, n) if x == x else x
    return implementation


@overload(sigmoid, jit_options=OPTIONS)
def _sigmoid(x):
    one = FORMATS[x].cast(1)

    def implementation(x):
        e = exp(-abs(x))
        return (one if x >= 0 else e) / (one + e)
    return implementation


@overload(tanh, jit_options=OPTIONS)
def _tanh(x):
    one, two, largest = FORMATS[x].cast(1), FORMATS[x].cast(2), FORMATS[x].tanh_one

    def implementation(x):
        magnitude = abs(x)
        inside = magnitude if magnitude < largest else largest
        e, n = reduced_exp(two * inside)
        power = scale(one, n)
        below = multiply_add(power, e, power - one)  # e^2x - 1
        return with_sign(below / (below + two), x) if x == x else x
    return implementation


@overload(log, jit_options=OPTIONS)
def _log(x):
    kind = FORMATS[x]
    cast, normal, lift, tail = kind.cast, kind.normal, np.int32(kind.lift), kind.log_tail
    factor, ln2_high, ln2_low = cast(2.0**kind.lift), kind.ln2_high, kind.ln2_low
    zero, half, one, two, inf, nan = map(cast, (0, 0.5, 1, 2, np.inf, np.nan))

    def implementation(x):
        tiny = x < normal
        m, e = split(x * factor if tiny else x)
        exponent = cast(e) - (cast(lift) if tiny else zero)
        f = m - one
        s = f / (f + two)
        z = s * s
        square = half * f * f
        tail_sum = multiply_add(s, multiply_add(z, polynomial(z, tail), square), exponent * ln2_low)
        y = multiply_add(exponent, ln2_high, f - (square - tail_sum))
        y = y if x < inf else x
        return y if x > 0 else (-inf if x == 0 else nan)
    return implementation


@overload(log1p, jit_options=OPTIONS)
def _log1p(x):
    one, inf = FORMATS[x].cast(1), FORMATS[x].cast(np.inf)

    def implementation(x):
        u = one + x
        y = log(u) + (x - (u - one)) / (u if u > 0 else one)  # the second term is what rounding 1 + x lost
        return y if x < inf else x
    return implementation
