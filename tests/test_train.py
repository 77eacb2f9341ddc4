"""The training loop: it learns, stops, goes on to the same bits, and loses nothing."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
from pathlib import Path

import numba
import numpy as np
import pytest

import fastconv
from fastconv import checkpoint, nn, recipes
from fastconv.checkpoint import load_tensors
from fastconv.compiling import watch_compiling
from fastconv.data import Dataset
from fastconv.progress import LineProgress, Progress
from fastconv.recipes import Settings
from fastconv.train import Position, TrainingDiverged, evaluate, fit

SHORT = Settings(optimizer="adam", lr=0.03, schedule="onecycle", batch_size=16, epochs=3)
BATCHES = 4  # of 16 in 60 images, the last one smaller


def bars(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 6 x 6 images of a vertical (0) or horizontal (1) bar."""
    labels = np.arange(count) % 2
    pixels = rng.integers(0, 90, (count, 1, 6, 6))
    for image, label, place in zip(pixels, labels, rng.integers(0, 6, count)):
        image[0][(slice(None), place) if label == 0 else (place, slice(None))] += 150
    return pixels.astype(np.uint8), labels


def images(dtype=np.float32, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset.from_pixels("bars", bars(60, rng), bars(20, rng), ("vertical", "horizontal"), dtype=dtype)


def network(dtype=np.float32) -> nn.Sequential:
    """With everything a checkpoint has to keep: weights, running statistics, a random generator."""
    rng = np.random.default_rng(3)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, dtype=dtype, rng=rng), nn.BatchNorm2d(4, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.25, rng=rng), nn.Linear(16, 2, dtype=dtype, rng=rng))
    return model


def assert_same_bits(model: nn.Module, other: nn.Module) -> None:
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in ("seconds", "images_per_second")}
            for row in history]


class After(Progress):
    """Does something after so many batches."""

    def __init__(self, batches: int, action) -> None:
        self.left = batches
        self.action = action
        self.told_to_stop = 0

    def batch(self, position: Position) -> None:
        self.left -= 1
        if self.left == 0:
            self.action()

    def stopping(self) -> None:
        self.told_to_stop += 1


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    """A whole run: its folder, model and result."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    model = network()
    return folder, model, fit(model, images(), SHORT, out=folder)


def test_it_learns_and_says_so(undisturbed):
    _, model, result = undisturbed
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert result.history[-1]["train_loss"] < 0.85 * result.history[0]["train_loss"]
    final = evaluate(model, images().validation)
    assert final.accuracy == result.history[-1]["validation_accuracy"] >= 0.8
    assert final.loss == result.history[-1]["validation_loss"]
    assert result.stopped_by is None


def test_what_the_folder_holds(undisturbed):
    folder, model, result = undisturbed
    assert sorted(file.name for file in folder.iterdir()) == [
        "checkpoint.safetensors", "config.json", "metrics.csv", "model.safetensors"]
    weights, _ = load_tensors(folder / "model.safetensors")
    assert {name: value.tobytes() for name, value in weights.items()} == {
        name: value.tobytes() for name, value in model.state_dict().items()}
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["validation_accuracy"] for row in rows] == [
        f"{row['validation_accuracy']:.6g}" for row in result.history]
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["lr"] == 0.03 and config["classes"] == ["vertical", "horizontal"]
    assert config["images"]["shape"] == [1, 6, 6] and config["images"]["mean"] == list(images().scaling.mean)
    assert config["versions"]["fastconv"] == fastconv.__version__


@pytest.mark.parametrize("batches", [1, BATCHES - 1, BATCHES, BATCHES + 1, 2 * BATCHES, 3 * BATCHES - 1])
def test_stop_and_resume_end_in_the_same_bits(tmp_path: Path, undisturbed, batches: int):
    _, whole, expected = undisturbed
    progress = After(batches, press_ctrl_c)
    stopped = fit(network(), images(), SHORT, out=tmp_path, progress=progress)
    assert stopped.stopped_by == signal.SIGINT and progress.told_to_stop == 1
    done = stopped.position.epoch * BATCHES + stopped.position.batch
    assert done == batches

    model = nn.Sequential(*network())
    result = fit(model, images(), SHORT, out=tmp_path, resume=True)
    assert_same_bits(model, whole)
    assert without_times(result.history) == without_times(expected.history)
    assert result.stopped_by is None


def test_stopping_twice_and_by_sigterm(tmp_path: Path, undisturbed):
    _, whole, _ = undisturbed
    first = fit(network(), images(), SHORT, out=tmp_path,
                progress=After(2, lambda: signal.raise_signal(signal.SIGTERM)))
    assert first.stopped_by == signal.SIGTERM
    second = fit(network(), images(), SHORT, out=tmp_path, resume=True, progress=After(3, press_ctrl_c))
    assert second.stopped_by == signal.SIGINT and second.position.epoch == 1
    model = network()
    fit(model, images(), SHORT, out=tmp_path, resume=True)
    assert_same_bits(model, whole)


def test_a_killed_process_goes_on_from_the_last_save(tmp_path: Path, undisturbed):
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        fit(network(), images(), SHORT, out=tmp_path, progress=After(BATCHES + 2, kill))
    model = network()
    fit(model, images(), SHORT, out=tmp_path, resume=True)
    assert_same_bits(model, undisturbed[1])


def test_long_epochs_are_saved_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed):
    monkeypatch.setattr("fastconv.train.SAVE_SECONDS", 0.0)

    def look() -> None:
        _, metadata = load_tensors(tmp_path / "checkpoint.safetensors")
        assert json.loads(metadata[checkpoint.STATE])["state"]["batch"] == 1

    model = network()
    fit(model, images(), SHORT, out=tmp_path, progress=After(2, look))
    assert_same_bits(model, undisturbed[1])


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """As in a terminal: a process started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path):
    def press_twice() -> None:
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        fit(network(), images(), SHORT, out=tmp_path, progress=After(2, press_twice))


