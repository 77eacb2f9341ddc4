"""The command line as a person uses it: train, stop, go on, predict, and every way to be told no."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastconv import data
from fastconv.checkpoint import load_tensors
from fastconv.cli import COMMANDS, main
from fastconv.data import read_idx, write_idx

MODEL = """
from fastconv import nn
def small(rng, dtype):
    return nn.Sequential(nn.Conv2d(1, 4, 3, rng=rng, dtype=dtype), nn.ReLU(), nn.Flatten(),
                         nn.Dropout(0.1, rng=rng), nn.Linear(64, 10, rng=rng, dtype=dtype))
def scores_for_two(rng, dtype):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 2, rng=rng, dtype=dtype))
"""
FAST = ["--epochs", "2", "--batch-size", "10"]


@pytest.fixture
def workplace(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a small model of the user's own and small images of bars; runs draw no plots."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastconv.report.Report.write_plots", lambda report: None)
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "bars").mkdir()
    for prefix, count in (("train", 80), ("t10k", 30)):
        labels = rng.integers(0, 3, count).astype(np.uint8)
        images = rng.integers(0, 60, (count, 6, 6)).astype(np.uint8)
        images[np.arange(count), 2 * labels] = 255
        write_idx(tmp_path / "bars" / f"{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / "bars" / f"{prefix}-labels-idx1-ubyte", labels)
    return tmp_path


def train(*arguments: str) -> int:
    return main(["train", "--model", "mine.py:small", "--data", "bars", *FAST, *arguments])


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that fails."""
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("fastconv: error: ")
    return captured.err


# The main job, on real digits

@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "--epochs", "4", "--out", str(folder)]) == 0
    return folder


