"""The pictures of a run: each is drawn, and shows what it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastconv import nn, plot
from fastconv.data import Dataset
from fastconv.report import Report
from fastconv.run import RunFolder
from fastconv.train import Position, Result

matplotlib = pytest.importorskip("matplotlib")

HISTORY = [
    {"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 1 - 0.1 / epoch, "validation_loss": 1.1 / epoch,
     "validation_accuracy": 1 - 0.12 / epoch, "learning_rate": 0.1, "seconds": 2.0, "images_per_second": 500.0}
    for epoch in range(1, 6)
]
CLASSES = ("cat", "dog", "bird")


def texts(figure) -> list[str]:
    """Every text that the figure shows."""
    found = figure.findobj(matplotlib.text.Text)
    return [text.get_text().strip() for text in found if text.get_visible() and text.get_text().strip()]


def drawn(figure, path: Path) -> np.ndarray:
    """The pixels of the saved PNG file."""
    plot.save(figure, path)
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 50
        return np.asarray(image.convert("RGB"))


def test_curves_name_their_ends(tmp_path: Path):
    figure = plot.curves(HISTORY, "test")
    shown = texts(figure)
    for text in ("training 0.200", "test 0.220", "training 98.0%", "test 97.6%", "Loss", "Accuracy (%)", "epoch"):
        assert text in shown
    lines = [line.get_ydata() for axes in figure.axes for line in axes.lines]
    np.testing.assert_array_equal(lines[0], [row["train_loss"] for row in HISTORY])
    np.testing.assert_array_equal(lines[3], [100 * row["validation_accuracy"] for row in HISTORY])
    drawn(figure, tmp_path / "a.png")


def test_curves_of_one_epoch_and_labels_that_would_collide(tmp_path: Path):
    row = {**HISTORY[0], "validation_loss": HISTORY[0]["train_loss"]}
    figure = plot.curves([row])
    ends = [text for text in figure.axes[0].texts if "1.000" in text.get_text()]
    assert len(ends) == 2 and ends[0].xy[1] != ends[1].xy[1]
    drawn(figure, tmp_path / "a.png")


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (5, 1), (32, 1), (10, 3), (100, 1), (3, 2)])
def test_filters_show_every_filter(tmp_path: Path, rng: np.random.Generator, count: int, channels: int):
    weight = rng.standard_normal((count, channels, 3, 3)).astype(np.float32)
    figure = plot.filters(weight)
    images = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(images) == count
    if channels != 3:
        np.testing.assert_array_equal(images[-1], weight[-1, 0])
    assert f"What the first layer looks for: {count} filters of 3 x 3" in texts(figure)
    drawn(figure, tmp_path / "a.png")


def test_filters_that_are_all_zero(tmp_path: Path):
    drawn(plot.filters(np.zeros((2, 3, 3, 3))), tmp_path / "a.png")
    drawn(plot.filters(np.zeros((2, 1, 3, 3))), tmp_path / "b.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_feature_maps_show_the_strongest_and_the_answer(tmp_path: Path, rng: np.random.Generator, channels: int):
    strong = rng.standard_normal((20, 5, 5)) * np.arange(20)[:, None, None]
    outputs = [plot.LayerOutput("Conv2d", strong), plot.LayerOutput("Linear", rng.standard_normal(30))]
    figure = plot.feature_maps(rng.random((channels, 8, 8)), outputs, np.array([0.2, 0.7, 0.1]), CLASSES, across=6)
    shown = texts(figure)
    for text in (f"Input  {channels} x 8 x 8", "Conv2d  20 x 5 x 5, the 6 strongest shown", "Linear  30 values",
                 "Answer  dog, with probability 70.0%", "70.0%"):
        assert text in shown
    maps = [axes.images[0].get_array() for axes in figure.axes if axes.images][1:7]
    strongest = np.sort(np.argsort(strong.std(axis=(1, 2)))[-6:])
    np.testing.assert_array_equal(maps, strong[strongest])
    drawn(figure, tmp_path / "a.png")


def test_confusion_counts(tmp_path: Path):
    matrix = np.array([[9, 0, 1], [4, 6, 0], [0, 0, 1234]])
    figure = plot.confusion(matrix, CLASSES)
    shown = texts(figure)
    assert "1,249 of 1,254 right (99.6%)" in shown
    assert [text for text in shown if text.replace(",", "").isdigit()] == ["9", "1", "4", "6", "1,234"]
    assert {"cat", "dog", "bird", "true", "predicted"} <= set(shown)
    drawn(figure, tmp_path / "a.png")


def test_confusion_without_mistakes_or_images(tmp_path: Path):
    drawn(plot.confusion(np.diag([3, 2, 5]), CLASSES), tmp_path / "a.png")
    drawn(plot.confusion(np.zeros((3, 3), int), CLASSES), tmp_path / "b.png")


@pytest.mark.parametrize("count", [1, 7])
def test_mistakes(tmp_path: Path, rng: np.random.Generator, count: int):
    figure = plot.mistakes(rng.random((count, 3, 4, 4)), ["cat"] * count, ["dog"] * count, [0.987] * count)
    assert texts(figure).count("dog  99%") == count
    drawn(figure, tmp_path / "a.png")


def test_no_mistakes(tmp_path: Path):
    figure = plot.mistakes(np.zeros((0, 1, 4, 4)), [], [], [])
    assert texts(figure) == ["No mistakes on the images held out."]
    drawn(figure, tmp_path / "a.png")


def test_matplotlibs_settings_stay(tmp_path: Path):
    before = dict(matplotlib.rcParams)
    drawn(plot.curves(HISTORY), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


# The report that uses them

def bars(name: str = "bars") -> Dataset:
    pixels = np.zeros((12, 1, 6, 6), np.uint8)
    labels = np.arange(12) % 3
    for image, label in zip(pixels, labels):
        image[0, 2 * label] = 255
    return Dataset.from_pixels(name, (pixels, labels), (pixels, labels), CLASSES)


def report(tmp_path: Path, model: nn.Module) -> Report:
    return Report.of(RunFolder(tmp_path), model, bars(), Result(HISTORY, Position()))


def always(answer: int) -> nn.Sequential:
    """A model that gives every image the same class."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    model[-1].weight.data[...] = 0
    model[-1].bias.data[...] = np.eye(3)[answer]
    return model


