"""Minibatches of arrays in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastconv.data.dataset import Split


class Batches:
    """Shuffled minibatches, whose order in an epoch depends on the seed and the epoch alone.

    So training can go on from any batch of any epoch. All batches lie in the same buffers: each is valid until the
    next one.
    """

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size}")
        if not len(split):
            raise ValueError("there are no images to make batches of")
        self.split = split
        self.batch_size = min(batch_size, len(split))
        self.seed = seed
        self._images = np.empty((self.batch_size, *split.images.shape[1:]), split.images.dtype)
        self._labels = np.empty(self.batch_size, split.labels.dtype)

    def __len__(self) -> int:
        """Batches in an epoch; the last may be smaller."""
        return -(-len(self.split) // self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images and labels of the batches of one epoch, from batch ``start`` on."""
        order = np.random.default_rng((self.seed, number)).permutation(len(self.split))
        for first in range(start * self.batch_size, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            images, labels = self._images[: len(chosen)], self._labels[: len(chosen)]
            # mode="clip" writes straight into the buffer; the default checks through a copy of it
            np.take(self.split.images, chosen, axis=0, out=images, mode="clip")
            np.take(self.split.labels, chosen, axis=0, out=labels, mode="clip")
            yield images, labels
