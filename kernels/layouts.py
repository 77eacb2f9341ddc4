"""Images from one layout to the other."""

import numba
import numpy as np

from .jit import kernel
from .rows import move_run
from .simd import address


@kernel
def to_nhwc(y, x):
    """y (N, H, W, C) = x (N, C, H, W)."""
    size, channels, pixels = x.itemsize, x.shape[1], x.shape[2] * x.shape[3]
    for image in numba.prange(len(x)):
        for c in range(channels):
            place = np.int64(image) * channels * pixels
            move_run(x.dtype.type(0), address(y) + (place + c) * size, channels,
                     address(x) + (place + c * pixels) * size, 1, pixels)
