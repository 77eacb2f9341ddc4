"""CIFAR-10's binary version: records of one label byte and 3 x 32 x 32 pixel bytes, channel by channel
(www.cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from fastconv.data.dataset import Dataset
from fastconv.data.idx import check_labels, find, read_bytes

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32


def read_batch(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,), both uint8, of one batch file, gzipped or not."""
    path = Path(path)
    data = np.frombuffer(read_bytes(path), np.uint8)
    if data.size == 0 or data.size % RECORD:
        raise ValueError(
            f"{path} is truncated or no CIFAR-10 binary batch: its size must be a positive multiple "
            f"of {RECORD} bytes, got {data.size}"
        )
    records = data.reshape(-1, RECORD)
    labels = records[:, 0]
    check_labels(path, labels, len(CLASSES))
    return records[:, 1:].reshape(-1, *SHAPE), labels


def _training_batches(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("data_batch_*.bin")) + sorted(folder.glob("data_batch_*.bin.gz"))
    return [path for path in paths if path.suffix != ".gz" or path.with_suffix("") not in paths]


def is_cifar10_folder(folder: Path) -> bool:
    """Whether the folder has a training batch."""
    return bool(_training_batches(folder))


def load_cifar10(folder: str | Path, dtype: DTypeLike = np.float32) -> Dataset:
    """Every data_batch_*.bin to train on and test_batch.bin held out, each also as .gz."""
    folder = Path(folder)
    batches = _training_batches(folder)
    test = find(folder, "test_batch.bin")
    if not batches or test is None:
        missing = "test_batch.bin" if batches else "data_batch_1.bin"
        raise ValueError(f"{folder} has no {missing}, gzipped or not")
    images, labels = zip(*map(read_batch, batches))
    return Dataset.from_pixels(
        "cifar10",
        (np.concatenate(images), np.concatenate(labels)),
        read_batch(test),
        CLASSES,
        validation_name="test",
        dtype=dtype,
    )
