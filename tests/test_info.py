"""What the package says of itself: fastconv info, explain and warmup."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import fastconv
from fastconv import info
from fastconv.cli import main
from fastconv.explain import explain
from fastconv.kernels import algorithms
from fastconv.kernels.plan import ConvProblem
from fastconv.kernels.simd import vector_unit


def info_elsewhere(**environment):
    """``fastconv info --json`` in a process with this environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "FASTCONV", "XDG"))}
    command = [sys.executable, "-m", "fastconv", "info", "--json"]
    found = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def test_info_knows_versions_and_machine():
    found = info.collect()
    assert found["versions"]["fastconv"] == fastconv.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["machine"]["vectors"] == vector_unit().name
    assert found["threads"]["count"] == fastconv.get_num_threads()
    assert json.loads(json.dumps(found)) == found


def test_info_is_readable(capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["fastconv", fastconv.__version__]
    starts = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert {"CPU", "target", "caches", "threads", "layer", "cache"} <= set(starts)


def test_info_says_what_is_switched_off_and_why():
    found = info_elsewhere(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", FASTCONV_NUM_THREADS="1",
                           FASTCONV_CACHE_DIR=os.devnull, HOME=os.devnull)
    sentences = "\n".join(found["switched_off"])
    assert "the cache on disk: no writable folder" in sentences
    assert "this machine's own CPU: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES set" in sentences
    assert found["cache"]["folder"] is None
    assert found["threads"]["count"] == 1
    assert found["threads"]["why"] == "FASTCONV_NUM_THREADS"
    if not found["machine"]["fused_multiply_add"]:
        assert "fused multiply-add: the compiler's target has none" in sentences


def test_info_tells_what_a_missing_package_costs(monkeypatch):
    monkeypatch.setattr(info, "version", lambda package: None)
    assert "matplotlib is not installed: plots and charts will not work" in info.switched_off()


def test_threads_that_were_set_are_said_to_be(monkeypatch):
    if fastconv.get_num_threads() == 1:
        pytest.skip("one thread is all there are")
    with fastconv.threads(1):
        assert info.collect()["threads"]["why"] == "set by set_num_threads"


# explain


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_explain_tells_what_runs(layout):
    problem = ConvProblem.parse("n2c16h12w12k32r4s3u2p1")
    found = explain(problem, layout)
    assert set(found["directions"]) == set(algorithms.DIRECTIONS)
    for direction, told in found["directions"].items():
        chosen = algorithms.choose(direction, problem, layout, "float32").name
        assert told["algorithm"] == chosen
        assert set(told["others"]) | {chosen} == {a.name for a in algorithms.ALGORITHMS[direction]}
        assert all(told["others"].values())
        assert told["tasks"] >= 1
        assert 0 < told["scratch_bytes"] < 1 << 24
    told = found["directions"]["input_gradient"]  # a stride of 2 both ways
    assert len(told["phases"]) == {"direct_channels": 4, "direct_taps": 1}[told["algorithm"]]
    assert found["multiply_adds"] == 2 * 32 * 6 * 6 * 16 * 12


def test_every_algorithm_can_be_explained(capsys):
    """Small problems that between them choose all algorithms of all directions."""
    chosen = set()
    for text, layout in (("n2c1h12w12k8r3s3", "NCHW"), ("n2c3h12w12k8r3s3", "NCHW"), ("n4c32h16w16k32r3s3p1", "NCHW"),
                         ("n2c32h12w12k48r3s3u2p1", "NCHW"), ("n1c64h16w16k1r3s3p1", "NCHW"),
                         ("n64c32h13w13k64r3s3", "NCHW"), ("n2c16h28w28k16r3s3p1g16", "NCHW"),
                         ("n2c16h28w28k16r3s3p1g16", "NHWC"), ("n16c64h56w56k256r1s1", "NCHW"),
                         ("n2c40h7w7k48r3s2p1", "NHWC")):
        assert main(["explain", text, "--layout", layout]) == 0
        assert "register tile" in capsys.readouterr().out
        found = explain(ConvProblem.parse(text), layout)["directions"]
        chosen |= {(direction, told["algorithm"]) for direction, told in found.items()}
    listed = {(direction, a.name) for direction, some in algorithms.ALGORITHMS.items() for a in some}
    assert chosen == listed


def test_explain_is_readable(capsys):
    assert main(["explain", "digits.conv2"]) == 0
    out = capsys.readouterr().out
    assert "input 64x32x13x13, weight 64x32x3x3, output 64x64x11x11" in out
    for direction in ("forward", "input gradient", "filter gradient"):
        assert f"\n{direction}: " in out
    assert "scratch" in out


def test_explain_prints_json(capsys):
    assert main(["explain", "n1c2h5w6k3r3s3", "--layout", "NHWC", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["input"] == [1, 5, 6, 2]


# warmup


def test_warmup_leaves_nothing_to_compile(capsys):
    arguments = ["warmup", "--model", "mlp", "--batch-size", "4"]
    assert main(arguments) == 0
    assert "A training step of batch 4 with sgd takes" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "Nothing to compile" in capsys.readouterr().out


def test_warmup_needs_the_image_of_an_unknown_model(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from fastconv.nn import Flatten, Linear, Sequential\n"
                    "def tiny(): return Sequential(Flatten(), Linear(12, 3))\n")
    assert main(["warmup", "--model", f"{file}:tiny"]) == 1
    assert "--image must say" in capsys.readouterr().err
    assert main(["warmup", "--model", f"{file}:tiny", "--image", "3x2x2", "--batch-size", "2"]) == 0
    with pytest.raises(SystemExit):
        main(["warmup", "--image", "3x2"])
    assert "must be CHANNELSxROWSxCOLUMNS" in capsys.readouterr().err
