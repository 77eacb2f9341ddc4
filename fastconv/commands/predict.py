"""Classify images with a trained network.

An image is a file (PNG, JPEG, ...), or FILE:ROW for one image of an IDX file. Any size will do:
- colour networks: the image is cropped to the network's proportions and resized;
- digits: it becomes gray; dark strokes on a light ground are inverted, as the training images are
  light on dark (the border's brightness tells). Unless it already has the network's size, the digit is
  then cut out, scaled and centred as MNIST's were, so a photograph or scan of a single digit works.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from fastconv.compiling import watch_compiling
from fastconv.predict import Classifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A model and what to classify."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help="run folder of fastconv train, or a .safetensors file with its config.json beside it",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image file, or FILE:ROW of an IDX file")
    parser.add_argument("--json", action="store_true", help="print JSON, with the probability of every class")


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each image."""
    classifier = Classifier.load(arguments.model)
    pixels = np.stack([classifier.read(source) for source in arguments.images])
    with watch_compiling(_say_compiling):
        probabilities = classifier.predict(pixels)
    if arguments.json:
        print(
            json.dumps(
                [_record(source, classifier, row) for source, row in zip(arguments.images, probabilities)],
                indent=2,
            )
        )
        return 0
    width = max(map(len, arguments.images))
    for source, row in zip(arguments.images, probabilities):
        first, *others = np.argsort(-row, kind="stable")[:3]
        rest = ", ".join(f"{classifier.classes[place]} {row[place]:.1%}" for place in others)
        print(f"{source:{width}}  {classifier.classes[first]}  {row[first]:6.1%}  (then {rest})")
    return 0


def _say_compiling() -> None:
    print("Compiling kernels for this machine (once)...", file=sys.stderr, flush=True)


def _record(source: str, classifier: Classifier, row: np.ndarray) -> dict[str, object]:
    best = int(row.argmax())
    return {
        "image": source,
        "class": classifier.classes[best],
        "probability": float(row[best]),
        "probabilities": dict(zip(classifier.classes, row.tolist())),
    }
