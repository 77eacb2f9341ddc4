"""Tensors on disk: safetensors files that are either whole or not there.

A file is written under a temporary name in the same folder and then renamed, so that a full disk or a killed
process leaves the old one as it was. A checksum of all values and metadata finds what the format itself would not.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.extras import require

if TYPE_CHECKING:
    from fastconv.nn import Module
    from fastconv.optim import Optimizer

CHECKSUM = "fastconv.crc32"
STATE = "fastconv.state"


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file so that any failure leaves the one of that name as it was; OSError names the path."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            kept = "; the file that was there is unharmed" if path.exists() else ""
            raise OSError(error.errno, f"could not write {path}: {error.strerror}{kept}") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays and text as a safetensors file, with a checksum of both."""
    plain = {
        name: np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
        for name, value in tensors.items()
    }
    described = {**(metadata or {}), CHECKSUM: _checksum(plain, metadata or {})}
    write_atomically(path, require("safetensors.numpy").save(plain, described))


def load_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file; ValueError names the file where it is not whole."""
    path = Path(path)
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    expected = metadata.pop(CHECKSUM, None)
    if expected is not None and expected != _checksum(tensors, metadata):
        raise ValueError(f"{path} is corrupt: its content does not match its checksum")
    return tensors, metadata


def _checksum(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    value = zlib.crc32(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8)
        value = zlib.crc32(values.data, zlib.crc32(name.encode(), value))
    return f"{value:08x}"


def save_model(path: str | Path, model: Module) -> None:
    """Write a model's state dict, under torch's names."""
    save_tensors(path, model.state_dict())


def load_model(path: str | Path, model: Module) -> None:
    """Read a state dict into a model; ValueError where it does not fit, and nothing is changed then."""
    tensors, _ = load_tensors(path)
    _load_state(Path(path), model, tensors)


def _load_state(path: Path, part: Module | Optimizer, state: Mapping[str, np.ndarray]) -> None:
    try:
        part.load_state_dict(state)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not fit: {error}") from error


def save_checkpoint(path: str | Path, model: Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Write all that training needs to go on as if it had never stopped, in one file.

    That is the model's state dict, the optimizer's, every layer's random generator, and ``state``, which may
    hold whatever JSON can.
    """
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    tensors = {f"{part}.{name}": value for part, values in states.items() for name, value in values.items()}
    kept = {
        "generators": {name: rng.bit_generator.state for name, rng in model.named_generators()},
        "state": dict(state),
    }
    save_tensors(path, tensors, {STATE: json.dumps(kept, default=_listed)})


def load_checkpoint(path: str | Path, model: Module, optimizer: Optimizer) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote into the model and the optimizer; returns ``state``."""
    path = Path(path)
    tensors, metadata = load_tensors(path)
    if STATE not in metadata:
        raise ValueError(f"{path} is no checkpoint of a training run")
    kept = json.loads(metadata[STATE])
    for part in (model, optimizer):
        prefix = "model." if part is model else "optimizer."
        _load_state(
            path,
            part,
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)},
        )
    for name, rng in model.named_generators():
        rng.bit_generator.state = kept["generators"][name]
    return kept["state"]


def _listed(value: Any) -> Any:
    """For JSON: the arrays and scalars of NumPy in a random generator's state."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")
