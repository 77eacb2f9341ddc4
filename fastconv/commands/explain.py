"""Say how a convolution would run: the algorithm of each direction, why not the others, and its blocking.

PROBLEM is a name (digits.conv2) or a string such as n64c32h13w13k64r3s3: n batch, c channels in, h rows, w columns,
k channels out, r and s kernel rows and columns, then where needed u stride, p padding, d dilation, g groups.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import fastconv
from fastconv import problems
from fastconv.explain import explain, vector_description
from fastconv.terminal import size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The problem and its arrays."""
    parser.add_argument("problem", metavar="PROBLEM", nargs="+")
    parser.add_argument("--layout", choices=("NCHW", "NHWC"), default="NCHW", help="(default: NCHW)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="(default: float32)")
    parser.add_argument("--threads", type=int, help=f"(default: {fastconv.get_num_threads()})")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what will run."""
    if arguments.threads is not None:
        fastconv.set_num_threads(arguments.threads)
    found = [explain(problem, arguments.layout, arguments.dtype)
             for problem in problems.find(arguments.problem).values()]
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n\n".join("\n".join(_lines(explained)) for explained in found))
    return 0


def _lines(found: dict[str, Any]) -> list[str]:
    shapes = [f"{name} {'x'.join(map(str, found[name]))}" for name in ("input", "weight", "output")]
    intensity = 2 * found["multiply_adds"] / max(1, found["tensor_bytes"])
    return [
        f"{found['problem']}, {found['layout']}, {found['dtype']}, on {vector_description()}",
        ", ".join(shapes),
        f"{found['multiply_adds'] / 1e6:,.1f} million multiply-adds on {size(found['tensor_bytes'])} of tensors "
        f"({intensity:.3g} operations a byte); its im2col matrix would take {size(found['im2col_bytes'])}",
        *(line for name, direction in found["directions"].items() for line in _direction(name, direction)),
    ]


def _direction(name: str, found: dict[str, Any]) -> list[str]:
    """A heading, then a line for each thing known; phases that are alike are told once."""
    phases = found["phases"]
    distinct = [phase for place, phase in enumerate(phases) if phase not in phases[:place]]
    facts = [(f"not {other}", reason) for other, reason in found["others"].items()]
    facts += [("tasks", f"{found['tasks']:,}, for {found['threads']} thread{'s' * (found['threads'] > 1)}"),
              ("scratch", size(found["scratch_bytes"]))]
    if len(phases) > 1:
        facts.append(("phases", f"{len(phases)}, one for each place of a pixel within the stride"))
    for number, phase in enumerate(distinct, 1):
        prefix = f"{number}. " if len(distinct) > 1 else ""
        facts += [(prefix + what, str(value)) for what, value in phase.items()]
    return ["", f"{name.replace('_', ' ')}: {found['algorithm']}", *(f"  {what:32}{text}" for what, text in facts)]
