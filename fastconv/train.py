"""Training a model on images in memory, so that it can stop at any batch and go on to the same bits."""

from __future__ import annotations

import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np

import fastconv
from fastconv.checkpoint import load_checkpoint, save_checkpoint, save_model
from fastconv.compiling import watch_compiling
from fastconv.data import Batches, Dataset, Split
from fastconv.nn import CrossEntropyLoss, Module
from fastconv.progress import Progress
from fastconv.recipes import OPTIMIZERS, SCHEDULES, Settings
from fastconv.run import RunFolder

SAVE_SECONDS = 60.0  # within a long epoch, so that little is lost when the process is killed
EVALUATION_BATCH = 500


class TrainingDiverged(ArithmeticError):
    """The loss or a weight is no longer a finite number."""


@dataclass
class Position:
    """How far training has come, and what it has seen of the present epoch."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches done of the next one
    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Mean over the images seen in this epoch."""
        return self.loss_sum / max(1, self.images)

    @property
    def accuracy(self) -> float:
        """Share of the images seen in this epoch that were classified right."""
        return self.correct / max(1, self.images)

    @property
    def images_per_second(self) -> float:
        """Speed in this epoch, time for compiling left out."""
        return self.images / self.seconds if self.seconds else 0.0

    def next_epoch(self) -> Position:
        """The position after an epoch's last batch."""
        return Position(epoch=self.epoch + 1, history=self.history)


@dataclass(frozen=True)
class Result:
    """What training came to: a row of numbers for each epoch, and the signal that stopped it early, if any."""

    history: list[dict[str, float]]
    position: Position
    stopped_by: signal.Signals | None = None


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy, share classified right, and the probabilities (N, classes), float64."""

    loss: float
    accuracy: float
    probabilities: np.ndarray


def evaluate(model: Module, split: Split) -> Evaluation:
    """The model's answers to images, in evaluation mode; the mode is left as it was."""
    log_probabilities = _log_probabilities(model, split.images)
    loss = -log_probabilities[np.arange(len(split)), split.labels].mean()
    accuracy = (log_probabilities.argmax(axis=1) == split.labels).mean()
    return Evaluation(float(loss), float(accuracy), np.exp(log_probabilities))


def probabilities(model: Module, images: np.ndarray) -> np.ndarray:
    """Softmax of the model's logits for images (N, C, H, W), in evaluation mode: (N, classes), float64."""
    return np.exp(_log_probabilities(model, images))


