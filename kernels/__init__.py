"""The loops of fastconv: Numba kernels over NumPy arrays, installed as ``fastconv.kernels``."""
