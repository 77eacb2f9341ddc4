"""Files that are whole or not there: round trips, broken files, full disks."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastconv import checkpoint, nn, optim
from fastconv.checkpoint import load_checkpoint, load_model, load_tensors, save_checkpoint, save_model, save_tensors

TENSORS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float64": np.array([np.nan, -0.0, np.inf]),
    "scalar": np.array(5, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(12.0)[::-2],
    "swapped": np.arange(3, dtype=">f4"),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


def network(seed: int = 0, width: int = 4) -> nn.Sequential:
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5, rng=rng), nn.Linear(width, 2))
    for parameter in model.parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape)
    return model


def stepped_optimizer(model: nn.Module) -> optim.Optimizer:
    optimizer = optim.Adam(model.parameters(), lr=0.25)
    for parameter in model.parameters():
        parameter.grad = np.ones_like(parameter.data)
    optimizer.step()
    return optimizer


def assert_same_state(state, other):
    assert state.keys() == other.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_tensors_round_trip_with_their_bits(tmp_path: Path):
    save_tensors(tmp_path / "a.safetensors", TENSORS, {"note": "hello"})
    loaded, metadata = load_tensors(tmp_path / "a.safetensors")
    assert metadata == {"note": "hello"}
    assert_same_state(loaded, TENSORS)
    assert {name: value.shape for name, value in loaded.items()} == {n: v.shape for n, v in TENSORS.items()}
    assert all(value.dtype == TENSORS[name].dtype.newbyteorder("=") for name, value in loaded.items())


def test_torch_reads_the_weights(tmp_path: Path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    model = network()
    save_model(tmp_path / "model.safetensors", model)
    twin = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(), torch.nn.Linear(4, 2))
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"))
    np.testing.assert_array_equal(twin[2].weight.detach().numpy(), model[2].weight.data)


def test_files_of_others_have_no_checksum_and_are_read(tmp_path: Path):
    from safetensors.numpy import save_file

    save_file({"a": np.ones(3)}, tmp_path / "a.safetensors")
    assert_same_state(load_tensors(tmp_path / "a.safetensors")[0], {"a": np.ones(3)})


def cut(raw: bytes) -> bytes:
    return raw[:-5]


def flip_in_values(raw: bytes) -> bytes:
    return raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:]


def change_a_number_in_the_metadata(raw: bytes) -> bytes:
    assert b"12345" in raw
    return raw.replace(b"12345", b"12346")


def huge_header(raw: bytes) -> bytes:
    return struct.pack("<Q", 1 << 60) + raw[8:]


@pytest.mark.parametrize(("damage", "message"), [
    (cut, "is not a whole safetensors file"), (huge_header, "is not a whole safetensors file"),
    (lambda raw: b"", "is not a whole safetensors file"), (flip_in_values, "is corrupt: its content does not match"),
    (change_a_number_in_the_metadata, "is corrupt: its content does not match"),
])
def test_broken_files_are_refused_by_name(tmp_path: Path, damage, message: str):
    path = tmp_path / "model.safetensors"
    save_tensors(path, network().state_dict(), {"note": "12345"})
    path.write_bytes(damage(path.read_bytes()))
    model = network(seed=1)
    with pytest.raises(ValueError, match=f"model.safetensors {message}"):
        load_model(path, model)
    assert_same_state(model.state_dict(), network(seed=1).state_dict())


def test_weights_of_another_model_are_refused(tmp_path: Path):
    save_model(tmp_path / "model.safetensors", network(width=5))
    with pytest.raises(ValueError, match=r"model.safetensors does not fit: .*must have shape \(4, 3\), got \(5, 3\)"):
        load_model(tmp_path / "model.safetensors", network())


def test_a_missing_file_is_an_os_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "none.safetensors")


def test_checkpoint_brings_everything_back(tmp_path: Path):
    model = network()
    optimizer = stepped_optimizer(model)
    model[1].rng.random(7)
    state = {"epoch": 3, "loss": 0.1 + 0.2, "history": [{"epoch": 1}]}
    save_checkpoint(tmp_path / "c.safetensors", model, optimizer, state)
    expected = model[1].rng.random(5)

    other = network(seed=9)
    fresh = optim.Adam(other.parameters(), lr=1.0)
    assert load_checkpoint(tmp_path / "c.safetensors", other, fresh) == state
    assert_same_state(other.state_dict(), model.state_dict())
    assert_same_state(fresh.state_dict(), optimizer.state_dict())
    np.testing.assert_array_equal(other[1].rng.random(5), expected)


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_any_random_generator_is_kept(tmp_path: Path, bits):
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5, rng=np.random.Generator(bits(1))))
    optimizer = optim.SGD(model.parameters())
    model[1].rng.random(3)
    save_checkpoint(tmp_path / "c.safetensors", model, optimizer, {})
    expected = model[1].rng.random(5)
    load_checkpoint(tmp_path / "c.safetensors", model, optimizer)
    np.testing.assert_array_equal(model[1].rng.random(5), expected)


def test_weights_alone_are_no_checkpoint(tmp_path: Path):
    model = network()
    save_model(tmp_path / "m.safetensors", model)
    with pytest.raises(ValueError, match=r"m.safetensors is no checkpoint of a training run"):
        load_checkpoint(tmp_path / "m.safetensors", model, stepped_optimizer(model))


def test_checkpoint_of_another_optimizer_is_refused(tmp_path: Path):
    model = network()
    save_checkpoint(tmp_path / "c.safetensors", model, stepped_optimizer(model), {})
    with pytest.raises(ValueError, match=r"c.safetensors does not fit: .*SGD"):
        load_checkpoint(tmp_path / "c.safetensors", model, optim.SGD(model.parameters()))


def test_a_state_that_json_cannot_hold_is_refused(tmp_path: Path):
    model = network()
    with pytest.raises(TypeError, match="a checkpoint cannot hold a set"):
        save_checkpoint(tmp_path / "c.safetensors", model, stepped_optimizer(model), {"seen": {1}})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.safetensors"
    save_model(path, network())

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write .*model.safetensors: No space left.*is unharmed") as raised:
        save_model(path, network(seed=1))
    assert raised.value.errno == errno.ENOSPC
    model = network(seed=2)
    load_model(path, model)
    assert_same_state(model.state_dict(), network().state_dict())
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_real_limit_on_file_size_leaves_the_old_file_whole(tmp_path: Path):
    code = """
import resource, sys
from fastconv.checkpoint import write_atomically
write_atomically(sys.argv[1], b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_atomically(sys.argv[1], bytes(100_000))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "file"], capture_output=True, text=True)
    assert done.returncode == 1 and "OSError" in done.stderr and "file: File too large" in done.stderr
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_does_not_exist(tmp_path: Path):
    with pytest.raises(OSError, match="No such file"):
        save_model(tmp_path / "no" / "model.safetensors", network())


def test_files_get_the_usual_permissions(tmp_path: Path):
    (tmp_path / "plain").write_text("")
    checkpoint.write_atomically(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_metadata_is_readable_json(tmp_path: Path):
    model = network()
    save_checkpoint(tmp_path / "c.safetensors", model, stepped_optimizer(model), {"epoch": 1})
    _, metadata = load_tensors(tmp_path / "c.safetensors")
    assert json.loads(metadata[checkpoint.STATE])["state"] == {"epoch": 1}
