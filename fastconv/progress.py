"""What a person sees while a model trains."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fastconv.extras import require

if TYPE_CHECKING:
    from fastconv.recipes import Settings
    from fastconv.train import Position

COMPILING = "Compiling kernels for this machine (once; about {seconds:.0f} s)..."
COMPILE_SECONDS = 30  # the digits CNN, forward and backward, on two cores
STOPPING = "Stopping after this batch; once more stops at once, without saving."


def counted(number: int, noun: str) -> str:
    """ "1 epoch", "1,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Progress:
    """Hears what training does, and by itself shows nothing; a context manager around the training loop."""

    epochs = 0
    batches = 0
    validation_name = "validation"

    def start(self, settings: Settings, batches: int, validation_name: str, position: Position) -> None:
        """Before the first batch; ``batches`` in an epoch."""
        self.epochs = settings.epochs
        self.batches = batches
        self.validation_name = validation_name

    def compiling(self) -> None:
        """Before the first kernel is compiled, if any is."""

    def batch(self, position: Position) -> None:
        """After every batch."""

    def epoch(self, row: Mapping[str, float]) -> None:
        """After every epoch, with its row of metrics.csv."""

    def stopping(self) -> None:
        """When a signal asks to stop."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class LineProgress(Progress):
    """One plain line an epoch, for logs and pipes."""

    def say(self, line: str) -> None:
        """Print a line at once."""
        print(line, flush=True)

    def compiling(self) -> None:
        self.say(COMPILING.format(seconds=COMPILE_SECONDS))

    def stopping(self) -> None:
        self.say(STOPPING)

    def epoch(self, row: Mapping[str, float]) -> None:
        width = len(str(self.epochs))
        self.say(
            f"epoch {row['epoch']:{width}}/{self.epochs}   loss {row['train_loss']:.4f}   "
            f"accuracy {row['train_accuracy']:7.2%}   "
            f"{self.validation_name} accuracy {row['validation_accuracy']:7.2%}   "
            f"{row['images_per_second']:,.0f} images/s   {row['seconds']:.1f} s"
        )


class BarProgress(LineProgress):
    """A live bar under the lines, for terminals."""

    def __init__(self) -> None:
        progress = require("rich.progress")
        columns = (
            "epoch {task.fields[epoch]}",
            progress.BarColumn(bar_width=None),
            "loss {task.fields[loss]:.4f}",
            "accuracy {task.fields[accuracy]:6.1%}",
            "{task.fields[speed]:7,.0f} images/s",
            progress.TimeRemainingColumn(compact=True),
        )
        self._bar = progress.Progress(*columns, expand=True, transient=True)
        self._task: Any = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def start(self, settings: Settings, batches: int, validation_name: str, position: Position) -> None:
        super().start(settings, batches, validation_name, position)
        self._task = self._bar.add_task("", total=batches, completed=position.batch, **self._shown(position))

    def batch(self, position: Position) -> None:
        self._bar.update(self._task, completed=position.batch, **self._shown(position))

    def _shown(self, position: Position) -> dict[str, Any]:
        return {
            "epoch": f"{position.epoch + 1}/{self.epochs}", "loss": position.loss, "accuracy": position.accuracy,
            "speed": position.images_per_second,
        }

    def epoch(self, row: Mapping[str, float]) -> None:
        super().epoch(row)
        self._bar.reset(self._task)


def for_terminal() -> Progress:
    """The bar where standard output is a terminal, else one line an epoch."""
    return BarProgress() if sys.stdout.isatty() else LineProgress()
