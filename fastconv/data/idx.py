"""IDX files, MNIST's format: a magic number, the dimensions, then the bytes (yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from fastconv.data.dataset import DIGITS, Dataset

UINT8 = 0x08
GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: Path) -> bytes:
    """A file's bytes, unpacked where it is gzipped; ValueError where that fails."""
    raw = path.read_bytes()
    if not raw.startswith(GZIP_MAGIC):
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error


def read_idx(path: str | Path) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped or not; ValueError names the file and what is wrong with it."""
    path = Path(path)
    data = read_bytes(path)
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError(
            f"{path} is not an IDX file: it must begin with two zero bytes, got {data[:4].hex()!r}"
        )
    kind, rank = data[2], data[3]
    if kind != UINT8:
        raise ValueError(f"{path} must hold unsigned bytes (IDX type 0x08), got type 0x{kind:02x}")
    header = 4 + 4 * rank
    if rank == 0 or len(data) < header:
        raise ValueError(f"{path} is truncated: its header needs {header} bytes, got {len(data)}")
    shape = struct.unpack(f">{rank}I", data[4:header])
    if len(data) - header != math.prod(shape):
        state = "truncated" if len(data) - header < math.prod(shape) else "too long"
        raise ValueError(
            f"{path} is {state}: {' x '.join(map(str, shape))} bytes expected after its header, "
            f"got {len(data) - header}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def write_idx(path: str | Path, array: np.ndarray) -> None:
    """Write a uint8 array as an IDX file; gzipped where the name ends in .gz."""
    if array.dtype != np.uint8 or not 1 <= array.ndim <= 255:
        raise ValueError(
            f"array must be uint8 with at least one dimension, got {array.dtype} of shape {array.shape}"
        )
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, UINT8, array.ndim, *array.shape) + array.tobytes()
    path = Path(path)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def find(folder: Path, name: str) -> Path | None:
    """``name`` or ``name.gz`` in the folder, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def check_labels(path: Path, labels: np.ndarray, classes: int) -> None:
    """Refuse labels outside 0..classes-1, naming the file and the first that is wrong."""
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        raise ValueError(
            f"{path} has a label out of range: labels must be 0 to {classes - 1}, "
            f"got {labels[wrong[0]]} at index {wrong[0]}"
        )


def _read_pair(folder: Path, prefix: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    paths = [find(folder, name) for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")]
    images_path, labels_path = paths
    if images_path is None or labels_path is None:
        missing = "images-idx3" if images_path is None else "labels-idx1"
        raise ValueError(f"{folder} has no {prefix}-{missing}-ubyte, gzipped or not")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3:
        raise ValueError(f"{images_path} must have 3 dimensions (images, rows, columns), got {images.ndim}")
    if images.size == 0:
        raise ValueError(f"{images_path} holds no images")
    if labels.ndim != 1 or len(labels) != len(images):
        raise ValueError(
            f"{labels_path} must hold one label for each of the {len(images)} images of "
            f"{images_path.name}, got shape {labels.shape}"
        )
    check_labels(labels_path, labels, classes)
    return images[:, None], labels


def is_mnist_folder(folder: Path) -> bool:
    """Whether the folder has the first of MNIST's files."""
    return find(folder, "train-images-idx3-ubyte") is not None


def load_mnist(
    folder: str | Path, dtype: DTypeLike = np.float32, classes: tuple[str, ...] = DIGITS
) -> Dataset:
    """train-images-idx3-ubyte, train-labels-idx1-ubyte and their t10k- counterparts, each also as .gz."""
    folder = Path(folder)
    train, test = (_read_pair(folder, prefix, len(classes)) for prefix in ("train", "t10k"))
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"{folder} has training images of shape {train[0].shape[1:]} but test images of "
            f"{test[0].shape[1:]}"
        )
    return Dataset.from_pixels("mnist", train, test, classes, validation_name="test", dtype=dtype)
