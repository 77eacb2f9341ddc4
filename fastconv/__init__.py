"""fastconv: train convolutional networks on the CPU, fast, from pure Python."""

from fastconv.convolution import set_winograd
from fastconv.threads import get_num_threads, set_num_threads, threads

__version__ = "0.1.0"
__all__ = ["get_num_threads", "set_num_threads", "set_winograd", "threads"]
