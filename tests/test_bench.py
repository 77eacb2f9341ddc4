"""The comparison of speed: its cases, contenders, processes, figures and chart."""

from __future__ import annotations

import dataclasses
import json
import subprocess

import numpy as np
import pytest

import fastconv
from fastconv import info
from fastconv.bench import startup, suites, worker
from fastconv.bench.case import CONVOLUTIONS, MAX_POOLS, OPERATIONS, Case
from fastconv.bench.contenders import CONTENDERS, Prepared, installed
from fastconv.bench.results import Results, duration, times
from fastconv.bench.roofline import Roofline
from fastconv.bench.session import ContenderFailed, Measurement, Session
from fastconv.bench.training import InferenceCase, TrainingCase
from fastconv.cli import main
from fastconv.kernels import peak
from fastconv.kernels.plan import ConvProblem
from fastconv.kernels.simd import vector_unit

STRING = "n3c4h9w8k5r3s2u2x1p1"


def case(op="forward", text=STRING, layout="NCHW", dtype="float32"):
    return suites.cases({text: ConvProblem.parse(text)}, [op], [layout], [dtype])[0]


# Cases


def test_useful_work_is_counted_by_hand():
    problem = "n2c3h5w5k4r3s3"  # 3x3 outputs
    macs = 2 * 4 * 9 * 3 * 9
    x, w, y = 2 * 3 * 25, 4 * 3 * 9, 2 * 4 * 9
    for op, elements in (("forward", x + w + 4 + y), ("input_gradient", y + w + x), ("filter_gradient", x + y + w)):
        assert case(op, problem).flops == 2 * macs
        assert case(op, problem).bytes == 4 * elements
        assert case(op, problem, dtype="float64").bytes == 8 * elements
    y = 2 * 3 * 9  # a pool has as many channels out as in
    assert case("max_pool", problem).flops == 0
    assert case("max_pool", problem).bytes == 4 * (x + y) + y
    assert case("forward", problem).im2col_bytes == 4 * 2 * 27 * 9


def test_naive_path_runs_fewer_images_and_says_so():
    whole = suites.suite("networks", ["forward"])[1]
    cut = whole.for_path("naive")
    assert str(whole) == "op=forward-problem=digits.conv2"
    assert cut.problem.n < whole.problem.n
    assert str(cut) == f"op=forward-problem={cut.problem}"
    assert whole.for_path("jit") is whole
    assert case().for_path("naive") == case()


def test_default_suite_is_the_networks_layers_and_pools():
    found = suites.suite("networks")
    assert {str(each) for each in found if each.op == "input_gradient"} == {
        f"op=input_gradient-problem={name}" for name in ("digits.conv1", "digits.conv2", "cifar.conv1", "cifar.conv2")}
    assert {each.op for each in found} == {*CONVOLUTIONS, *MAX_POOLS}
    assert all(each.problem.k == each.problem.c for each in found if "pool" in each.op)


# Contenders: each against the same reference, in this process


def prepared(path, wanted, tmp_path):
    """A worker that has prepared a case, and its largest error."""
    expected = tmp_path / "expected.npy"
    np.save(expected, wanted.expected())
    found = worker.Worker(path, fastconv.get_num_threads())
    return found, found.prepare(wanted.as_json(), str(expected))["error"]


@pytest.mark.parametrize(("path", "wanted"), [
    pytest.param(path, case(op, layout=layout), id=f"{path}-{op}-{layout}")
    for path in CONTENDERS for op in OPERATIONS for layout in ("NCHW", "NHWC")
    if not CONTENDERS[path].why_not(case(op, layout=layout))
])
def test_contenders_agree(path, wanted, tmp_path):
    for package in CONTENDERS[path].packages:
        pytest.importorskip(package)
    _, error = prepared(path, wanted, tmp_path)
    assert error <= wanted.bound(wanted.expected())


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("path", ["jit", "im2col", "torch", "torch_compile", "onnxruntime"])
@pytest.mark.parametrize("wanted", [TrainingCase("digits", 2), TrainingCase("resnet18", 1), InferenceCase("cifar", 2),
                                    InferenceCase("resnet18", 1)], ids=str)
def test_networks_agree(wanted, path, layout, tmp_path):
    for package in CONTENDERS[path].packages:
        pytest.importorskip(package)
    wanted = dataclasses.replace(wanted, layout=layout)
    if reason := CONTENDERS[path].why_not(wanted):
        pytest.skip(reason)
    found, error = prepared(path, wanted, tmp_path)
    assert error < wanted.bound(wanted.expected())
    assert len(found.round(1e-3)["seconds"]) >= 1  # it can go on