def test_digits_are_learned(digits_run: Path):
    with open(digits_run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert float(rows[-1]["validation_accuracy"]) >= 0.97


def test_everything_is_in_the_run_folder(digits_run: Path):
    assert sorted(file.name for file in digits_run.iterdir()) == [
        "checkpoint.safetensors", "config.json", "confusion.png", "curves.png", "feature_maps.png", "filters.png",
        "metrics.csv", "mistakes.png", "model.safetensors"]
    for picture in digits_run.glob("*.png"):
        with Image.open(picture) as image:
            assert image.size[0] > 400
    weights, _ = load_tensors(digits_run / "model.safetensors")
    assert sum(value.size for value in weights.values()) == 225_034


def test_predict_reads_a_digit_however_it_is_drawn(digits_run: Path, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]):
    digits = data.load_digits()
    pixels = np.rint(digits.scaling.undo(digits.validation.images[250])[0] * 255).astype(np.uint8)
    label = str(digits.validation.labels[250])
    light = Image.fromarray(pixels)
    variants = {
        "as-is.png": light,
        "dark-on-light.png": Image.fromarray(255 - pixels),
        "large.png": Image.fromarray(255 - pixels).resize((300, 300), Image.Resampling.BICUBIC).convert("RGB"),
    }
    page = Image.new("L", (400, 600), 235)
    page.paste(Image.fromarray(235 - (pixels * 0.8).astype(np.uint8)).resize((140, 140)), (30, 400))
    variants["corner-of-a-page.png"] = page
    for name, image in variants.items():
        image.save(tmp_path / name)
    write_idx(tmp_path / "rows-idx3-ubyte.gz", np.stack([pixels * 0, pixels]))
    sources = [*(str(tmp_path / name) for name in variants), f"{tmp_path}/rows-idx3-ubyte.gz:1"]

    assert main(["predict", str(digits_run), *sources]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(sources)
    for line, source in zip(lines, sources):
        assert re.fullmatch(rf"{re.escape(source)} +{label} +\d+\.\d% +\(then \d [\d.]+%, \d [\d.]+%\)", line)

    assert main(["predict", str(digits_run / "model.safetensors"), "--json", *sources]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["class"] for record in records] == [label] * len(sources)
    assert records[0]["probabilities"][label] == records[0]["probability"]
    assert sum(records[0]["probabilities"].values()) == pytest.approx(1)
    for record in (records[1], records[4]):
        assert record["probabilities"] == records[0]["probabilities"]  # the same pixels


def test_the_mlp_learns_the_digits_by_plain_gradient_descent(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--model", "mlp", "--epochs", "4", "--out", str(tmp_path / "mlp")]) == 0
    config = json.loads((tmp_path / "mlp" / "config.json").read_text())
    assert config["settings"]["optimizer"] == "sgd" and config["settings"]["lr"] == 0.1
    accuracy = re.search(r"Validation accuracy ([\d.]+)%", capsys.readouterr().out)
    assert accuracy and float(accuracy[1]) >= 90


# Training a model and data of the user's own

def test_a_run_says_what_it_did(workplace: Path, capsys: pytest.CaptureFixture[str]):
    assert train() == 0
    out = capsys.readouterr().out
    (folder,) = (workplace / "runs").iterdir()
    assert re.fullmatch(r"small-\d{8}-\d{6}", folder.name)
    assert "mine.py:small: 690 parameters, 80 images of mnist to train on and 30 for test, 2 epochs" in out
    line = r"(?m)^epoch \d/2   loss \d\.\d{4}   accuracy .*%   test accuracy .*%   .*images/s"
    assert len(re.findall(line, out)) == 2
    assert "Test accuracy" in out and f"All of it is in runs/{folder.name}:" in out
    assert f"fastconv predict runs/{folder.name} IMAGE.png" in out
    assert main(["predict", str(folder), "bars/t10k-images-idx3-ubyte:0"]) == 0


def test_two_runs_of_one_second_get_two_folders(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.strftime", lambda form: "20250101-000000")
    assert train() == 0 and train() == 0
    assert {folder.name for folder in (workplace / "runs").iterdir()} == {
        "small-20250101-000000", "small-20250101-000000-2"}


def test_options_reach_the_run(workplace: Path):
    assert train("--optimizer", "momentum", "--lr", "0.02", "--schedule", "constant", "--seed", "7", "--dtype",
                 "float64", "--out", "here") == 0
    config = json.loads((workplace / "here" / "config.json").read_text())
    assert config["settings"] == {"optimizer": "momentum", "lr": 0.02, "schedule": "constant", "batch_size": 10,
                                  "epochs": 2, "seed": 7}
    assert config["images"]["dtype"] == "float64"
    weights, _ = load_tensors(workplace / "here" / "model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {"float64"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fastconv", *arguments]


@pytest.mark.skipif(os.name != "posix", reason="signals and terminals")
def test_ctrl_c_then_resume_is_as_if_never_stopped(workplace: Path):
    """With a real process, a real Ctrl-C, and other threads the second time."""
    options = ["--model", "mine.py:small", "--data", "bars", "--epochs", "3", "--batch-size", "10"]
    assert main(["train", *options, "--out", "whole"]) == 0
    slow = MODEL + "\nimport time\nclass Slow(nn.Flatten):\n    def forward(self, x):\n        time.sleep(0.05)\n"
    slow += "        return super().forward(x)\n"
    (workplace / "mine.py").write_text(slow.replace("nn.Flatten()", "Slow()", 1))
    process = subprocess.Popen(command("train", *options, "--out", "stopped"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait() == 130
    assert "Stopping after this batch" in rest
    assert "Stopped in epoch 3, after" in rest and "go on with: fastconv train --resume stopped" in rest

    assert main(["train", "--resume", "stopped", "--threads", "1"]) == 0
    files = [load_tensors(workplace / name / "model.safetensors")[0] for name in ("whole", "stopped")]
    assert {name: value.tobytes() for name, value in files[0].items()} == {
        name: value.tobytes() for name, value in files[1].items()}


@pytest.mark.skipif(os.name != "posix", reason="signals and terminals")
def test_a_terminal_gets_a_bar(workplace: Path):
    import pty

    ours, theirs = pty.openpty()
    done = subprocess.Popen(command("train", "--model", "mine.py:small", "--data", "bars", *FAST, "--out", "run"),
                            stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": "120", "TERM": "xterm"})
    os.close(theirs)
    output = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        output += piece
        if not piece:
            break
    assert done.wait() == 0
    text = output.decode()
    assert "\x1b[" in text and "\u2501" in text  # drawn in place
    assert re.search(r"epoch 2/2 .*loss .*accuracy .*images/s", text)
    assert "Test accuracy" in text


def test_more_epochs_of_a_finished_run(workplace: Path, capsys: pytest.CaptureFixture[str]):
    assert train("--schedule", "constant", "--out", "run") == 0
    assert main(["train", "--resume", "run", "--epochs", "3"]) == 0
    assert "after 3 epochs" in capsys.readouterr().out
    assert len((workplace / "run" / "metrics.csv").read_text().splitlines()) == 4


# Told no

def test_existing_folders_are_left_alone(workplace: Path, capsys: pytest.CaptureFixture[str]):
    (workplace / "full").mkdir()
    (workplace / "full" / "precious").write_text("mine")
    message = failure(capsys, "train", "--model", "mine.py:small", "--data", "bars", "--out", "full")
    assert "output folder full exists and is not empty" in message
    assert os.listdir(workplace / "full") == ["precious"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--model", "resnet"], "model must be digits, cifar, mlp or FILE.py:factory, got 'resnet'"),
    (["--model", "cifar"], "model cifar reads images of 3 x 32 x 32, which the default digits are not; give --data"),
    (["--data", "bars"], "model digits reads images of 1 x 28 x 28, but those in .*bars are 1 x 6 x 6"),
    (["--data", "nowhere"], "data folder .*nowhere does not exist"),
    (["--epochs", "0"], "epochs must be a positive integer, got 0"),
    (["--batch-size", "-4"], "batch_size must be a positive integer, got -4"),
    (["--lr", "-1"], "lr must be a positive number, got -1"),
    (["--threads", "0"], "num_threads must be an integer from 1 to"),
    (["--model", "mine.py:scores_for_two", "--data", "bars"], "10 numbers an image, one for each class"),
    (["--resume", "nowhere"], "nowhere is no folder of a training run"),
    (["--resume", "nowhere", "--lr", "1", "--batch-size", "4"],
     "--batch-size, --lr cannot be given with --resume|--lr, --batch-size cannot be given with --resume"),
])
def test_wrong_options_of_train(workplace: Path, capsys: pytest.CaptureFixture[str], arguments: list[str],
                                message: str):
    assert re.search(message, failure(capsys, "train", *arguments))


def test_a_broken_checkpoint_is_named(workplace: Path, capsys: pytest.CaptureFixture[str]):
    assert train("--out", "run") == 0
    capsys.readouterr()
    path = workplace / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "checkpoint.safetensors is not a whole safetensors file" in failure(capsys, "train", "--resume", "run")
    (workplace / "run" / "config.json").write_text("{}")
    assert "config.json does not describe a run of fastconv train" in failure(capsys, "train", "--resume", "run")
    image = "bars/t10k-images-idx3-ubyte:0"
    assert "config.json does not describe a model" in failure(capsys, "predict", "run", image)


def test_wrong_arguments_of_predict(workplace: Path, capsys: pytest.CaptureFixture[str]):
    assert "there is no nowhere" in failure(capsys, "predict", "nowhere", "a.png")
    assert train("--out", "run") == 0
    capsys.readouterr()
    (workplace / "alone").mkdir()
    (workplace / "run" / "model.safetensors").rename(workplace / "alone" / "model.safetensors")
    assert "alone is no folder of a training run" in failure(capsys, "predict", "alone/model.safetensors", "a.png")
    assert "there is no run/model.safetensors" in failure(capsys, "predict", "run", "a.png")
    (workplace / "alone" / "model.safetensors").rename(workplace / "run" / "model.safetensors")
    assert "a.png does not exist" in failure(capsys, "predict", "run", "a.png")


def test_divergence_is_one_line(workplace: Path, capsys: pytest.CaptureFixture[str]):
    with np.errstate(all="ignore"):
        message = failure(capsys, "train", "--model", "mine.py:small", "--data", "bars", "--optimizer", "sgd", "--lr",
                          "1e30", "--schedule", "constant", "--out", "run")
    assert "Try a smaller learning rate than 1e+30" in message
    assert (workplace / "run" / "checkpoint.safetensors").exists()


def test_a_missing_package_is_found_before_training(workplace: Path, capsys: pytest.CaptureFixture[str],
                                                    monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else object())
    assert "matplotlib: pip install 'fastconv[train]'" in failure(capsys, "train")
    assert not (workplace / "runs").exists()


def test_traceback_on_request(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTCONV_TRACEBACK", "1")
    with pytest.raises(ValueError, match="model must be"):
        main(["train", "--model", "resnet"])


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_reader_that_has_seen_enough_is_no_error(workplace: Path):
    assert train("--out", "run") == 0
    many = ["bars/t10k-images-idx3-ubyte:0"] * 3000  # more than a pipe holds
    process = subprocess.Popen(command("predict", "run", *many), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_ctrl_c_outside_of_training(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def interrupt(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastconv.predict.Classifier.load", interrupt)
    assert main(["predict", "run", "a.png"]) == 130
    assert "interrupted" in capsys.readouterr().err


# Help

@pytest.mark.parametrize("arguments", [["--help"], *([command.name, "--help"] for command in COMMANDS)])
def test_help_of_every_command(capsys: pytest.CaptureFixture[str], arguments: list[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    if len(arguments) == 1:
        assert all(command.name in out and command.help in out.replace("\n" + " " * 14, " ") for command in COMMANDS)


def test_defaults_are_in_the_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "default: adam for digits, adam for cifar, sgd for mlp" in out and "0.1 for mlp" in out


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train", "--wings"]])
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: fastconv" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert re.fullmatch(r"fastconv \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_imports_nothing_heavy():
    code = ("import sys; from fastconv.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
            "print([name for name in ('matplotlib', 'rich', 'safetensors', 'PIL', 'fastconv.nn', 'fastconv.train') "
            "if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_rows_of_idx_files_are_what_they_say(workplace: Path, capsys: pytest.CaptureFixture[str]):
    assert train("--epochs", "4", "--out", "run") == 0
    capsys.readouterr()
    labels = read_idx("bars/t10k-labels-idx1-ubyte")
    sources = [f"bars/t10k-images-idx3-ubyte:{row}" for row in range(len(labels))]
    assert main(["predict", "run", "--json", *sources]) == 0
    said = [int(record["class"]) for record in json.loads(capsys.readouterr().out)]
    with open("run/metrics.csv", newline="") as file:
        accuracy = float(list(csv.DictReader(file))[-1]["validation_accuracy"])
    assert np.mean(np.array(said) == labels) == pytest.approx(accuracy, abs=1e-6)