def test_ctrl_c_in_the_last_batch_is_too_late_to_stop(tmp_path: Path, undisturbed):
    model = network()
    result = fit(model, images(), SHORT, out=tmp_path, progress=After(3 * BATCHES, press_ctrl_c))
    assert result.stopped_by is None and len(result.history) == 3
    assert_same_bits(model, undisturbed[1])


def test_signal_handlers_are_given_back(tmp_path: Path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    fit(network(), images(), SHORT, out=tmp_path, progress=After(1, press_ctrl_c))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_without_a_folder_ctrl_c_is_as_ever_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), images(), SHORT, progress=After(2, press_ctrl_c))
    assert list(tmp_path.iterdir()) == []


def test_more_epochs_go_on_and_fewer_are_refused(tmp_path: Path):
    constant = Settings("sgd", 0.05, "constant", batch_size=16, epochs=2)
    longer = Settings("sgd", 0.05, "constant", batch_size=16, epochs=3)
    fit(network(), images(), constant, out=tmp_path / "a")
    model, whole = network(), network()
    assert len(fit(model, images(), longer, out=tmp_path / "a", resume=True).history) == 3
    fit(whole, images(), longer, out=tmp_path / "b")
    assert_same_bits(model, whole)
    with pytest.raises(ValueError, match="epochs must be at least the 3 already done, got 2"):
        fit(network(), images(), constant, out=tmp_path / "a", resume=True)


def test_resume_of_a_finished_run_changes_nothing(undisturbed):
    folder, whole, expected = undisturbed
    model = network()
    assert fit(model, images(), SHORT, out=folder, resume=True).history == expected.history
    assert_same_bits(model, whole)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_for_any_number_of_threads(undisturbed, threads: int):
    model = network()
    with fastconv.threads(min(threads, fastconv.get_num_threads())):
        fit(model, images(), SHORT)
    assert_same_bits(model, undisturbed[1])


def test_another_seed_is_another_run(undisturbed):
    model = network()
    fit(model, images(), Settings("adam", 0.03, "onecycle", 16, 3, seed=1))
    assert not np.array_equal(model[0].weight.data, undisturbed[1][0].weight.data)


