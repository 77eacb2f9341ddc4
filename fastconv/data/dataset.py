"""What training reads: arrays of images and labels, split in two, and how their pixels were scaled."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), float32 or float64, and their labels (N,), int64."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.ndim != 4:
            raise ValueError(f"images must have 4 dimensions (N, C, H, W), got shape {self.images.shape}")
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must have shape {self.images.shape[:1]}, one an image, got {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Scaling:
    """Pixels 0..255 become ``(pixel / 255 - mean) / std``, with one mean and std a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, pixels: np.ndarray) -> Scaling:
        """The scaling that gives these uint8 images (N, C, H, W) mean 0 and variance 1."""
        counts = np.stack(
            [np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(pixels, 1, 0)]
        )
        shares = counts / max(1, counts[0].sum())
        values = np.arange(256) / 255
        mean = shares @ values
        std = np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))
        std[std == 0] = 1  # every pixel equal: nothing to scale
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def apply(self, pixels: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
        """Scaled copy of images (N, C, H, W) whose pixels are 0..255."""
        mean, std = (np.array(values, dtype)[:, None, None] for values in (self.mean, self.std))
        scaled = pixels.astype(dtype)
        scaled -= 255 * mean
        scaled /= 255 * std
        return scaled

    def undo(self, images: np.ndarray) -> np.ndarray:
        """Pixels 0..1 of scaled images (..., C, H, W)."""
        mean, std = (np.array(values, images.dtype)[:, None, None] for values in (self.mean, self.std))
        return np.clip(images * std + mean, 0, 1)


@dataclass(frozen=True)
class Dataset:
    """Images to train on and others, held out, to validate on.

    ``validation_name`` is what the latter are called in print: "test" where they are a published test set.
    """

    name: str
    train: Split
    validation: Split
    classes: tuple[str, ...]
    scaling: Scaling
    validation_name: str = "validation"

    @classmethod
    def from_pixels(
        cls,
        name: str,
        train: tuple[np.ndarray, np.ndarray],
        validation: tuple[np.ndarray, np.ndarray],
        classes: tuple[str, ...],
        validation_name: str = "validation",
        dtype: DTypeLike = np.float32,
    ) -> Dataset:
        """From pairs of uint8 images (N, C, H, W) and integer labels (N,), scaled by the training pixels."""
        scaling = Scaling.of(train[0])


        def split(pixels: np.ndarray, labels: np.ndarray) -> Split:
            return Split(scaling.apply(pixels, dtype), labels.astype(np.int64))

        return cls(name, split(*train), split(*validation), classes, scaling, validation_name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, rows, columns = self.train.images.shape[1:]
        return channels, rows, columns

    def light_on_dark(self) -> bool:
        """Whether the training images' border is mostly dark, as MNIST's is."""
        edges = self.train.images[..., [0, -1], :]
        return bool(self.scaling.undo(edges).mean() < 0.5)

    def fingerprint(self) -> str:
        """Checksum of what is trained on, so that a run is not resumed on other data."""
        checksum = zlib.crc32(np.ascontiguousarray(self.train.images).data)
        return f"{zlib.crc32(np.ascontiguousarray(self.train.labels).data, checksum):08x}"
