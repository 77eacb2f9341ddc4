"""The on-disk cache: it is hit, it is never stale, and it never breaks a call; and what a kernel's twins are."""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import pkgutil
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.errors import NumbaPerformanceWarning

import fastconv
import fastconv.kernels
from fastconv.kernels import jit
from tests.processes import LIMIT

# A kernel in two files of its own, which a run prints the result and the cache hits of.
VALUE = """
from .jit import device_function

@device_function
def value():
    return {value}
"""
FILL = """
import numba
from .jit import kernel
from .value import value

@kernel
def fill(out):
    for i in numba.prange(out.size):
        out[i] = value()

def divide(out, by):
    for i in numba.prange(out.size):
        out[i] = 1 // by

divide_numpy, divide_python = kernel(divide), kernel(divide, error_model="python")
"""
RUN = """
import numpy as np
from fastconv.kernels.fill import fill
for twin in fill.serial,:
    out = np.zeros(3)
    twin(out)
    print(out.tolist(), twin._cache.hits)
"""
RUN_BOTH = RUN.replace("fill.serial,", "fill.serial, fill.parallel")


@pytest.fixture
def house(tmp_path):
    """A copy of the kernels with one more, and a cache folder of its own."""
    return House(tmp_path)


class House:
    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        kernels = folder / "fastconv" / "kernels"
        shutil.copytree(Path(jit.__file__).parent, kernels, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "fastconv" / "__init__.py").touch()
        self.write("fill", FILL)
        self.write("value", VALUE.format(value=1))

    def write(self, name: str, text: str) -> None:
        (self.folder / "fastconv" / "kernels" / f"{name}.py").write_text(text)

    def start(self, code: str = RUN, **environment: str) -> subprocess.Popen[str]:
        environment = {"FASTCONV_CACHE_DIR": str(self.cache), "PYTHONPATH": str(self.folder), **environment}
        return subprocess.Popen([sys.executable, "-c", code], env=os.environ | environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder)

    def run(self, code: str = RUN, **environment: str) -> tuple[list[str], str]:
        """Lines of output, and what went to standard error."""
        process = self.start(code, **environment)
        out, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors
        return out.splitlines(), errors

    @property
    def entries(self) -> list[Path]:
        return sorted(self.cache.rglob("*.bin"))


def result(value: float, hits: int) -> list[str]:
    return [f"[{value}, {value}, {value}] {hits}"]


def test_second_process_loads(house):
    assert house.run(RUN_BOTH) == (result(1.0, 0) * 2, "")
    assert len(house.entries) == 2  # one a twin
    assert house.run(RUN_BOTH) == (result(1.0, 1) * 2, "")
    assert len(house.entries) == 2


def test_edit_of_another_source_compiles_anew(house):
    house.run()
    house.write("value", VALUE.format(value=2))
    assert house.run() == (result(2.0, 0), "")
    assert house.run() == (result(2.0, 1), "")


def test_edit_after_import(house):
    """What compiles is what was imported, and it is filed under that: nobody else runs it."""
    fresh = {"PYTHONDONTWRITEBYTECODE": "1"}  # Python itself may miss an edit within a second
    edit = f"""if True:
        from pathlib import Path
        from fastconv.kernels import fill, value
        Path(value.__file__).write_text({VALUE.format(value=2)!r})
    """
    assert house.run(edit + RUN, **fresh) == (result(1.0, 0), "")
    assert house.run(**fresh) == (result(2.0, 0), "")
    house.write("value", VALUE.format(value=1))
    assert house.run(**fresh) == (result(1.0, 1), "")


def test_every_source_is_in_the_stamp(house):
    """An edit of any, a new one, and one less."""
    folder = house.folder / "fastconv" / "kernels"
    sources = sorted(folder.glob("*.py"))
    assert folder / "jit.py" in sources and len(sources) > 20
    stamps = [jit.source_stamp(folder)]
    for path in sources:
        path.write_text(path.read_text() + "# edited\n")
        stamps.append(jit.source_stamp(folder))
    house.write("another", "# not empty")
    stamps.append(jit.source_stamp(folder))
    sources[0].unlink()
    stamps.append(jit.source_stamp(folder))
    assert len(set(stamps)) == len(stamps)
    assert jit.source_stamp(folder) == stamps[-1]
    assert jit.source_stamp(Path(jit.__file__).parent) == jit.STAMP


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: b"", lambda data: b"rubbish"],
                         ids=["truncated", "empty", "rubbish"])
def test_damaged_entry(house, damage):
    """A warning, the right result, and a whole entry again."""
    house.run()
    for entry in house.entries:
        entry.write_bytes(damage(entry.read_bytes()))
    lines, errors = house.run()
    assert lines == result(1.0, 0)
    assert errors.count("RuntimeWarning: fastconv: recompiling fill.fill, its cached code could not be read") == 1
    assert house.run() == (result(1.0, 1), "")


