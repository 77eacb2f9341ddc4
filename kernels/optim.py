"""Optimiser updates: one pass over a parameter, in place, on flat contiguous arrays.

    sgd       g = dw + decay w;  v = momentum v + (1 - dampening) g;  w -= lr (g + momentum v, or v)
    adam      g = dw + decay w;  m += (1 - beta1)(g - m);  v = beta2 v + (1 - beta2) g^2
              w = keep w - step m / (sqrt(v) correction + eps)

These are torch's formulas. Every scalar has the arrays' dtype. Blocks have a fixed length, so that the bits do
not depend on the number of threads.
"""

import math

import numba

from .jit import kernel

BLOCK = 1 << 14


@kernel
def sgd(w, dw, lr, decay):
    for block in numba.prange((w.size + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min(w.size, (block + 1) * BLOCK)):
            w[i] -= lr * (dw[i] + decay * w[i])


@kernel
def sgd_momentum(w, v, dw, lr, decay, momentum, fresh, nesterov):
    """``fresh`` is 1 - dampening, and 1 at the first step, when ``v`` is zero."""
    for block in numba.prange((w.size + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min(w.size, (block + 1) * BLOCK)):
            g = dw[i] + decay * w[i]
            v[i] = momentum * v[i] + fresh * g
            w[i] -= lr * (g + momentum * v[i] if nesterov else v[i])


@kernel
def adam(w, m, v, dw, step, decay, keep, fresh1, beta2, fresh2, correction, eps):
    """``fresh`` is 1 - beta; ``keep`` is 1 - lr times the decoupled weight decay, 1 for plain Adam."""
    for block in numba.prange((w.size + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min(w.size, (block + 1) * BLOCK)):
            g = dw[i] + decay * w[i]
            m[i] += fresh1 * (g - m[i])
            v[i] = beta2 * v[i] + fresh2 * g * g
            w[i] = keep * w[i] - step * m[i] / (math.sqrt(v[i]) * correction + eps)
