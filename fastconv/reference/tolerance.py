"""How far two right results may lie apart."""

from __future__ import annotations

import numpy as np

WINOGRAD_TERMS = 418  # with the largest result as operand: 1e-4 of it in float32, far above the error seen


def bound(terms: int, *operands: np.ndarray) -> float:
    """How far two orders of a sum of products may lie apart: 2 eps (terms+1) max|x| max|w|.

    ``terms`` products of one element of each operand; ``eps`` is that of the coarsest. Where there is no sum,
    one term and the result itself bound its last few bits.
    """
    eps = max(np.finfo(operand.dtype).eps for operand in operands)
    largest = [float(np.abs(operand).max(initial=0)) for operand in operands]
    return float(2 * eps * (terms + 1) * np.prod(largest))
