"""The oracles: `naive` says what every operation means, `im2col` is the matrix form people write in NumPy.

Both import only NumPy and nothing of the rest of the package, so that an error in the kernels, the checks or
the plans cannot hide itself. They take valid arguments for granted.
"""
