"""How long a process takes from its start to its first training step, with compiled kernels kept and without."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

WARM_RUNS = 3
STEP = """
import numpy as np
from fastconv import nn, optim
model, criterion = nn.models.digits_cnn(rng=0), nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
criterion(model(np.ones((64, 1, 28, 28), np.float32)), np.zeros(64, np.int64))
model.backward(criterion.backward(), need_input_grad=False)
optimizer.step()
print("stepped", flush=True)
"""


def measure(threads: int) -> dict[str, float]:
    """Seconds to the first step of the digits network: ``cold`` with an empty cache, ``warm`` with what that left."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "FASTCONV_CACHE_DIR": cache, "FASTCONV_NUM_THREADS": str(threads)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # users keep their modules' bytecode
        cold = _seconds(environment)
        return {"cold": cold, "warm": statistics.median(_seconds(environment) for _ in range(WARM_RUNS))}


def _seconds(environment: dict[str, str]) -> float:
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", STEP], env=environment, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline() if process.stdout else ""
        elapsed = time.perf_counter() - started
    if not said:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return elapsed


def sentence(seconds: dict[str, float]) -> str:
    """What was measured, for people."""
    return (f"Process start to first training step (digits network, batch 64): {seconds['warm']:.2f} s, "
            f"and {seconds['cold']:.1f} s where every kernel has to be compiled first.")