def test_no_writable_folder(house):
    """Nothing is cached, and nothing else happens."""
    nowhere = dict.fromkeys(("FASTCONV_CACHE_DIR", "XDG_CACHE_HOME", "HOME"), "/dev/null/nowhere")
    for _ in range(2):
        assert house.run(**nowhere) == (result(1.0, 0), "")
    report = "from fastconv.kernels.jit import cache_report; print(cache_report())"
    assert house.run(report, **nowhere) == (["(None, 0, 0)"], "")


def test_entry_that_cannot_be_written(house):
    """Here a file stands where the folder of this version should be."""
    house.run("from fastconv.kernels.jit import STAMP, cache_folder; (cache_folder() / STAMP).touch()")
    lines, errors = house.run()
    assert lines == result(1.0, 0)
    assert errors.count("RuntimeWarning: fastconv: fill.fill was compiled but could not be cached") == 1


def test_flags_do_not_share_an_entry(house):
    """Two kernels of one function, told apart by how they divide by zero."""
    code = """if True:
    import numpy as np
    from fastconv.kernels.fill import divide_numpy, divide_python
    out = np.ones(1)
    divide_numpy.serial(out, 0)
    try:
        divide_python.serial(out, 0)
    except ZeroDivisionError as error:
        print(out, divide_numpy.serial._cache.hits, divide_python.serial._cache.hits, error)
    """
    (first,), _ = house.run(code)
    assert first.startswith("[0.] 0 0 ")
    (second,), _ = house.run(code)
    assert second.startswith("[0.] 1 1 ")


# Kernels that call one of two closures of the same name, too large to be inlined.
CLOSURES = """
import math
import numba
from .jit import device_function, kernel

def adding(constant):
    @device_function
    def value(x):
        {steps}
        return x
    return value

one, two = adding(1.0), adding(2.0)

@kernel
def ones(out):
    for i in numba.prange(out.size):
        out[i] = one(one(out[i]))

@kernel
def twos(out):
    for i in numba.prange(out.size):
        out[i] = two(two(out[i]))
"""
CALL_CLOSURES = """
import numpy as np
from fastconv.kernels import closures
for name in {names!r}:
    out = np.zeros(3)
    getattr(closures, name).serial(out)
    print(out[0])
"""


def test_closures_of_one_name(house):
    """Numba names both by a counter of the process: the first of one process as the first of another."""
    steps = "\n        ".join(["x += math.floor(constant + math.exp(-50.0 - x))"] * 50)
    house.write("closures", CLOSURES.format(steps=steps))
    assert house.run(CALL_CLOSURES.format(names=["ones"]))[0] == ["100.0"]
    assert house.run(CALL_CLOSURES.format(names=["ones", "twos"]))[0] == ["100.0", "200.0"]
    assert house.run(CALL_CLOSURES.format(names=["twos", "ones"]))[0] == ["200.0", "100.0"]


LIBRARY_FUNCTIONS = """
import numba
import numpy as np
from .jit import kernel

@kernel
def sums(out):
    for i in numba.prange(out.size):
        parts = np.empty(4)
        parts[:] = out[i]
        out[i] = np.sort(parts)[0] + parts.sum()
"""
CALL_LIBRARY_FUNCTIONS = """
import numba
import numpy as np
from fastconv.kernels import library
out = np.ones(3)
library.sums.serial(out)

@numba.njit
def of_the_user(x):
    parts = np.empty(4)
    parts[:] = x
    return np.sort(parts)[0] + parts.sum()
print(out[0], of_the_user(1.0))
"""


def test_functions_that_kernels_share_with_others(house):
    """np.empty is compiled once a process: as a part of a kernel, and then taken by a function that is none."""
    house.write("library", LIBRARY_FUNCTIONS)
    for _ in range(2):  # compiled, and from the cache
        assert house.run(CALL_LIBRARY_FUNCTIONS)[0] == ["5.0 5.0"]


def test_device_function_is_for_kernels_alone(house):
    """From Python there is no machine code to call, before and after a kernel has compiled it."""
    code = """if True:
    from fastconv.kernels.value import value
    for _ in range(2):
        try:
            value()
        except TypeError as error:
            print(error)
        from fastconv.kernels.fill import fill
        import numpy as np
        fill.serial(np.zeros(3))
    """
    message = "value is a part of kernels, which Python cannot call; its .py_func is the function as it was written"
    assert house.run(code)[0] == [message] * 2


