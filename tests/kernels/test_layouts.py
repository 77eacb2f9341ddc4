"""Images from one layout to the other."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv import threads
from fastconv.kernels import layouts


@pytest.mark.parametrize("shape", [(1, 1, 5, 4), (2, 3, 9, 17), (3, 20, 1, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_to_nhwc(shape, dtype, rng):
    x = rng.standard_normal(shape).astype(dtype)
    n, c, h, w = shape
    for count in 1, 2:
        y = np.full((n, h, w, c), np.nan, dtype)
        with threads(count):
            layouts.to_nhwc(y, x)
        assert_array_equal(y, x.transpose(0, 2, 3, 1))
