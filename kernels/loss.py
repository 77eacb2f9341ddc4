"""Losses and their gradients. Logits are rows (N, C); the other losses are elementwise, on flat arrays."""

import numpy as np
from numba import prange

from .activation import elementwise, elementwise_of_two, exponentials
from .elementary import exp, larger, like, log, log1p, multiply_add, sigmoid
from .jit import device_function, kernel
from .reductions import sum_and_products, sum_of


@kernel(serial_only=True)
def all_labels(labels, classes):
    """Whether all are from 0 to ``classes`` - 1."""
    wrong = 0
    for i in range(labels.size):
        wrong += labels[i] < 0 or labels[i] >= classes
    return wrong == 0


@kernel(serial_only=True)
def total(losses):
    """Their sum, in float64."""
    return sum_of(0.0, losses)


@device_function
def _cross_entropy(highest, powers, label, values, weight, total_weight, smoothing):
    """The loss of one row, of its largest logit and the sum ``powers`` of exp(logit - largest)."""
    logarithm = log(powers)
    loss = weight[label] * ((highest - values[label]) + logarithm)
    if smoothing > 0:
        _, distance = sum_and_products(highest, weight, values, highest)
        spread = multiply_add(total_weight, logarithm, -distance)
        loss = multiply_add(smoothing, spread / weight.size - loss, loss)
    return loss


@kernel
def cross_entropy(losses, x, target, weight, total_weight, smoothing, rows_a_block):
    """losses (N) = -sum_c a_c log softmax(x)_c of logits x (N, C); a negative target gives 0.

    a = (1 - smoothing) weight[t] onehot(t) + smoothing / C weight, with weight (C), of sum ``total_weight``.
    """
    rows, classes = target.size, weight.size
    for block in prange((rows + rows_a_block - 1) // rows_a_block):
        first, last = block * rows_a_block, min(rows, (block + 1) * rows_a_block)
        largest, powers = np.empty(last - first, x.dtype), np.empty((last - first) * classes, x.dtype)
        exponentials(powers, largest, x[first * classes:last * classes], classes)
        for row in range(first, last):
            label, values = target[row], x[row * classes:(row + 1) * classes]
            if label < 0:
                losses[row] = 0
                continue
            whole = sum_of(largest[0], powers[(row - first) * classes:(row - first + 1) * classes])
            losses[row] = _cross_entropy(largest[row - first], whole, label, values, weight, total_weight, smoothing)


@kernel
def cross_entropy_with_gradient(losses, dx, x, target, weight, total_weight, smoothing, scale, rows_a_block):
    """The losses, and dx = scale (softmax(x) sum(a) - a) for each row, a as above; scale (N)."""
    rows, classes = target.size, weight.size
    for block in prange((rows + rows_a_block - 1) // rows_a_block):
        first, last = block * rows_a_block, min(rows, (block + 1) * rows_a_block)
        largest, powers = np.empty(last - first, x.dtype), dx[first * classes:last * classes]
        exponentials(powers, largest, x[first * classes:last * classes], classes)
        for row in range(first, last):
            label, values = target[row], x[row * classes:(row + 1) * classes]
            out = powers[(row - first) * classes:(row - first + 1) * classes]
            if label < 0:
                losses[row] = 0
                out[:] = 0
                continue
            whole = sum_of(out[0], out)
            losses[row] = _cross_entropy(largest[row - first], whole, label, values, weight, total_weight, smoothing)
            sharp = weight[label] - smoothing * weight[label]
            even = smoothing / classes
            factor = scale[row] * (sharp + even * total_weight) / whole
            for c in range(classes):
                out[c] = multiply_add(factor, out[c], -scale[row] * even * weight[c])
            out[label] -= scale[row] * sharp


@elementwise_of_two
def binary_cross_entropy(a, y):
    """-(y log a + (1 - y) log(1 - a)) with each logarithm at least -100, as torch has it."""
    least = like(a, -100)
    return -multiply_add(y, larger(log(a), least), (like(y, 1) - y) * larger(log1p(-a), least))


@elementwise_of_two
def binary_cross_entropy_gradient(a, y, scale):
    """scale (a - y) / (a (1 - a)), the denominator at least 1e-12, as torch has it."""
    return scale * (a - y) / larger(a * (like(a, 1) - a), like(a, 1e-12))


@elementwise_of_two
def binary_cross_entropy_with_logits(z, y):
    """(1 - y) z + log(1 + exp(-z)), without overflow or cancellation."""
    return multiply_add(-z, y, larger(z, like(z, 0))) + log1p(exp(-abs(z)))


@elementwise_of_two
def binary_cross_entropy_with_logits_gradient(z, y, scale):
    """scale (sigmoid(z) - y)."""
    return scale * (sigmoid(z) - y)


@elementwise
def softplus(z):
    """log(1 + exp(z)), without overflow."""
    return larger(z, like(z, 0)) + log1p(exp(-abs(z)))


@elementwise_of_two
def squared_error(x, y):
    """(x - y)^2."""
    return (x - y) * (x - y)


@elementwise_of_two
def squared_error_gradient(x, y, scale):
    """scale (x - y), the factor 2 being a part of scale."""
    return scale * (x - y)