def test_a_training_step_counts_three_times_its_multiply_adds():
    conv1, conv2 = 2 * 26 * 26 * 32 * 9, 2 * 11 * 11 * 64 * 32 * 9
    linear = 2 * (1600 * 128 + 128 * 10)
    assert TrainingCase("digits", 2).flops == 2 * (3 * (conv1 + conv2 + linear) - conv1)
    assert str(TrainingCase("cifar", 256)) == "op=training_step-problem=cifar.batch256"


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda y: y + np.float32(0.01), "jit is wrong on op=forward.*off by"),
    (lambda y: y * np.float32(np.nan), "off by nan"),
    (lambda y: y[:, :-1], "jit gives float32"),
])
def test_wrong_result_is_not_timed(monkeypatch, tmp_path, spoil, message):
    right = CONTENDERS["jit"].operation

    def prepare(case, arrays, threads):
        made = right(case, arrays, threads)
        return Prepared(made.call, lambda result: spoil(made.array(result)))

    monkeypatch.setitem(CONTENDERS, "jit", CONTENDERS["jit"]._replace(operation=prepare))
    with pytest.raises(ValueError, match=message):
        prepared("jit", case(), tmp_path)


def test_a_round_warms_up_and_lasts(tmp_path):
    found, _ = prepared("im2col", case(), tmp_path)
    calls = []
    found.calls["case"] = lambda: calls.append(1)
    seconds = found.round(0.002)["seconds"]
    assert len(calls) == len(seconds) + 1
    assert sum(seconds) >= 0.002
    assert len(found.round(1e-9)["seconds"]) == 1


def test_memory_of_im2col_is_its_matrix(tmp_path):
    wanted = case(text="n8c4h48w48k4r5s5p2")
    found, _ = prepared("im2col", wanted, tmp_path)
    extra = found.memory()["bytes"]
    if extra is None:
        pytest.skip("this system does not tell")
    assert wanted.im2col_bytes <= extra < 1.5 * wanted.im2col_bytes
    found, _ = prepared("jit", wanted, tmp_path)
    assert found.memory()["bytes"] < wanted.im2col_bytes


def test_installed_finds_what_needs_nothing():
    assert {"jit", "im2col", "naive"} <= set(installed())


def test_one_family_of_algorithms_runs_where_it_is_asked_for():
    direct, winograd = CONTENDERS["jit_direct"], CONTENDERS["jit_winograd"]
    assert not {"jit_direct", "jit_winograd"} & set(installed())
    assert not direct.why_not(case())
    assert winograd.why_not(case()).startswith("algorithm 'winograd' cannot run the forward of ")
    assert not winograd.why_not(case(text="n1c64h8w8k64r3s3"))
    assert direct.why_not(case("relu")) == "it is compared on convolutions only"


# The machine's peaks


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_peak_loop_multiplies_and_adds(dtype):
    call, multiply_adds = peak.multiply_add_call(2, dtype)
    sums = call()
    assert (sums == peak.STEPS).all()  # of ones
    assert multiply_adds == peak.STEPS * sums.size
    assert sums.size == 2 * (vector_unit().registers - 2) * vector_unit().lanes(dtype)


def test_triad_moves_three_arrays():
    call, size = peak.triad_call(2, 4096)
    assert size == 3 * 4096
    assert (call() == 1.5).all()


# Processes


@pytest.fixture(scope="module")
def measured():
    """Two paths on a tiny problem, in processes of their own, and the session's results."""
    with Session(["jit", "im2col", "naive"], threads=1) as session:
        found = session.measure(case(), rounds=2, seconds=0.002)
        yield session, Results.of(session, found)


def test_session_measures_every_path(measured):
    _, results = measured
    assert [m.path for m in results.measurements] == ["jit", "im2col", "naive"]
    for m in results.measurements:
        assert len(m.rounds) == 2
        assert 0 < min(map(min, m.rounds)) <= m.seconds
        assert m.error <= m.bound
    assert results.peak_gflops["float32"] > results.measurements[0].gflops > 0
    assert results.peak_gbytes > 0


def test_failure_in_a_worker_names_what_went_wrong(measured):
    session, _ = measured
    with pytest.raises(ContenderFailed, match="KeyError: 'nothing'"):
        session.workers["im2col"].ask("round", seconds=0.1, what="nothing")


def test_death_of_a_worker_is_told():
    with Session(["im2col"], threads=1) as session:
        session.workers["im2col"]._process.kill()
        with pytest.raises(ContenderFailed, match="the process of path im2col ended"):
            session.measure(case(), rounds=1, seconds=0.001)


