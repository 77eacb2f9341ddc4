"""The linear layer's product."""

from __future__ import annotations

import numpy as np

from fastconv import check
from fastconv.kernels import gemm


def linear(input: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, *,
           out: np.ndarray | None = None) -> np.ndarray:
    """``y = x W^T + b``, as ``torch.nn.functional.linear``. Up to 4 samples are summed in another order than more.

    Args:
        input: (..., features in), float32 or float64.
        weight: (features out, features in).
        bias: (features out,) or None.

    Returns:
        (..., features out).
    """
    x = check.array("input", input)
    w = check.array("weight", weight, 2, x.dtype)
    outputs, features = w.shape
    if x.ndim < 1 or x.shape[-1] != features:
        raise ValueError(f"input must have {features} features in its last dimension, as weight of shape "
                         f"{w.shape} takes, got shape {x.shape}")
    b = None if bias is None else check.array("bias", bias, 1, x.dtype)
    if b is not None:
        check.shape("bias", b, (outputs,), "(one number an output feature)")
    y = check.output(out, (*x.shape[:-1], outputs), x.dtype, x, w, b)
    rows = y.size // max(1, outputs)
    if rows and outputs:
        product = gemm.Product(rows, outputs, features, features, 1, 1, features, x.dtype.char)
        gemm.run(y.reshape(rows, outputs), x.reshape(rows, features), w, b, product)
        if not features and b is not None:
            y[...] = b
    return y
