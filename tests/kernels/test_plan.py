"""Problems, their text, and the choice among algorithms."""

from __future__ import annotations

import dataclasses
import re

import pytest

from fastconv.kernels import algorithms
from fastconv.kernels.algorithms import ALGORITHMS, DIRECTIONS, ROUNDING_COST, choose, explain, names
from fastconv.kernels.plan import ConvProblem, read_problems
from fastconv.reference.geometry import window
from tests.tolerance import problems

EVERYWHERE = ConvProblem.parse("n2c24h9w8k40r3s2u2x1p1x3d1x2g4")


@pytest.mark.parametrize("problem", problems())
def test_text_goes_both_ways(problem):
    assert ConvProblem.parse(str(problem)) == problem


def test_every_field():
    assert ConvProblem(2, 24, 9, 8, 40, 3, 2, (2, 1), ((1, 1), (3, 3)), (1, 2), 4) == EVERYWHERE
    assert ConvProblem.parse("s2r3k4w8h7c6n0u2p1d3g2") == ConvProblem(
        0, 6, 7, 8, 4, 3, 2, (2, 2), ((1, 1), (1, 1)), (3, 3), 2)


def test_uneven_padding_has_a_text():
    """For messages: it is no part of the problem strings."""
    uneven = ConvProblem(1, 2, 5, 6, 3, 3, 3, padding=((0, 1), (2, 2)))
    assert str(uneven) == "n1c2h5w6k3r3s3p0+1x2"


@pytest.mark.parametrize("problem", [*problems("strided", "padding", "dilated"), EVERYWHERE])
def test_sizes(problem):
    moves = window((problem.r, problem.s), problem.stride, problem.padding, problem.dilation)
    assert (problem.p, problem.q) == moves.output_size((problem.h, problem.w))
    assert problem.output_shape() == (problem.n, problem.k, problem.p, problem.q)
    assert problem.output_shape("NHWC") == (problem.n, problem.p, problem.q, problem.k)
    assert problem.input_shape("NHWC") == (problem.n, problem.h, problem.w, problem.c)
    assert problem.weight_shape == (problem.k, problem.c // problem.groups, problem.r, problem.s)


def test_work_by_hand():
    problem = ConvProblem.parse("n2c4h5w6k6r3s2g2")  # 2 images, 3 x 5 outputs, 6 channels, each of 2 x 3 x 2 taps
    assert problem.multiply_adds == 2 * 15 * 6 * 12
    assert problem.tensor_elements == 2 * 4 * 30 + 2 * 6 * 15 + 6 * 12


@pytest.mark.parametrize("text, message", [
    ("", "problem '' stops making sense at ''; the form is n<batch>c<in>"),
    ("hello", "problem 'hello' stops making sense at 'hello'"),
    ("n1c1h1w1k1r1s1q5", "problem 'n1c1h1w1k1r1s1q5' stops making sense at 'q5'"),
    ("n1c1h1w1k1r1n1", "stops making sense at 'n1'"),
    ("n1c1h1w1k1r1s1p-1", "stops making sense at 'p-1'"),
    ("n1c1h4k1", "problem 'n1c1h4k1' lacks w, r, s; the form is"),
    ("n1c0h1w1k1r1s1", "bad value for 'c'"),
    ("n1c1h1w1k1r1s1u0", "bad value for 'u'"),
    ("n1c1h1w1k1r1s1p1x2x3", "bad value for 'p'"),
    ("n1c1h1w1x2k1r1s1", "bad value for 'w'"),
    ("n1c4h5w5k6r1s1g4", "groups 4 must divide c 4 and k 6"),
    ("n1c1h2w9k1r3s3", "the kernel is larger than the padded input"),
])
def test_text_that_is_no_problem(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ConvProblem.parse(text)


def test_problem_files(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("# all of them\n\nfirst n1c1h4w4k1r3s3  # the smallest\nsecond n1c1h4w4k1r3s3p1\n")
    found = read_problems(file)
    assert list(found) == ["first", "second"]
    assert found["second"].padding == ((1, 1), (1, 1))
    for line, message in ("third n1c1", "problem 'n1c1' lacks"), (
            "n1c1h4w4k1r3s3", "a line is NAME PROBLEM, each name once, got 'n1c1h4w4k1r3s3'"):
        file.write_text(f"# comment\n{line}\n")
        with pytest.raises(ValueError, match=re.escape(f"{file}:2: ") + ".*" + re.escape(message)):
            read_problems(file)
    file.write_text("twice n1c1h4w4k1r3s3\n" * 2)
    with pytest.raises(ValueError, match=":2: a line is NAME PROBLEM, each name once"):
        read_problems(file)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_choice(direction):
    """The cheapest by estimate of those that can, exact if in doubt; a family or a name forces it.

    One algorithm takes every problem.
    """
    for parameter in problems():
        problem = parameter.values[0]
        listed = explain(problem)[direction]
        assert [name for name, _ in listed] == [a.name for a in ALGORITHMS[direction]]
        (chosen,) = (name for name, reason in listed if reason is None)
        assert choose(direction, problem, "NCHW", "float32").name == chosen
        least = _cycles(direction, chosen, problem)
        for name, reason in listed:
            if reason is None or reason.startswith("estimated"):
                assert choose(direction, problem, "NCHW", "float32", name).name == name
                times = _cycles(direction, name, problem) / least
                assert times >= 1 or (times * ROUNDING_COST >= 1 and chosen.startswith("direct")
                                      and name.startswith("winograd"))
                exact = ", which is exact" if times < 1 else ""
                assert reason in (None, f"estimated {times:.2f}x the cycles of {chosen}{exact}")
            else:
                with pytest.raises(ValueError, match=re.escape(
                        f"algorithm {name!r} cannot run the {direction.replace('_', ' ')} of {problem}: {reason}")):
                    choose(direction, problem, "NCHW", "float32", name)
        assert choose(direction, problem, "NCHW", "float32", "direct").exact
        assert choose(direction, problem, "NHWC", "float64", "direct_channels").exact


def _cycles(direction, name, problem):
    (algorithm,) = (a for a in ALGORITHMS[direction] if a.name == name)
    return algorithm.cycles(problem if problem.n else dataclasses.replace(problem, n=1), "NCHW", "float32")


def test_unknown_algorithm():
    assert names()[0] == "auto"
    listed = ", ".join(map(repr, names()))
    with pytest.raises(ValueError, match=re.escape(f"algorithm must be one of {listed}, got 'fft'")):
        choose("forward", EVERYWHERE, "NCHW", "float32", "fft")


def test_winograd_can_be_switched_off(monkeypatch):
    problem = ConvProblem.parse("n4c64h28w28k64r3s3p1")
    assert choose("forward", problem, "NCHW", "float32").name == "winograd"
    monkeypatch.setattr(algorithms._Settings, "winograd", algorithms.winograd_allowed())  # restored afterwards
    algorithms.set_winograd(False)
    for direction in DIRECTIONS:
        assert choose(direction, problem, "NCHW", "float32").family == "direct"
        assert ("winograd", "switched off by set_winograd(False) or FASTCONV_WINOGRAD=0") in explain(problem)[direction]
        assert choose(direction, problem, "NCHW", "float32", "winograd").name == "winograd"
