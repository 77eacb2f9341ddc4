"""Compile the kernels that a model needs for training and evaluation, and leave them in the cache.

They are made for this machine and for the sizes at hand, once; later processes read them in a second or two.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

import numpy as np

from fastconv import recipes
from fastconv.kernels.jit import cache_report
from fastconv.recipes import MODELS, OPTIMIZERS, Settings
from fastconv.terminal import size
from fastconv.warmup import warm_up


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and how it will be trained."""
    parser.add_argument("--model", default="digits", help=f"{', '.join(MODELS)} (default: digits), or FILE.py:factory")
    parser.add_argument("--image", metavar="CxHxW", type=_shape, help="what a model of FILE.py reads, as 3x32x32")
    parser.add_argument("--batch-size", type=int, help="(default: the model's)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="(default: the model's)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(default: float32)")


def _shape(text: str) -> tuple[int, int, int]:
    words = text.split("x")
    if len(words) != 3 or not all(word.isdigit() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"must be CHANNELSxROWSxCOLUMNS, as 3x32x32, got {text!r}")
    channels, rows, columns = map(int, words)
    return channels, rows, columns


def run(arguments: argparse.Namespace) -> int:
    """Compile, and say what it took."""
    name = recipes.resolve(arguments.model)
    recipe = MODELS.get(name)
    shape = arguments.image or (recipe and recipe.image_shape)
    if shape is None:
        raise ValueError(f"--image must say what {arguments.model} reads, as 3x32x32")
    settings = recipe.settings if recipe else Settings()
    given = {key: getattr(arguments, key) for key in ("batch_size", "optimizer") if getattr(arguments, key) is not None}
    settings = dataclasses.replace(settings, **given)
    model = recipes.build(name, np.random.default_rng(0), arguments.dtype)
    done = warm_up(model, shape, settings, arguments.dtype, _say_compiling)
    print(f"{done.kernels} kernels compiled in {done.compile_seconds:.1f} s." if done.kernels
          else "Nothing to compile: all kernels were in the cache.")
    print(f"A training step of batch {settings.batch_size} with {settings.optimizer} takes "
          f"{done.step_seconds * 1e3:.1f} ms.")
    folder, files, stored = cache_report()
    print(f"Cache: {folder}, {files} files, {size(stored)}." if folder else
          "No cache: no folder is writable, so every process compiles anew; set FASTCONV_CACHE_DIR.")
    return 0


def _say_compiling() -> None:
    print("Compiling kernels for this machine (once)...", file=sys.stderr, flush=True)
