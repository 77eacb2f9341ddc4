"""Images to train on: MNIST's IDX files, CIFAR-10's binary batches, and 5,000 digits from a package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from fastconv.data.batches import Batches
from fastconv.data.cifar10 import is_cifar10_folder, load_cifar10
from fastconv.data.dataset import Dataset, Scaling, Split
from fastconv.data.digits import load_digits
from fastconv.data.idx import is_mnist_folder, load_mnist, read_idx, write_idx

__all__ = [
    "Batches",
    "Dataset",
    "Scaling",
    "Split",
    "load",
    "load_cifar10",
    "load_digits",
    "load_mnist",
    "read_idx",
    "write_idx",
]

FORMATS = (
    ("train-images-idx3-ubyte and its three companions (MNIST)", is_mnist_folder, load_mnist),
    ("data_batch_1.bin and test_batch.bin (CIFAR-10, binary version)", is_cifar10_folder, load_cifar10),
)


def load(folder: str | Path, dtype: DTypeLike = np.float32) -> Dataset:
    """The data set in a folder, recognised by its file names, each of which may be gzipped."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"data folder {folder} does not exist or is no folder")
    for _, recognises, load_folder in FORMATS:
        if recognises(folder):
            return load_folder(folder, dtype)
    expected = "; or ".join(names for names, _, _ in FORMATS)
    raise ValueError(f"data folder {folder} must hold {expected}")
