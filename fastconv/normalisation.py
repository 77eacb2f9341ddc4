"""The gate of batch normalisation: an input seen as planes or as pixels, and its sums per channel."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv import check, elementwise, memory
from fastconv.kernels import blocking
from fastconv.kernels import norm as kernels
from fastconv.kernels.jit import Kernel

UNIT = 1 << 14  # elements to a unit of parallel work
CHANNELS_A_CORE = 4  # at least, for cores to take whole channels
ROW = 512  # elements in which channels repeat where there are fewer: short rows are no work for vectors

Kernels = tuple[Kernel, Kernel]  # for planes, for pixels
MOMENTS: Kernels = (kernels.plane_moments, kernels.pixel_moments)
PRODUCTS: Kernels = (kernels.plane_products, kernels.pixel_products)
NORMALISE: Kernels = (kernels.normalise_planes, kernels.normalise_pixels)
GRADIENT: Kernels = (kernels.plane_gradient, kernels.pixel_gradient)


@dataclass(frozen=True)
class Channels:
    """An input with its channels found: planes (N, C, pixels), or rows of channels where there is one pixel."""

    x: np.ndarray
    depth: int
    pixels: int

    @property
    def elements(self) -> int:
        """To a channel."""
        return self.x.size // self.depth

    @functools.cached_property
    def width(self) -> int:
        """Elements that are treated together: a plane, or the channels of a run of pixels."""
        if self.pixels > 1:
            return self.pixels
        most = max(1, ROW // self.depth)
        return self.depth * next((m for m in range(most, 0, -1) if self.elements % m == 0), 1)

    @property
    def chunk(self) -> int:
        """Planes, or rows of ``width``, to a unit of parallel work."""
        return max(1, UNIT // self.width)

    def launch(self, choice: Kernels, *arrays: np.ndarray) -> None:
        kernel = choice[self.pixels == 1]
        copies = self.width // self.depth if self.pixels == 1 else 1
        flat = (np.concatenate([a] * copies) if a.ndim == 1 and copies > 1 else a.reshape(-1) for a in arrays)
        kernel.twin(self.x.size * elementwise.MICROSECONDS)(*flat, self.width, self.chunk)

    def alone(self, arrays: int) -> bool:
        """Whether channels are work enough by themselves, and L2 holds one, of so many arrays, to pass it twice."""
        room = blocking.cache_bytes()[1] // 2
        return (self.pixels > 1 and self.depth >= CHANNELS_A_CORE * blocking.cores()
                and arrays * self.elements * self.x.itemsize <= room)

    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Room for two numbers a channel of each part, (parts, C) in float64, and the elements of each part."""
        if self.pixels > 1:
            sizes = np.full(self.x.shape[0], self.pixels, np.float64)
        else:
            chunk = self.chunk * (self.width // self.depth)
            sizes = np.minimum(self.elements - np.arange(0, self.elements, chunk), chunk).astype(np.float64)
        shape = len(sizes), self.depth
        return np.empty(shape), np.empty(shape), sizes[:, None]

    def vector(self, name: str, value: Any, default: float = 0.0) -> np.ndarray:
        """One number a channel, in the input's dtype."""
        if value is None:
            return np.full(self.depth, default, self.x.dtype)
        vector = check.array(name, value, 1, self.x.dtype)
        check.shape(name, vector, (self.depth,), "(one number a channel)")
        return vector


def channels(input: Any, layout: Any) -> Channels:
    """A checked input (N, C) or (N, C, H, W), or with channels last (N, H, W, C)."""
    x = check.array("input", input)
    last = check.layout(layout) == "NHWC"
    if x.ndim < 2:
        raise ValueError(f"input must have at least 2 dimensions, (N, C) or (N, C, H, W), got shape {x.shape}")
    count, pixels = (x.shape[-1], 1) if last else (x.shape[1], math.prod(x.shape[2:]))
    if min(count, pixels) == 0:
        raise ValueError(f"input must have no empty dimension but the batch, got shape {x.shape}")
    return Channels(x, count, pixels)


def moments(found: Channels) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of each channel, in float64: those of the parts, combined."""
    means, squares, sizes = found.parts()
    found.launch(MOMENTS, means, squares, found.x)
    mean = (sizes * means).sum(axis=0) / found.elements
    return mean, (squares + sizes * (means - mean) ** 2).sum(axis=0) / found.elements


def normalised_by_batch(found: Channels, weight: Any, bias: Any,
                        eps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x - mean) / sqrt(variance + eps) weight + bias, and mean and biased variance of each channel, in float64."""
    if not found.alone(2):
        mean, variance = moments(found)
        narrow_mean, inverse_std = narrowed(found, mean, variance, eps)
        return normalised(found, narrow_mean, inverse_std, weight, bias), mean, variance
    means, squares, _ = found.parts()
    mean, variance = np.empty(found.depth), np.empty(found.depth)
    y = memory.empty(found.x.shape, found.x.dtype)
    kernels.channel_norm.twin(found.x.size * elementwise.MICROSECONDS)(
        y.reshape(-1), means.reshape(-1), squares.reshape(-1), mean, variance, found.x.reshape(-1),
        found.vector("weight", weight, 1), found.vector("bias", bias), float(eps), found.pixels)
    return y, mean, variance


def narrowed(found: Channels, mean: np.ndarray, variance: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1 / sqrt(variance + eps) in the input's dtype, from float64."""
    return mean.astype(found.x.dtype), (1 / np.sqrt(variance + eps)).astype(found.x.dtype)


def normalised(found: Channels, mean: np.ndarray, inverse_std: np.ndarray, weight: Any, bias: Any) -> np.ndarray:
    """(x - mean) inverse_std weight + bias."""
    scale = found.vector("weight", weight, 1) * inverse_std
    y = memory.empty(found.x.shape, found.x.dtype)
    found.launch(NORMALISE, y, found.x, mean, scale, found.vector("bias", bias))
    return y
