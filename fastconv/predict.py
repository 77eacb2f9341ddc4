"""Using a trained model: its weights, and how its images were scaled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from fastconv import recipes
from fastconv.checkpoint import load_model
from fastconv.data import Scaling
from fastconv.data.image import read_image
from fastconv.nn import Module
from fastconv.run import CONFIG, MODEL, read_config
from fastconv.train import probabilities


@dataclass(frozen=True)
class Classifier:
    """A model with all that turns a picture into its answer; ``image_shape`` is (C, H, W)."""

    model: Module
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    scaling: Scaling
    dtype: np.dtype
    light_on_dark: bool = True

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From a run folder, or a .safetensors file with the run's config.json beside it.

        A model of the user's own, FILE.py:factory, runs that file, at the path it had when it was trained.
        """
        path = Path(path)
        weights = path / MODEL if path.is_dir() else path
        if not weights.is_file():
            raise ValueError(
                f"model {path} must be a run folder or a .safetensors file, and there is no {weights}"
            )
        config = read_config(weights.parent / CONFIG)
        try:
            images = config["images"]
            channels, rows, columns = images["shape"]
            scaling = Scaling(tuple(images["mean"]), tuple(images["std"]))
            dtype = np.dtype(images["dtype"])
            name, classes, light_on_dark = config["model"], tuple(config["classes"]), images["light_on_dark"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{weights.parent / CONFIG} does not describe a model: {error!r}") from error
        model = recipes.build(name, dtype=dtype)
        load_model(weights, model)
        return cls(model.eval(), classes, (channels, rows, columns), scaling, dtype, light_on_dark)

    def read(self, source: str | Path) -> np.ndarray:
        """Pixels (C, H, W), uint8, of an image file or FILE:ROW of an IDX file, see :func:`read_image`."""
        return read_image(source, self.image_shape, self.light_on_dark)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities (N, classes), float64, of images (N, C, H, W) whose pixels are 0..255."""
        return probabilities(self.model, self.scaling.apply(np.asarray(pixels), self.dtype))
