"""The pictures of a training run, as matplotlib figures; nothing here shows a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastconv.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#22262b", "#737a83", "#e4e7eb"
BLUE, ORANGE, RED = "#2166ac", "#e08214", "#c0392b"
STYLE: dict[str, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
}


class LayerOutput(NamedTuple):
    """What one layer made of one image: values (C, H, W), or (features,) after flattening."""

    name: str
    values: np.ndarray


def styled(function: Any) -> Any:
    """Decorate a plot to be drawn in the package's style; matplotlib's settings are left as they were."""

    def draw(*args: Any, **keywords: Any) -> Figure:
        with require("matplotlib").rc_context(STYLE):
            return function(*args, **keywords)

    draw.__doc__, draw.__name__ = function.__doc__, function.__name__
    return draw


def _figure(width: float, height: float) -> Figure:
    return require("matplotlib.figure").Figure(figsize=(width, height))


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG file, with an even margin."""
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)


@styled
def curves(history: Sequence[dict[str, float]], validation_name: str = "validation") -> Figure:
    """Loss and accuracy of each epoch, from rows as in metrics.csv."""
    figure = _figure(10, 4)
    epochs = [row["epoch"] for row in history]
    for axes, quantity, scale, unit in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("", " (%)")
    ):
        lines = {}
        for part, shown, color in (("train", "training", BLUE), ("validation", validation_name, ORANGE)):
            values = [scale * row[f"{part}_{quantity}"] for row in history]
            axes.plot(epochs, values, color=color, marker="o", markersize=4, linewidth=1.8)
            lines[shown] = (values[-1], color)
        axes.set_title(f"{quantity.capitalize()}{unit}", weight="bold")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
        _label_ends(axes, epochs[-1], lines, "{:.3f}" if quantity == "loss" else "{:.1f}%")
    return figure


def _label_ends(axes: Axes, x: float, lines: dict[str, tuple[float, str]], number: str) -> None:
    """Names and last values right of the curves, kept apart where these end close together."""
    low, high = axes.get_ylim()
    gap = 0.07 * (high - low)
    ordered = sorted(lines.items(), key=lambda item: item[1][0])
    middle = sum(value for value, _ in lines.values()) / len(lines)
    apart = ordered[-1][1][0] - ordered[0][1][0] >= gap
    for position, (name, (value, color)) in enumerate(ordered):
        y = value if apart else middle + (position - 0.5) * gap
        axes.annotate(
            f" {name} {number.format(value)}",
            (x, y),
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
        )