def test_results_are_json(measured):
    _, results = measured
    found = json.loads(json.dumps(results.as_json()))
    assert found["threads"] == 1
    assert found["versions"]["numpy"] == np.__version__
    jit, im2col, _ = found["results"]
    assert (jit["op"], jit["problem"], jit["path"]) == ("forward", str(ConvProblem.parse(STRING)), "jit")
    assert jit["im2col_bytes"] == case().im2col_bytes
    assert im2col["jit_is_times_as_fast"] == pytest.approx(im2col["seconds"] / jit["seconds"])


# Figures and chart, from made-up times


def made_up():
    """jit takes 1 ms, torch 2 and 0.5 ms, naive 1 s for half the batch."""
    first, second = case(text="n4c2h5w5k3r3s3"), case(text="n4c2h6w6k3r3s3")
    half = Case("forward", "n2c2h5w5k3r3s3", ConvProblem.parse("n2c2h5w5k3r3s3"))
    return Results(tuple(dataclasses.replace(m, peak_gflops=first.flops / 4e6) for m in (
        Measurement(first, "jit", first, ((1e-3, 1e-3), (1e-3,)), extra_bytes=1024),
        Measurement(first, "torch", first, ((2e-3,), (2e-3,), (9e-3,)), extra_bytes=None),
        Measurement(first, "naive", half, ((1.0,),), extra_bytes=0),
        Measurement(second, "jit", second, ((1e-3,),), extra_bytes=0),
        Measurement(second, "torch", second, ((0.5e-3,),), extra_bytes=0),
        Measurement(second, "onnxruntime", second, skipped="it takes float32 only"),
    )), threads=2, peak_gflops={"float32": 200.0}, peak_gbytes=40.0)


def test_speedup_is_by_the_time_of_an_image():
    results = made_up()
    assert [results.speedup(m) for m in results.measured] == pytest.approx([1, 2, 2000, 1, 0.5])


def test_summary_names_losses_skips_and_noise():
    summary = "\n".join(made_up().summary())
    assert ("jit against torch, geometric means: forward 1.00x; slower on forward n4c2h6w6k3r3s3 NCHW (0.50x)."
            in summary)
    assert "jit against naive, geometric means: forward 2,000x; slower nowhere." in summary
    assert "onnxruntime skipped forward: it takes float32 only." in summary
    assert "1 of 5 measurements differ by more than 1.5x between rounds" in summary


def test_row_shows_the_batch_that_ran():
    results = made_up()
    torch, naive = (results.row(results.measurements[place]) for place in (1, 2))
    assert torch[:3] == ("n4c2h5w5k3r3s3", "torch", "2 ms")
    assert torch[4] == "200%"  # of the peak between its own rounds
    assert torch[-2:] == ("unknown", "2.00x as fast")
    assert naive[0] == "n2c2h5w5k3r3s3"
    assert naive[-1] == "2,000x as fast"


def test_durations_and_ratios_are_readable():
    assert [duration(s) for s in (4.56e-6, 0.0123, 2.5)] == ["4.56 us", "12.3 ms", "2.5 s"]
    assert [times(r) for r in (0.834, 1.5, 12.34, 4710)] == ["0.83x", "1.50x", "12.3x", "4,710x"]