def test_many_processes_at_once(house):
    """No half-written entry is ever read, and no temporary file is left."""
    processes = [house.start() for _ in range(3)]
    for process in processes:
        out, errors = process.communicate(timeout=LIMIT)
        assert (process.returncode, errors) == (0, "")
        assert out.startswith("[1.0, 1.0, 1.0] ")
    assert [path.suffix for path in house.cache.rglob("*") if path.is_file()] == [".bin"]
    assert house.run() == (result(1.0, 1), "")


def test_code_of_other_sources_is_forgotten(house):
    house.run()
    old = house.entries
    month = time.time() - (jit.STALE_AFTER_DAYS + 1) * 86400
    os.utime(old[0].parent, (month, month))
    house.write("value", VALUE.format(value=3))
    house.run()
    assert len(house.entries) == 1
    assert not set(old) & set(house.entries)


def test_report(house):
    house.run()
    report = "from fastconv.kernels.jit import cache_report; print(*cache_report(), sep='|')"
    (line,), _ = house.run(report)
    assert line == f"{house.cache / 'kernels'}|1|{sum(entry.stat().st_size for entry in house.entries)}"


def test_folders_in_order(tmp_path, monkeypatch):
    """FASTCONV_CACHE_DIR, XDG_CACHE_HOME, the home folder: the first that can be written to."""
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    jit._cache_folder.cache_clear()
    assert jit._cache_folder(str(tmp_path / "own"), str(tmp_path / "xdg")) == tmp_path / "own" / "kernels"
    assert jit._cache_folder(str(blocked), str(tmp_path / "xdg")) == tmp_path / "xdg" / "fastconv" / "kernels"
    assert jit._cache_folder(None, str(blocked)) == tmp_path / "home" / ".cache" / "fastconv" / "kernels"
    assert jit._cache_folder("", None) == tmp_path / "home" / ".cache" / "fastconv" / "kernels"
    jit._cache_folder.cache_clear()


def test_names_are_unique():
    """An entry is found by its kernel's name and flags: two closures of one source must have different names."""
    for module in pkgutil.iter_modules(fastconv.kernels.__path__):
        importlib.import_module(f"fastconv.kernels.{module.name}")
    from fastconv.kernels import pool, pool_average
    for layout, stride in ("NCHW", 1), ("NCHW", 2), ("NCHW", 3), ("NCHW", 5), ("NHWC", 1):
        for window, size in itertools.product((None, (2, 2), (3, 2)), (32, 64) if layout == "NCHW" else (64,)):
            pool.max_pool(layout, stride, window, size)
        for disjoint in False, True:
            pool.max_pool_gradient(layout, stride, disjoint, None)
        pool.max_pool_gradient(layout, stride, False, (3, stride))
        for size in 32, 64:
            pool.max_pool_gradient_pixels((stride, 2), size)
            pool.max_pool_gradient_planes((3, stride), size)
        for height in 2, 3:
            pool.max_pool_planes(stride, (height, stride), 64)
            pool_average.average_planes_regular(stride, 3, height)
            pool_average.average_planes_regular_gradient(stride, 3, height)
    known: dict[tuple[str, str], object] = {}
    kernels = [found for found in gc.get_objects() if type(found) is jit.Kernel]  # isinstance wakes dead proxies
    assert len(kernels) > 20
    for kernel in kernels:
        for twin in {kernel.serial, kernel.parallel}:
            cache = twin._cache
            assert known.setdefault((cache._name, cache._options), twin) is twin, f"two kernels are named {kernel.name}"


def test_twin():
    """Short work runs serially, and so does everything with one thread."""
    from fastconv.kernels.conv_bias import bias_gradient_nchw as kernel
    assert kernel.twin(jit.WORTH_SPLITTING) is kernel.serial
    assert kernel.twin(jit.WORTH_SPLITTING + 1) is kernel
    assert kernel.serial is not kernel.parallel
    assert repr(kernel) == "<kernel conv_bias.bias_gradient_nchw>"
    assert jit.kernel(lambda out: None, serial_only=True).parallel.targetoptions["parallel"] is False
    assert kernel.parallel.targetoptions["parallel"] is True


def test_kernel_in_a_jitted_function():
    """There it is its parallel twin."""
    from fastconv.kernels.conv_bias import CHUNKS, bias_gradient_nchw

    @numba.njit
    def total(dy):
        db = np.empty(dy.shape[1], dy.dtype)
        bias_gradient_nchw(db, dy, np.zeros((CHUNKS, db.size)))
        return db.sum()

    assert total(np.ones((2, 3, 5), np.float32)) == 30


def test_loop_that_cannot_run_in_parallel_is_an_error():
    """An exception inside prange makes the loop serial; the settings of pytest turn that warning into an error."""
    @jit.kernel
    def raising(out):
        for i in numba.prange(out.size):
            if out[i] > 0:
                raise ValueError
            out[i] = 1

    with pytest.raises(NumbaPerformanceWarning):
        raising.parallel(np.zeros(3))
