"""Packaged problem lists, and finding problems by name."""

from __future__ import annotations

import pytest

from fastconv import problems
from fastconv.kernels.plan import ConvProblem


@pytest.mark.parametrize("name", problems.LISTS)
def test_lists_are_packaged(name):
    listed = problems.packaged(name)
    assert listed
    assert all(isinstance(problem, ConvProblem) for problem in listed.values())


def test_names_are_unique_over_all_lists():
    names = [name for listed in problems.LISTS for name in problems.packaged(listed)]
    assert len(names) == len(set(names))


def test_find_takes_names_strings_and_files(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("mine.1 n1c1h4w4k1r3s3  # a comment\n")
    found = problems.find(["digits.conv1", "n1c2h5w6k3r3s3", str(file)])
    assert list(found) == ["digits.conv1", "n1c2h5w6k3r3s3", "mine.1"]
    assert str(found["digits.conv1"]) == "n64c1h28w28k32r3s3"
