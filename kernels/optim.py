"""Optimiser updates: one pass over a parameter, in place, on flat contiguous arrays.

    sgd       g = dw + decay w;  v = momentum v + fresh g;  w -= lr (g + momentum v, or v)
    adam      g = dw + decay w;  m += fresh1 (g - m);  v = beta2 v + fresh2 g^2
              w = keep w - step m / (sqrt(v) correction + eps)

These are torch's formulas. Every scalar has the arrays' dtype. Blocks have a fixed length, so that the bits do not
depend on the number of threads; their slices, indexed from 0, are what LLVM vectorises (7 times as fast).
"""

import math

import numba

from .elementary import multiply_add
from .jit import kernel

BLOCK = 1 << 14


@kernel
def sgd(w, dw, lr, decay):
    """Without momentum."""
    for block in numba.prange((w.size + BLOCK - 1) // BLOCK):
        part = slice(block * BLOCK, min(w.size, (block + 1) * BLOCK))
        w_part, dw_part = w[part], dw[part]
        for i in range(w_part.size):
            w_part[i] = multiply_add(-lr, multiply_add(decay, w_part[i], dw_part[i]), w_part[i])


@kernel
def sgd_momentum(w, v, dw, lr, decay, momentum, fresh, nesterov):
    """``fresh`` is 1 - dampening, and 1 at the first step, when ``v`` is zero."""
    for block in numba.prange((w.size + BLOCK - 1) // BLOCK):
        part = slice(block * BLOCK, min(w.size, (block + 1) * BLOCK))
        w_part, v_part, dw_part = w[part], v[part], dw[part]
        for i in range(w_part.size):
            g = multiply_add(decay, w_part[i], dw_part[i])
            velocity = multiply_add(momentum, v_part[i], fresh * g)
            v_part[i] = velocity
            w_part[i] = multiply_add(-lr, multiply_add(momentum, velocity, g) if nesterov else velocity, w_part[i])


@kernel
def adam(w, m, v, dw, step, decay, keep, fresh1, beta2, fresh2, correction, eps):
    """``fresh`` is 1 - beta, ``correction`` 1/sqrt(1 - beta2^t), ``step`` lr/(1 - beta1^t).

    ``keep`` is 1 - lr times the decoupled weight decay, 1 for plain Adam.
    """
    for block in numba.prange((w.size + BLOCK - 1) // BLOCK):
        part = slice(block * BLOCK, min(w.size, (block + 1) * BLOCK))
        w_part, m_part, v_part, dw_part = w[part], m[part], v[part], dw[part]
        for i in range(w_part.size):
            g = multiply_add(decay, w_part[i], dw_part[i])
            first = multiply_add(fresh1, g - m_part[i], m_part[i])
            second = multiply_add(beta2, v_part[i], fresh2 * g * g)
            m_part[i] = first
            v_part[i] = second
            w_part[i] = multiply_add(keep, w_part[i], -step * first / multiply_add(math.sqrt(second), correction, eps))