def test_chart_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from fastconv import plot
    from fastconv.bench.chart import chart

    figure = chart(made_up())
    (panel,) = [axes for axes in figure.axes if axes.patches]
    assert len(panel.patches) == 5
    assert "1 s (batch 2), 0%" in [text.get_text() for text in panel.texts]
    plot.save(figure, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000


# The command


def test_command_measures_and_writes(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    written, chart = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["bench", STRING, "--ops", "forward,max_pool", "--paths", "jit,im2col", "--rounds", "1", "--seconds",
                 "0.001", "--threads", "1", "--json", str(written), "--plot", str(chart)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "forward, NCHW, float32, 1 threads" in out
    assert "max_pool, NCHW, float32, 1 threads" in out
    assert "Peaks in this run" in out
    assert len(json.loads(written.read_text())["results"]) == 4
    assert chart.exists()


@pytest.fixture
def small_suites(monkeypatch):
    """Suites of one small problem, and no start of other processes than workers."""
    part = suites.Part("small", ("forward",), ("small.3x3",))
    monkeypatch.setattr(suites, "SUITES", dict.fromkeys(suites.SUITES, (part,)))
    monkeypatch.setattr(startup, "measure", lambda threads: {"cold": 20.5, "warm": 0.75})


QUICK = ("--rounds", "1", "--seconds", "0.001")


def test_suite_overhead_tells_of_the_start(small_suites, tmp_path, capsys):
    written = tmp_path / "bench.json"
    assert main(["bench", "--suite", "overhead", "--paths", "jit", *QUICK, "--json", str(written)]) == 0
    assert "first training step (digits network, batch 64): 0.75 s, and 20.5 s" in capsys.readouterr().out
    assert json.loads(written.read_text())["startup_seconds"] == {"cold": 20.5, "warm": 0.75}


def test_suite_scaling_runs_one_thread_and_several(small_suites, tmp_path, capsys):
    if fastconv.get_num_threads() == 1:
        pytest.skip("one thread is all there are")
    written = tmp_path / "bench.json"
    assert main(["bench", "--suite", "scaling", "--threads", "2", *QUICK, "--json", str(written)]) == 0
    printed = capsys.readouterr().out
    assert "2 threads against 1, geometric mean" in printed and "64 cores: too few or uneven tasks" in printed
    found = json.loads(written.read_text())
    assert [run["threads"] for run in found["runs"]] == [1, 2]
    one, two = (run["results"][0]["seconds"] for run in found["runs"])
    assert found["scaling"][0]["times_as_fast"] == pytest.approx(one / two)


def test_scaling_takes_given_problems(capsys):
    if fastconv.get_num_threads() == 1:
        pytest.skip("one thread is all there are")
    assert main(["bench", "--suite", "scaling", "--ops", "forward", "n1c4h9w9k4r3s3", *QUICK]) == 0
    assert "n1c4h9w9k4r3s3" in capsys.readouterr().out


def test_roofline_counts_tasks_and_bytes():
    """Three tasks on two cores take two rounds; where memory is slow it alone counts."""
    roofline = Roofline(cycles=1e6, tasks=3, bytes=1000)
    a_second = 2 * vector_unit().lanes("float32") / 1e9 * 1e6  # GFLOP/s at which a million cycles take a second
    assert roofline.speedup(2) == 1.5 and roofline.speedup(64) == 3
    assert roofline.seconds(1, "float32", a_second, 1.0) == pytest.approx(1)
    assert roofline.seconds(2, "float32", a_second, 1.0) == pytest.approx(2 / 3)
    assert roofline.seconds(2, "float32", a_second, 1e-7) == pytest.approx(10)
    assert roofline.gbytes_for(2, "float32", a_second) == pytest.approx(1.5e-6)
    whole = Roofline.of(case("forward", "n4c64h28w28k64r3s3p1"))
    half = Roofline.of(case("forward", "n2c64h28w28k64r3s3p1"))
    assert 0.4 < half.cycles / whole.cycles < 0.6


def test_scaling_needs_threads(capsys):
    assert main(["bench", "--suite", "scaling", "--threads", "1"]) == 1
    assert "threads must be at least 2, got 1" in capsys.readouterr().err


def test_peers_stand_beside_our_path(small_suites, monkeypatch, capsys):
    """The matrix form plays the peer."""
    im2col = CONTENDERS["im2col"]
    monkeypatch.setitem(CONTENDERS, "im2col", im2col._replace(packages=("numpy",)))
    assert main(["bench", "--suite", "overhead", "--peers", "im2col", *QUICK]) == 0
    assert "jit against im2col" in capsys.readouterr().out


def test_first_step_in_a_process_of_its_own(monkeypatch):
    step = "import os; assert os.environ['FASTCONV_NUM_THREADS'] == '1'; print('stepped')"
    monkeypatch.setattr(startup, "STEP", step)
    found = startup.measure(1)
    assert found["cold"] > 0 and found["warm"] > 0
    monkeypatch.setattr(startup, "STEP", "raise SystemExit(1)")
    with pytest.raises(subprocess.CalledProcessError):
        startup.measure(1)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--ops", "backward"], "'backward' is not one of forward, input_gradient"),
    (["--paths", "jit,tensorflow"], "'tensorflow' is not one of jit, im2col"),
])
def test_unknown_names_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["bench", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["digits.conv9"], "problem 'digits.conv9'"),
    (["--rounds", "0"], "must be positive"),
    (["--suite", "pools", "--ops", "forward"], "suite pools has no forward"),
])
def test_wrong_values_are_refused(arguments, message, capsys):
    assert main(["bench", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_versions_come_with_every_result():
    assert set(info.PACKAGES) <= set(made_up().as_json()["versions"])
