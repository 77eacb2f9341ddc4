"""The verification of kernels: that it covers them, passes, and can fail."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastconv import functional, grad, problems, verify
from fastconv.cli import main
from fastconv.kernels.plan import ConvProblem
from fastconv.verify.operations import OPERATIONS

SMALL = {"small": ConvProblem.parse("n2c3h8w8k4r3s3u2p1")}
NO_REFERENCE = {"dropout", "dropout_with_mask"}  # random


def operation(label):
    return next(operation for operation in OPERATIONS if operation.label == label)


def outcomes(label, wanted=SMALL):
    """The differences that one operation comes to."""
    return [check.difference for check in verify.verify(wanted, [operation(label)])]


def test_every_public_function_is_verified():
    public = {*functional.__all__, *(f"grad.{name}" for name in grad.__all__)}
    verified = {operation.label for operation in OPERATIONS}
    assert public - verified == NO_REFERENCE | {"grad.dropout"}


def test_every_operation_passes_on_a_small_problem():
    checks = list(verify.verify(SMALL))
    assert [check for check in checks if not check.difference.passed] == []
    assert {check.operation for check in checks} == {operation.label for operation in OPERATIONS}
    assert {(check.layout, check.dtype) for check in checks if check.operation == "conv2d"} == {
        (layout, dtype) for layout in ("NCHW", "NHWC") for dtype in ("float32", "float64")}
    direct = [check for check in checks if check.algorithm.startswith("direct")]
    assert direct and all(check.difference == verify.Difference(0.0, 0.0) for check in direct)


@pytest.mark.parametrize("is_kind", [
    lambda p: p.stride > (1, 1),
    lambda p: p.dilation > (1, 1),
    lambda p: p.padding[0] != p.padding[1],
    lambda p: 1 < p.groups < p.c,
    lambda p: 1 < p.groups == p.c,
    lambda p: p.n == 0,
    lambda p: p.c == 1,
    lambda p: p.k % 16,
])
def test_packaged_list_has_every_kind_of_problem(is_kind):
    assert any(map(is_kind, problems.packaged("verify").values()))


def test_packaged_list_is_quick():
    assert sum(map(verify.reference_seconds, problems.packaged("verify").values())) < 15


def wrong_in_one_element(function):
    def broken(*arguments, **options):
        result = function(*arguments, **options)
        result.reshape(-1)[-1] += 1e-3
        return result

    return broken


@pytest.mark.parametrize(("module", "name"), [
    (functional, "conv2d"), (grad, "conv2d_input"), (grad, "conv2d_weight"), (functional, "tanh"),
    (grad, "avg_pool2d")])
def test_a_kernel_wrong_in_one_element_fails(monkeypatch, module, name):
    monkeypatch.setattr(module, name, wrong_in_one_element(getattr(module, name)))
    found = outcomes(name if module is functional else f"grad.{name}")
    assert found and not any(difference.passed for difference in found)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda y: y[:, :, :-1], "shape"),
    (lambda y: y.astype(np.float16), "type float16"),
    (lambda y: y * np.nan, ""),
    (lambda y: (y, y), "2 results, not 1"),
    (lambda y: 1 / 0, "ZeroDivisionError"),
])
def test_any_other_way_to_be_wrong_fails(monkeypatch, spoil, message):
    relu = functional.relu
    monkeypatch.setattr(functional, "relu", lambda input: spoil(relu(input)))
    found = outcomes("relu")
    assert found and not any(difference.passed for difference in found)
    assert all(message in difference.message for difference in found)


def test_worst_of_several_results_counts(monkeypatch):
    pool = functional.max_pool2d_with_positions

    def misplaced(*arguments, **options):
        maxima, positions = pool(*arguments, **options)
        return maxima, positions + np.uint8(1)

    monkeypatch.setattr(functional, "max_pool2d_with_positions", misplaced)
    assert not any(difference.passed for difference in outcomes("max_pool2d_with_positions"))


def test_command_says_that_all_is_right(capsys):
    assert main(["verify", "--problem", "n1c2h5w6k3r3s3"]) == 0
    *rows, _, last = capsys.readouterr().out.splitlines()
    assert " ".join(rows[0].split()) == "operation problem layout, type largest error bound checks verdict"
    assert all(row.endswith("ok") for row in rows[1:])
    assert "on 1 problem: all right" in last


def test_command_fails_with_a_broken_kernel(capsys, monkeypatch):
    monkeypatch.setattr(functional, "relu", wrong_in_one_element(functional.relu))
    assert main(["verify", "--problem", "n1c2h5w6k3r3s3"]) == 1
    out = capsys.readouterr().out
    assert "FAILED: relu on n1c2h5w6k3r3s3, float32: off by 0.001, at most 0 is right" in out
    assert out.splitlines()[-1].startswith("2 of ")
    assert "FAILED: relu." in out.splitlines()[-1]


def test_command_prints_json(capsys, monkeypatch):
    monkeypatch.setattr(functional, "relu", lambda input: input[:-1])
    assert main(["verify", "--problem", "n1c2h5w6k3r3s3", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    failed = [check for check in found["checks"] if not check["passed"]]
    assert found["failed"] == len(failed) == 2
    assert failed[0]["operation"] == "relu"
    assert failed[0]["error"] is None  # infinite, which JSON cannot say


def test_unknown_problem_is_refused(capsys):
    assert main(["verify", "--problem", "digits.conv9"]) == 1
    error = capsys.readouterr().err
    assert "problem 'digits.conv9'" in error
    assert "a name such as digits.conv2" in error
