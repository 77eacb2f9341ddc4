"""One picture from a file, made to look like those that a model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastconv.data.idx import read_idx
from fastconv.extras import require

DIGIT_SHARE = 20 / 28  # MNIST's digits were fitted into 20 x 20 of 28 x 28 pixels, centred by their mass
INK = 0.25  # what is brighter than this share of the brightest counts as drawn


def read_image(source: str | Path, shape: tuple[int, int, int], light_on_dark: bool = True) -> np.ndarray:
    """Pixels 0..255 of shape (C, H, W), uint8, of an image file, or of one row of an IDX file as FILE:ROW.

    For three channels the image is cropped to the model's proportions and resized. For one it becomes gray, and
    is inverted where its border is bright but the training images' was dark (``light_on_dark``), or the other
    way round. Then, unless it has the model's size already, what is drawn on it is cut out, scaled and centred
    as MNIST's digits were. ValueError names a file that cannot be read.
    """
    file, colon, row = str(source).rpartition(":")
    if colon and row.isdigit():
        return _idx_row(Path(file), int(row), shape)
    image = _open(Path(source))
    size = (shape[2], shape[1])
    if shape[0] == 3:
        fitted = require("PIL.ImageOps").fit(image.convert("RGB"), size)
        return np.moveaxis(np.asarray(fitted), -1, 0)
    drawn = _gray(image)
    border = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
    background = float(np.median(border))
    strokes = drawn if background < 128 else 255 - drawn
    if image.size != size:
        strokes = _as_digit(strokes, min(background, 255 - background), shape[1:])
    return np.rint(strokes if light_on_dark else 255 - strokes).astype(np.uint8)[None]


def _idx_row(path: Path, row: int, shape: tuple[int, int, int]) -> np.ndarray:
    images = read_idx(path)
    if images.ndim != 3 or (1, *images.shape[1:]) != shape:
        raise ValueError(
            f"{path} must hold images of {shape[1]} x {shape[2]} pixels for this model of "
            f"{shape[0]} channel{'s' * (shape[0] > 1)}, got shape {images.shape}"
        )
    if row >= len(images):
        raise ValueError(f"{path} has rows 0 to {len(images) - 1}, got {row}")
    return images[row][None]


def _open(path: Path) -> Any:
    """The picture, upright, on white where it is transparent."""
    pillow = require("PIL.Image")
    try:
        image = require("PIL.ImageOps").exif_transpose(pillow.open(path))
        image.load()
    except FileNotFoundError:
        raise ValueError(f"image {path} does not exist") from None
    except (OSError, SyntaxError, pillow.DecompressionBombError) as error:
        hint = "; for an image in an IDX file write FILE:ROW" if "idx" in path.name else ""
        raise ValueError(f"{path} is no image that can be read: {error}{hint}") from error
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image


def _gray(image: Any) -> np.ndarray:
    """Pixels (rows, columns), 0..255, float64."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert("L") would clip
        return np.asarray(image, np.float64) / 257
    return np.asarray(image.convert("L"), np.float64)


def _as_digit(drawn: np.ndarray, background: float, shape: tuple[int, ...]) -> np.ndarray:
    """Light strokes on dark, of any size, placed on black as MNIST's are."""
    strokes = np.clip(drawn - background, 0, None)
    strokes *= 255 / (strokes.max() or 1)
    rows, columns = (np.flatnonzero((strokes > INK * 255).any(axis=axis)) for axis in (1, 0))
    placed = np.zeros(shape)
    if not rows.size:
        return placed
    cut = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = DIGIT_SHARE * min(shape[0] / cut.shape[0], shape[1] / cut.shape[1])
    height, width = (max(1, round(scale * length)) for length in cut.shape)
    pillow = require("PIL.Image")
    small = np.asarray(
        pillow.fromarray(cut.astype(np.float32)).resize((width, height), pillow.Resampling.BOX)
    )
    small = np.clip(small * (255 / small.max()), 0, 255)
    top, left = (_centred(small.sum(axis=1 - axis), shape[axis]) for axis in (0, 1))
    placed[top : top + height, left : left + width] = small
    return placed


def _centred(mass: np.ndarray, size: int) -> int:
    """Where to begin so that the centre of mass comes to the middle, without leaving the image."""
    centre = (mass * (np.arange(len(mass)) + 0.5)).sum() / mass.sum()
    return int(np.clip(round(size / 2 - centre), 0, size - len(mass)))
