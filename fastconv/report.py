"""What a finished run found: its plots, and a few sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastconv import plot
from fastconv.data import Dataset
from fastconv.nn import Flatten, Module, Sequential
from fastconv.progress import counted
from fastconv.run import RunFolder
from fastconv.train import Evaluation, Result, evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST = 24
FILES = {
    "model.safetensors": "the weights, under torch's names",
    "checkpoint.safetensors": "what --resume needs",
    "metrics.csv": "loss, accuracy and speed of each epoch",
    "config.json": "model, settings, data, versions",
    "curves.png": "loss and accuracy",
    "filters.png": "what the first layer looks for",
    "feature_maps.png": "one image on its way through the layers",
    "confusion.png": "what was taken for what",
    "mistakes.png": "the worst mistakes",
}


@dataclass(frozen=True)
class Report:
    """A run, looked at on the images held out."""

    folder: RunFolder
    model: Module
    data: Dataset
    result: Result
    evaluation: Evaluation

    @classmethod
    def of(cls, folder: RunFolder, model: Module, data: Dataset, result: Result) -> Report:
        """Evaluates the model once more."""
        return cls(folder, model, data, result, evaluate(model, data.validation))

    @property
    def predicted(self) -> np.ndarray:
        """The class the model gives each image."""
        return self.evaluation.probabilities.argmax(axis=1)

    def confusion(self) -> np.ndarray:
        """Counts (true class, predicted class)."""
        count = len(self.data.classes)
        pairs = self.data.validation.labels * count + self.predicted
        return np.bincount(pairs, minlength=count * count).reshape(count, count)

    def write_plots(self) -> None:
        """The PNG files; those that make no sense for the model are left out."""
        for name, draw in self._plots().items():
            figure = draw()
            if figure is not None:
                plot.save(figure, self.folder.path / f"{name}.png")

    def _plots(self) -> dict[str, Callable[[], Figure | None]]:
        return {
            "curves": lambda: plot.curves(self.result.history, self.data.validation_name),
            "filters": self._filters,
            "feature_maps": self._feature_maps,
            "confusion": lambda: plot.confusion(self.confusion(), self.data.classes),
            "mistakes": self._mistakes,
        }

    def _filters(self) -> Figure | None:
        """The first weights, where each of their outputs sees a patch or the whole of an image."""
        channels = self.data.image_shape[0]
        weights = (value for value in self.model.state_dict().values() if value.ndim in (2, 4))
        weight = next(weights, None)
        if weight is not None and weight.shape[1:] == (np.prod(self.data.image_shape),):
            weight = weight.reshape(-1, *self.data.image_shape)
        if weight is None or weight.ndim != 4 or weight.shape[1] != channels:
            return None
        return plot.filters(weight)

    def _feature_maps(self) -> Figure | None:
        if not isinstance(self.model, Sequential):
            return None
        chosen = self._typical()
        image = self.data.validation.images[chosen : chosen + 1]
        self.model.eval()
        outputs = [
            plot.LayerOutput(type(layer).__name__, values[0].copy())
            for _, layer, values in self.model.activations(image)
            if not isinstance(layer, Flatten)
        ]
        return plot.feature_maps(
            self.data.scaling.undo(image[0]),
            outputs[:-1],
            self.evaluation.probabilities[chosen],
            self.data.classes,
        )

    def _typical(self) -> int:
        """A right answer that was not the easiest; any image where there is none."""
        sure = self.evaluation.probabilities.max(axis=1)
        right = np.flatnonzero(self.predicted == self.data.validation.labels)
        return int(right[np.argsort(sure[right], kind="stable")[len(right) // 10]]) if len(right) else 0

    def _mistakes(self) -> Figure:
        validation, predicted, classes = self.data.validation, self.predicted, self.data.classes
        sure = self.evaluation.probabilities.max(axis=1)
        wrong = np.flatnonzero(predicted != validation.labels)
        worst = wrong[np.argsort(-sure[wrong], kind="stable")[:WORST]]
        return plot.mistakes(
            self.data.scaling.undo(validation.images[worst]),
            [classes[label] for label in validation.labels[worst]],
            [classes[label] for label in predicted[worst]],
            sure[worst].tolist(),
        )

    def lines(self) -> Iterator[str]:
        """What was found, where it is, and what to do next."""
        matrix = self.confusion()
        name = self.data.validation_name.capitalize()
        history = self.result.history
        seconds = sum(row["seconds"] for row in history)
        yield (
            f"{name} accuracy {self.evaluation.accuracy:.2%}: {np.trace(matrix):,} of {matrix.sum():,} images right, "
            f"after {counted(len(history), 'epoch')} in {seconds:.1f} s."
        )
        mistaken = list(self._mistaken(matrix))
        if mistaken:
            yield f"Most often mistaken: {', '.join(mistaken)}."
        yield f"All of it is in {self.folder.path}:"
        present = {file: what for file, what in FILES.items() if (self.folder.path / file).exists()}
        width = max(map(len, present))
        yield from (f"  {file:{width}}  {what}" for file, what in present.items())
        yield f"Now classify an image: fastconv predict {self.folder.path} IMAGE.png"

    def _mistaken(self, matrix: np.ndarray) -> Iterator[str]:
        wrong = matrix * ~np.eye(len(matrix), dtype=bool)
        for place in np.argsort(-wrong, axis=None, kind="stable")[:3]:
            true, said = np.unravel_index(place, wrong.shape)
            if wrong[true, said]:
                times = counted(int(wrong[true, said]), "time")
                yield f"{self.data.classes[true]} for {self.data.classes[said]} ({times})"