def _log_probabilities(model: Module, images: np.ndarray) -> np.ndarray:
    """Log-softmax in float64; in batches, and the model's mode is left as it was."""
    training = model.training
    model.eval()
    outputs = [
        model(images[first : first + EVALUATION_BATCH]) for first in range(0, len(images), EVALUATION_BATCH)
    ]
    model.train(training)
    logits = np.concatenate(outputs).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def fit(
    model: Module,
    data: Dataset,
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Train ``model`` by cross-entropy on ``data.train`` and validate it after every epoch.

    With ``out`` the folder keeps config.json (with ``about``, whatever else describes the run), metrics.csv,
    model.safetensors and checkpoint.safetensors. Ctrl-C, or SIGTERM, then ends training after the batch at
    hand and saves; ``resume=True`` with the same model, data and settings, save for more epochs, goes on from
    there to the bits that an undisturbed run has. Without ``out`` nothing is written and Ctrl-C raises as ever.

    Raises ValueError for a folder that is not empty or not of this run, TrainingDiverged where the loss is no
    longer finite (the last good checkpoint stays), OSError where saving fails.
    """
    settings = settings or Settings()
    with suppress(NotImplementedError):  # a module of the user's own need not say: then the first step tells
        _check_logits(model.output_size((1, *data.image_shape)), 1, data)
    folder = RunFolder(Path(out)) if out is not None else None
    if resume and folder is None:
        raise ValueError("resume needs out, the folder of the run to go on with")
    training = _Training(model, data, settings, folder, progress or Progress())
    if folder:
        config = _config(model, data, settings, about or {})
        if resume:
            _check_same_run(folder, config)
            training.restore(folder)
        else:
            folder.create()
        folder.write_config(config)
    return training.run()


def _check_logits(shape: tuple[int, ...], count: int, data: Dataset) -> None:
    """Refuse a model whose output for ``count`` images does not fit the classes."""
    expected = (count, len(data.classes))
    if shape != expected:
        raise ValueError(f"the model must give {expected[1]} numbers an image, one for each class: shape {expected}, "
                         f"got {shape}")


def _config(model: Module, data: Dataset, settings: Settings, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": type(model).__name__,
        **about,
        "settings": asdict(settings),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint(),
            "training_images": len(data.train),
            f"{data.validation_name}_images": len(data.validation),
        },
        "images": {
            "shape": list(data.image_shape),
            "dtype": str(data.train.images.dtype),
            "mean": list(data.scaling.mean),
            "std": list(data.scaling.std),
            "light_on_dark": data.light_on_dark(),
        },
        "classes": list(data.classes),
        "versions": {
            "fastconv": fastconv.__version__,
            "numpy": np.__version__,
            "numba": numba.__version__,
            "python": platform.python_version(),
        },
    }


def _check_same_run(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Refuse to go on with other data or other settings than the run began with; more epochs are welcome."""
    before = folder.read_config()
    for part, ignored in (("settings", "epochs"), ("data", ""), ("images", "")):
        was = before.get(part, {})
        for name, value in config[part].items():
            if name != ignored and was.get(name) != value:
                raise ValueError(
                    f"{folder.path} cannot be resumed with {part} {name} {value}: "
                    f"it was trained with {was.get(name)}"
                )


class _Training:
    """One call of :func:`fit`."""

    def __init__(
        self, model: Module, data: Dataset, settings: Settings, folder: RunFolder | None, progress: Progress
    ) -> None:
        self.model = model
        self.data = data
        self.settings = settings
        self.folder = folder
        self.progress = progress
        self.batches = Batches(data.train, settings.batch_size, settings.seed)
        self.optimizer = OPTIMIZERS[settings.optimizer](list(model.parameters()), lr=settings.lr)
        self.schedule = SCHEDULES[settings.schedule](self.optimizer, settings.epochs * len(self.batches))
        self.criterion = CrossEntropyLoss()
        self.position = Position()
        self._saved_at = 0.0

    def restore(self, folder: RunFolder) -> None:
        """Take model, optimizer, random generators and position from the folder's checkpoint."""
        self.position = Position(**load_checkpoint(folder.checkpoint, self.model, self.optimizer))
        steps = self.position.epoch * len(self.batches) + self.position.batch
        if steps > self.settings.epochs * len(self.batches):
            raise ValueError(f"epochs must be at least the {self.position.epoch} already done, "
                             f"got {self.settings.epochs}")
        self.schedule.load_state_dict({"steps": steps, "base_lrs": [self.settings.lr]})

    def run(self) -> Result:
        """Train to the last epoch, or to the batch at which a signal arrives."""
        self._save()  # also finds out now, not after an epoch, that the folder cannot be written to
        with (
            _stop_request(self.folder is not None, self.progress.stopping) as stop,
            self.progress,
            watch_compiling(self.progress.compiling) as compiling,
        ):
            self.progress.start(self.settings, len(self.batches), self.data.validation_name, self.position)
            while self.position.epoch < self.settings.epochs and not stop:
                self._epoch(stop, lambda: compiling.seconds)
        unfinished = self.position.epoch < self.settings.epochs
        return Result(self.position.history, self.position, stop[0] if stop and unfinished else None)

    def _epoch(self, stop: list[signal.Signals], compile_seconds: Callable[[], float]) -> None:
        """The rest of the present epoch, or up to a stop request; then saves."""
        self.model.train()
        before = self.position.seconds
        started = time.perf_counter() - compile_seconds()
        for images, labels in self.batches.epoch(self.position.epoch, self.position.batch):
            self._step(images, labels)
            self.position.seconds = before + time.perf_counter() - started - compile_seconds()
            self.progress.batch(self.position)
            if stop:
                break
            if time.monotonic() - self._saved_at > SAVE_SECONDS:
                self._save()
        if self.position.batch == len(self.batches):
            self._finish_epoch()
        self._save()

    def _step(self, images: np.ndarray, labels: np.ndarray) -> None:
        """One batch: forward, loss, backward, update."""
        self.optimizer.zero_grad()
        logits = self.model(images)
        _check_logits(logits.shape, len(labels), self.data)
        loss = float(self.criterion(logits, labels))
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}")
        gradient = self.criterion.backward()
        assert gradient is not None
        self.model.backward(gradient, need_input_grad=False)
        self.optimizer.step()
        self.schedule.step()
        position = self.position
        position.batch += 1
        position.images += len(labels)
        position.loss_sum += loss * len(labels)
        position.correct += int((logits.argmax(axis=1) == labels).sum())

    def _finish_epoch(self) -> None:
        position = self.position
        validation = evaluate(self.model, self.data.validation)
        if not math.isfinite(validation.loss):
            raise self._diverged(f"the {self.data.validation_name} loss became {validation.loss}")
        row = {
            "epoch": position.epoch + 1,
            "learning_rate": self.schedule.lr_at(self.schedule.steps - 1, self.settings.lr),
            "train_loss": position.loss,
            "train_accuracy": position.accuracy,
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
            "seconds": position.seconds,
            "images_per_second": position.images_per_second,
        }
        position.history.append(row)
        self.position = position.next_epoch()
        self.progress.epoch(row)

    def _save(self) -> None:
        if self.folder is None:
            return
        if not all(np.isfinite(parameter.data).all() for parameter in self.model.parameters()):
            raise self._diverged("a weight became infinite or not a number")
        save_checkpoint(self.folder.checkpoint, self.model, self.optimizer, asdict(self.position))
        save_model(self.folder.model, self.model)
        if self.position.history:
            self.folder.write_metrics(self.position.history)
        self._saved_at = time.monotonic()

    def _diverged(self, what: str) -> TrainingDiverged:
        kept = f"; the last good state is in {self.folder.checkpoint}" if self.folder else ""
        return TrainingDiverged(
            f"{what} in epoch {self.position.epoch + 1}, after batch {self.position.batch} of "
            f"{len(self.batches)}{kept}. Try a smaller learning rate than {self.settings.lr:g}"
        )


@contextmanager
def _stop_request(enabled: bool, on_request: Callable[[], None]) -> Iterator[list[signal.Signals]]:
    """A list that the first SIGINT or SIGTERM lands in. A second one acts as it would without this block.

    Signals can be handled in the main thread only; elsewhere, or when not enabled, the list stays empty.
    """
    received: list[signal.Signals] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield received
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def receive(number: int, frame: Any) -> None:
        received.append(signal.Signals(number))
        restore()
        on_request()

    for number in handlers:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()
