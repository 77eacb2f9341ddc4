"""The folder of one training run, and what is in it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastconv.checkpoint import write_atomically

CONFIG = "config.json"
MODEL = "model.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of a run. All are written so that they are whole at any moment."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def model(self) -> Path:
        return self.path / MODEL

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    def create(self) -> None:
        """Make the folder; ValueError where it exists and is not empty."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(
                f"output folder {self.path} exists and is not empty; choose another --out, "
                f"or go on with that run: --resume {self.path}"
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json."""
        write_atomically(self.config, (json.dumps(config, indent=2) + "\n").encode())

    def read_config(self) -> dict[str, Any]:
        """Read config.json; ValueError where it is missing or not whole."""
        return read_config(self.config)

    def write_metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write metrics.csv, one row an epoch; whole each time, so that a killed run leaves no half or double rows."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in history)
        write_atomically(self.metrics, text.getvalue().encode())


def read_config(path: Path) -> dict[str, Any]:
    """The configuration that a run left; ValueError where there is none or it is not whole."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is no folder of a training run: it has no {path.name}") from None
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is corrupt: it must hold an object, got {type(config).__name__}")
    return config
