"""The examples of the documentation run, and stay short."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, capsys):
    runpy.run_path(str(path))
    assert capsys.readouterr().out.strip()


def test_training_loop_learns(capsys):
    runpy.run_path(str(EXAMPLES[[p.stem for p in EXAMPLES].index("training_loop")]))
    assert "accuracy 100%" in capsys.readouterr().out
