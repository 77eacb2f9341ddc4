"""The models that ``fastconv train`` knows, and how each is best trained."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from fastconv import check, optim
from fastconv.nn import Module, models

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": optim.SGD,
    "momentum": partial(optim.SGD, momentum=0.9),
    "adam": optim.Adam,
    "adamw": optim.AdamW,
}
# of an optimizer at the rate the user named, which is the highest, and the number of steps in all
SCHEDULES: dict[str, Callable[[optim.Optimizer, int], optim.Schedule]] = {
    "constant": lambda optimizer, steps: optim.StepLR(optimizer, steps, gamma=1.0),
    "cosine": optim.CosineAnnealingLR,
    "onecycle": lambda optimizer, steps: optim.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], steps),
}


@dataclass(frozen=True)
class Settings:
    """How to train: an ``optimizer`` of OPTIMIZERS, a ``schedule`` of SCHEDULES, and ``lr``, its highest rate.

    ``seed`` decides the order of the images.
    """

    optimizer: str = "adam"
    lr: float = 0.001
    schedule: str = "onecycle"
    batch_size: int = 64
    epochs: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check.one_of("optimizer", self.optimizer, tuple(OPTIMIZERS))
        check.one_of("schedule", self.schedule, tuple(SCHEDULES))
        check.integer("batch_size", self.batch_size, 1)
        check.integer("epochs", self.epochs, 1)
        check.integer("seed", self.seed, 0)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a positive number, got {self.lr}")


class Recipe(NamedTuple):
    """A model, the images (C, H, W) it reads, and how it is trained where the user does not say."""

    factory: Callable[..., Module]
    image_shape: tuple[int, int, int]
    settings: Settings


MODELS = {
    "digits": Recipe(models.digits_cnn, (1, 28, 28), Settings("adam", 0.004, "onecycle", 64, epochs=8)),
    "cifar": Recipe(models.cifar_cnn, (3, 32, 32), Settings("adam", 0.003, "onecycle", 64, epochs=6)),
    "mlp": Recipe(models.tanh_mlp, (1, 28, 28), Settings("sgd", 0.1, "constant", 32, epochs=20)),
}


def resolve(model: str) -> str:
    """``model`` where it is a known name, FILE.py:factory with the file's absolute path, or ValueError."""
    if model in MODELS:
        return model
    file, colon, factory = model.rpartition(":")
    if not colon or not file.endswith(".py") or not factory.isidentifier():
        raise ValueError(f"model must be {', '.join(MODELS)} or FILE.py:factory, got {model!r}")
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"model file {path} does not exist")
    return f"{path}:{factory}"


def build(model: str, rng: np.random.Generator | None = None, dtype: DTypeLike = np.float32) -> Module:
    """The model of a name, or of FILE.py:factory: a function that returns a Module.

    The factory is given ``rng`` and ``dtype`` where it has parameters of these names.
    """
    factory = MODELS[model].factory if model in MODELS else _from_file(resolve(model))
    wanted = inspect.signature(factory).parameters
    given: dict[str, Any] = {"rng": rng, "dtype": np.dtype(dtype)}
    built = factory(**{name: value for name, value in given.items() if name in wanted})
    if not isinstance(built, Module):
        raise ValueError(f"{model} must return a fastconv.nn.Module, got {type(built).__name__}")
    wrong = {str(parameter.dtype) for parameter in built.parameters()} - {str(np.dtype(dtype))}
    if wrong:
        raise ValueError(
            f"{model} returned {wrong.pop()} parameters, but {np.dtype(dtype)} was asked for; "
            "give the factory a dtype parameter and pass it to the layers"
        )
    return built


def _from_file(model: str) -> Callable[..., Any]:
    file, _, name = model.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec and spec.loader, file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"model file {file} has no function {name}")
    return getattr(module, name)