@pytest.mark.parametrize("optimizer", recipes.OPTIMIZERS)
@pytest.mark.parametrize("schedule", recipes.SCHEDULES)
def test_every_optimizer_and_schedule_resumes(tmp_path: Path, optimizer: str, schedule: str):
    settings = Settings(optimizer, 0.01, schedule, batch_size=32, epochs=2)
    data = images(np.float64)
    whole = network(np.float64)
    result = fit(whole, data, settings)
    assert result.history[1]["train_loss"] < result.history[0]["train_loss"]
    fit(network(np.float64), data, settings, out=tmp_path, progress=After(3, press_ctrl_c))
    model = network(np.float64)
    assert without_times(fit(model, data, settings, out=tmp_path, resume=True).history) == without_times(
        result.history)
    assert model[0].weight.dtype == np.float64
    assert_same_bits(model, whole)


def test_a_schedule_is_what_it_says():
    rates = {}
    for schedule in recipes.SCHEDULES:
        history = fit(network(), images(), Settings("sgd", 0.08, schedule, batch_size=60, epochs=4)).history
        rates[schedule] = [row["learning_rate"] for row in history]
    assert rates["constant"] == [0.08] * 4
    assert rates["cosine"][0] == 0.08 and rates["cosine"] == sorted(rates["cosine"], reverse=True)
    assert rates["onecycle"][0] < max(rates["onecycle"]) > rates["onecycle"][-1] and max(rates["onecycle"]) <= 0.08


# What goes wrong

def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path):
    model = network()

    def spoil() -> None:
        model[0].weight.data[0] = np.nan

    with pytest.raises(TrainingDiverged, match=r"epoch 2, after batch 2 of 4; the last good state is in "
                                               r".*checkpoint.safetensors. Try a smaller learning rate than 0.03"):
        fit(model, images(), SHORT, out=tmp_path, progress=After(BATCHES + 2, spoil))
    kept, _ = load_tensors(tmp_path / "checkpoint.safetensors")
    assert all(np.isfinite(value).all() for value in kept.values())
    assert len(fit(network(), images(), SHORT, out=tmp_path, resume=True).history) == 3


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path):
    model = network()

    def spoil_and_stop() -> None:
        model[-1].weight.data[0] = np.inf
        press_ctrl_c()

    with pytest.raises(TrainingDiverged, match="a weight became infinite or not a number in epoch 1, after batch 2"):
        fit(model, images(), SHORT, out=tmp_path, progress=After(2, spoil_and_stop))
    kept, _ = load_tensors(tmp_path / "model.safetensors")
    assert all(np.isfinite(value).all() for value in kept.values())


def test_a_huge_rate_diverges_with_advice():
    data = images()
    with np.errstate(all="ignore"), pytest.raises(TrainingDiverged, match="Try a smaller learning rate than 1e\\+30"):
        fit(network(), data, Settings("sgd", 1e30, "constant", 16, 3))


def test_a_full_disk_stops_and_leaves_the_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fill_the_disk() -> None:
        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(checkpoint.os, "fsync", full)

    with pytest.raises(OSError, match=r"could not write .*checkpoint.safetensors: No space left"):
        fit(network(), images(), SHORT, out=tmp_path, progress=After(BATCHES + 1, fill_the_disk))
    monkeypatch.undo()
    assert len(fit(network(), images(), SHORT, out=tmp_path, resume=True).history) == 3


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(ValueError, match=r"exists and is not empty; choose another --out, or .*--resume"):
        fit(network(), images(), SHORT, out=tmp_path)
    with pytest.raises(ValueError, match="exists and is not empty"):
        fit(network(), images(), SHORT, out=tmp_path / "precious")
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]