def test_report_of_a_model_that_always_says_the_same(tmp_path: Path):
    found = report(tmp_path, always(1))
    np.testing.assert_array_equal(found.confusion(), [[0, 4, 0], [0, 4, 0], [0, 4, 0]])
    found.write_plots()
    assert sorted(file.stem for file in tmp_path.iterdir()) == [
        "confusion", "curves", "feature_maps", "filters", "mistakes"]
    lines = "\n".join(found.lines())
    assert "Validation accuracy 33.33%: 4 of 12 images right, after 5 epochs in 10.0 s." in lines
    assert "Most often mistaken: cat for dog (4 times), bird for dog (4 times)." in lines
    assert f"All of it is in {tmp_path}:" in lines and "filters.png" in lines
    assert "checkpoint" not in lines  # which is not there
    assert f"fastconv predict {tmp_path} IMAGE.png" in lines


def test_first_weights_are_found_or_left_out(tmp_path: Path):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    assert texts(report(tmp_path, flat)._filters())[-1] == "What the first layer looks for: 3 filters of 6 x 6"
    pooled = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(9, 3))
    assert report(tmp_path, pooled)._filters() is None


def test_a_model_that_is_no_sequential_has_no_feature_maps(tmp_path: Path):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            self.body = always(0)

        def forward(self, input: np.ndarray) -> np.ndarray:
            return self.body(input)

    report(tmp_path, Wrapped()).write_plots()
    assert not (tmp_path / "feature_maps.png").exists() and (tmp_path / "filters.png").exists()
