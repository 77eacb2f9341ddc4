"""Compiling ahead what a model needs, so that its first training step need not wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fastconv.compiling import watch_compiling
from fastconv.data import Dataset, Scaling, Split
from fastconv.nn import Module
from fastconv.recipes import Settings
from fastconv.train import EVALUATION_BATCH, fit


@dataclass(frozen=True)
class Warmup:
    """What was compiled, and how long it took."""

    kernels: int  # compiled now; those found in the cache do not count
    compile_seconds: float
    seconds: float
    step_seconds: float  # one training step, once everything is compiled


def warm_up(model: Module, image_shape: tuple[int, int, int], settings: Settings, dtype: str = "float32",
            on_compile: Callable[[], None] | None = None) -> Warmup:
    """Train ``model`` for an epoch of one batch of random images (C, H, W) and evaluate it, twice.

    The model's weights change.
    """
    started = time.perf_counter()
    with watch_compiling(on_compile) as watch:
        rng = np.random.default_rng(0)
        training = _images(rng, settings.batch_size, image_shape, dtype)
        classes = model(training[:1]).shape[-1]
        data = Dataset(
            "random numbers",
            Split(training, rng.integers(0, classes, len(training))),
            Split(_images(rng, EVALUATION_BATCH, image_shape, dtype), rng.integers(0, classes, EVALUATION_BATCH)),
            tuple(map(str, range(classes))),
            Scaling((0.0,) * image_shape[0], (1.0,) * image_shape[0]),
        )
        fit(model, data, replace(settings, epochs=1))
    again = fit(model, data, replace(settings, epochs=1))
    return Warmup(watch.kernels, watch.seconds, time.perf_counter() - started, again.history[0]["seconds"])


def _images(rng: np.random.Generator, count: int, shape: tuple[int, int, int], dtype: str) -> np.ndarray:
    return rng.random((count, *shape), np.float32).astype(dtype, copy=False)
