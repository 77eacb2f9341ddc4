"""Packaged lists of problems, and finding one by name.

reference: the convolutions that speed is stated on; pools; layers: what stands between convolutions;
verify: what ``fastconv verify`` goes through.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from fastconv.kernels.plan import ConvProblem, read_problems

LISTS = ("reference", "pools", "layers", "verify")


def packaged(name: str) -> dict[str, ConvProblem]:
    """A list by its name, one of LISTS."""
    with resources.as_file(resources.files(__name__) / f"{name}.txt") as path:
        return read_problems(path)


def find(wanted: Iterable[str]) -> dict[str, ConvProblem]:
    """Each of ``wanted`` is a name of a packaged list, a problem string, or a file of NAME PROBLEM lines."""
    known = {name: problem for listed in LISTS for name, problem in packaged(listed).items()}
    found: dict[str, ConvProblem] = {}
    for text in wanted:
        if text in known:
            found[text] = known[text]
        elif text.endswith(".txt"):
            found.update(read_problems(Path(text)))
        else:
            found[text] = _parsed(text)
    return found


def _parsed(text: str) -> ConvProblem:
    try:
        return ConvProblem.parse(text)
    except ValueError as error:
        raise ValueError(f"{error}, or a name such as digits.conv2 (of fastconv/problems/*.txt), or a .txt file "
                         "of such lines") from None