def test_resume_refuses_another_run(tmp_path: Path, undisturbed):
    folder = undisturbed[0]
    cases = (
        (images(), Settings("sgd", 0.03, "onecycle", 16, 3), "settings optimizer sgd: it was trained with adam"),
        (images(seed=1), SHORT, "data fingerprint"),
    )
    for data, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            fit(network(), data, settings, out=folder, resume=True)
    with pytest.raises(ValueError, match="resume needs out"):
        fit(network(), images(), SHORT, resume=True)
    with pytest.raises(ValueError, match=r"is no folder of a training run: it has no config.json"):
        fit(network(), images(), SHORT, out=tmp_path, resume=True)
    (tmp_path / "config.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match=r"config.json is corrupt"):
        fit(network(), images(), SHORT, out=tmp_path, resume=True)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json is corrupt: it must hold an object, got list"):
        fit(network(), images(), SHORT, out=tmp_path, resume=True)


def test_a_model_with_other_classes_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(ValueError, match=r"one for each class: shape \(1, 2\), got \(1, 3\)"):
        fit(model, images(), SHORT)

    class Silent(nn.Module):
        """Does not say what size its output has."""

        def __init__(self) -> None:
            self.body = model

        def forward(self, input: np.ndarray) -> np.ndarray:
            return self.body(input)

    with pytest.raises(ValueError, match=r"one for each class: shape \(16, 2\), got \(16, 3\)"):
        fit(Silent(), images(), SHORT)


@pytest.mark.parametrize(("change", "message"), [
    ({"optimizer": "newton"}, "optimizer must be one of 'sgd', .*got 'newton'"),
    ({"schedule": "random"}, "schedule must be one of"),
    ({"lr": 0.0}, "lr must be a positive number, got 0"), ({"lr": float("nan")}, "lr must be a positive number"),
    ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
    ({"epochs": -1}, "epochs must be a positive integer"), ({"seed": -1}, "seed must be a non-negative integer"),
])
def test_settings_are_checked(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Settings(**change)


# What a person is told

def test_compiling_is_noticed_once():
    helper = numba.njit(lambda x: x + 1)
    function = numba.njit(lambda x: helper(x) * 2)
    function(1j)
    told = []
    with watch_compiling(lambda: told.append("compiling")) as watch:
        function(1j)
        assert watch.kernels == 0 and told == []
        function(1)
        function(1.0)
    function(np.float32(1))
    assert watch.kernels == 2 and watch.seconds > 0 and told == ["compiling"]


def test_lines_say_what_happens(capsys: pytest.CaptureFixture[str]):
    progress = LineProgress()
    progress.compiling()
    progress.stopping()
    fit(network(), images(), SHORT, progress=progress)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Compiling kernels for this machine \(once; about \d+ s\)\.\.\.", lines[0])
    assert lines[1] == "Stopping after this batch; once more stops at once, without saving."
    epochs = [line for line in lines[2:] if line.startswith("epoch")]
    assert [line[:9] for line in epochs] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


# Models by name

def test_models_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text("""
import numpy as np
from fastconv import nn
def plain(): return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
def given(rng, dtype): return nn.Sequential(nn.Linear(4, 2, rng=rng, dtype=dtype))
def wrong(): return 3
""")
    monkeypatch.chdir(tmp_path)
    name = recipes.resolve("mine.py:given")
    assert name == f"{tmp_path / 'mine.py'}:given" and recipes.resolve(name) == name
    built = recipes.build("mine.py:given", np.random.default_rng(0), np.float64)
    again = recipes.build("mine.py:given", np.random.default_rng(0), np.float64)
    assert_same_bits(built, again)
    assert len(recipes.build("mine.py:plain")) == 2
    for model, dtype, message in (
        ("mine.py:wrong", np.float32, "must return a fastconv.nn.Module, got int"),
        ("mine.py:plain", np.float64, "returned float32 parameters, but float64 was asked for"),
        ("mine.py:none", np.float32, "has no function none"),
        ("other.py:plain", np.float32, "other.py does not exist"),
        ("resnet", np.float32, "model must be digits, cifar, mlp or FILE.py:factory, got 'resnet'"),
    ):
        with pytest.raises(ValueError, match=message):
            recipes.build(model, dtype=dtype)