@styled
def filters(weight: np.ndarray) -> Figure:
    """First-layer filters (K, C, R, S): in colour for three channels, else blue below zero and red above."""
    count, channels, rows, columns = weight.shape
    colored = channels == 3
    across = min(count, 8 if count <= 64 else 16)
    down = math.ceil(count / across)
    figure = _figure(8, (7.2 if not colored else 8) * down / across * rows / columns)
    grid = figure.subplots(down, across, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
    limit = float(np.abs(weight).max()) or 1.0
    shown: Any = None
    for axes, kernel in _fill(grid, weight):
        if colored:
            low, high = kernel.min(), kernel.max()
            axes.imshow(np.moveaxis((kernel - low) / (high - low or 1), 0, -1), interpolation="nearest")
        else:
            shown = axes.imshow(kernel[0], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    if not colored:
        bar = figure.colorbar(shown, ax=grid.ravel().tolist(), shrink=0.7, aspect=30, label="weight")
        bar.outline.set_visible(False)
    _title(figure, f"What the first layer looks for: {count} filters of {rows} x {columns}", bold=True)
    return figure


def _fill(grid: np.ndarray, items: Any) -> Any:
    """Pairs of axes and item; the axes are bare, and those left over are hidden."""
    for axes in grid.flat:
        axes.set_axis_off()
    return zip(grid.flat, items)


def _title(part: Any, text: str, bold: bool = False) -> None:
    """Over a figure or a part of one, at the left."""
    style = {"weight": "bold", "fontsize": 11} if bold else {"fontsize": 9.5}
    part.suptitle(text, x=0.008, ha="left", color=INK, **style)


@styled
def feature_maps(image: np.ndarray, outputs: Sequence[LayerOutput], probabilities: np.ndarray,
                 classes: Sequence[str], across: int = 12) -> Figure:
    """One image (C, H, W), pixels 0..1, on its way: up to ``across`` maps of each layer, and the answer."""
    heights = [1.6, *(1.0 if output.values.ndim == 3 else 0.6 for output in outputs), 1.5]
    figure = _figure(across * 0.9, 0.95 * sum(heights))
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, hspace=0.02)
    _title(parts[0], f"Input  {_by(image.shape)}")
    axes = parts[0].subplots()
    axes.set_anchor("W")
    _show_image(axes, image)
    for part, output in zip(parts[1:-1], outputs):
        _layer_row(part, output, across)
    _answer(parts[-1], probabilities, classes)
    return figure


def _layer_row(part: Any, output: LayerOutput, across: int) -> None:
    values = output.values
    if values.ndim == 1:
        _title(part, f"{output.name}  {len(values)} values")
        axes = part.subplots()
        axes.imshow(values[None], cmap="magma", aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        return
    more = f", the {across} strongest shown" if len(values) > across else ""
    _title(part, f"{output.name}  {_by(values.shape)}{more}")
    strongest = np.sort(np.argsort(-values.std(axis=(1, 2)), kind="stable")[:across])
    for axes, channel in _fill(part.subplots(1, across, squeeze=False), values[strongest]):
        axes.imshow(channel, cmap="magma", interpolation="nearest")


def _answer(part: Any, probabilities: np.ndarray, classes: Sequence[str]) -> None:
    best = int(probabilities.argmax())
    places = range(len(classes))
    _title(part, f"Answer  {classes[best]}, with probability {probabilities[best]:.1%}")
    axes = part.subplots()
    bars = axes.bar(places, probabilities, color=[BLUE if place == best else FAINT for place in places])
    numbers = [f"{p:.1%}" if p >= 0.001 else "" for p in probabilities]
    axes.bar_label(bars, numbers, fontsize=8, color=FAINT, padding=2)
    axes.set_xticks(places, classes, color=INK)
    axes.set_ylim(0, 1.2)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _show_image(axes: Axes, image: np.ndarray) -> None:
    if len(image) == 3:
        axes.imshow(np.moveaxis(image, 0, -1), interpolation="nearest")
    else:
        axes.imshow(image[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


@styled
def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts (true, predicted): right answers in blue, mistakes in red by their share of a row."""
    count = len(classes)
    figure = _figure(1.3 + 0.56 * count, 1.3 + 0.56 * count)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    right = np.eye(count, dtype=bool)
    worst = float(share[~right].max(initial=0)) or 1.0
    axes.imshow(np.ma.masked_where(~right, share), cmap="Blues", vmin=0, vmax=1.6)
    axes.imshow(np.ma.masked_where(right | (matrix == 0), share), cmap="Reds", vmin=0, vmax=1.8 * worst)
    for row, column in np.argwhere(matrix):
        axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=9,
                  weight="bold" if row == column else "normal")
    _label_classes(axes, classes)
    total, hits = matrix.sum(), np.trace(matrix)
    axes.set_title(f"{hits:,} of {total:,} right ({hits / max(1, total):.1%})", weight="bold")
    return figure


def _label_classes(axes: Axes, classes: Sequence[str]) -> None:
    """Names along both sides of a square of cells, and thin lines between these."""
    places = np.arange(len(classes))
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(places, classes, color=INK, **(slanted if max(map(len, classes)) > 3 else {}))
    axes.set_yticks(places, classes, color=INK)
    axes.set_xticks(places[:-1] + 0.5, minor=True)
    axes.set_yticks(places[:-1] + 0.5, minor=True)
    axes.grid(which="minor", linewidth=1)
    axes.set_axisbelow(False)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


@styled
def mistakes(images: np.ndarray, true: Sequence[str], predicted: Sequence[str],
             probability: Sequence[float]) -> Figure:
    """Images (N, C, H, W), pixels 0..1, that were taken for something else, with how sure the model was."""
    if not len(images):
        figure = _figure(6, 1.5)
        figure.text(0.5, 0.5, "No mistakes on the images held out.", ha="center", va="center", fontsize=13)
        return figure
    across = min(len(images), 6)
    down = math.ceil(len(images) / across)
    figure = _figure(max(5, 1.7 * across), 2.1 * down)
    cells = zip(images, true, predicted, probability)
    for axes, (image, was, said, sure) in _fill(figure.subplots(down, across, squeeze=False), cells):
        _show_image(axes, image)
        for text, color, height in ((was, INK, 17), (f"{said}  {sure:.0%}", RED, 5)):
            axes.annotate(text, (0.5, 1), (0, height), xycoords="axes fraction", textcoords="offset points",
                          ha="center", va="baseline", fontsize=9, color=color)
    _title(figure, "Worst mistakes: what it is, what it was taken for (red), and how surely", bold=True)
    return figure
