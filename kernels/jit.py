"""The one jit wrapper: compile flags, the on-disk cache, and the parallel and serial twin of every kernel.

A kernel is a plain function whose outer loop is a ``numba.prange``. ``@kernel`` compiles that one body twice,
lazily: ``.parallel`` and ``.serial``. Calling the kernel picks the twin that is safe and worth launching now. Both
give the same bits, as there is no fast-math: what is computed is what is written, in the order in which it is written.
A multiply-add is called by its name (``elementary.multiply_add``), and so is a sum in vectors (``reductions.py``).

Numba's own cache keys an entry by one source file, so an edit to a helper elsewhere would leave stale code
running. The cache here is stamped with every source file of this folder and never breaks a call: whatever goes
wrong while loading or saving, the function is compiled in memory instead.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import tempfile
import threading
import time
import warnings
from pathlib import Path

import llvmlite
import numba
from numba.core import config
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.core.types import Dispatcher
from numba.extending import typeof_impl

from .libraries import DeviceFunction, compiling

STALE_AFTER_DAYS = 30
WORTH_SPLITTING = 15  # microseconds of work: a launch costs 2, its imbalance more


def cache_folder():
    """The writable folder for compiled kernels, or None where there is none."""
    return _cache_folder(os.environ.get("FASTCONV_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME"))


@functools.lru_cache(maxsize=8)
def _cache_folder(own, xdg):
    home = os.path.expanduser("~")
    candidates = (own, xdg and os.path.join(xdg, "fastconv"), os.path.join(home, ".cache", "fastconv"))
    for candidate in filter(None, candidates):
        try:
            folder = Path(candidate) / "kernels"
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
        except OSError:
            continue
    return None


def source_stamp(folder):
    """Hash of all sources in a folder of kernels, the compilers' versions and the settings that change machine code."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    settings = (config.OPT, config.BOUNDSCHECK, config.DEBUGINFO_DEFAULT, config.LOOP_VECTORIZE,
                config.SLP_VECTORIZE, config.ENABLE_AVX)
    versions = (numba.__version__, llvmlite.__version__, platform.python_version())
    digest.update(repr((versions, settings)).encode())
    return digest.hexdigest()[:20]


STAMP = source_stamp(Path(__file__).parent)  # at import: what is compiled later is what is imported now


class SourceCache(_Cache):
    """On-disk cache of one function: a file for each signature, options, CPU and source stamp."""

    def __init__(self, name, options):
        self._name = name
        self._options = options
        self.hits = 0

    @property
    def cache_path(self):
        folder = cache_folder()
        return str(folder / STAMP) if folder else None

    def enable(self):
        pass

    disable = flush = enable

    def _path(self, signature, codegen):
        if self.cache_path is None:
            return None
        key = repr((self._name, self._options, str(signature), codegen.magic_tuple()))
        return Path(self.cache_path) / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.bin"

    def load_overload(self, signature, target_context):
        target_context.refresh()
        path = self._path(signature, target_context.codegen())
        try:
            payload = pickle.loads(path.read_bytes()) if path and path.exists() else None
            if payload is None:
                return None
            result = CompileResult._rebuild(target_context, *payload)
            self.hits += 1
            return result
        except Exception as error:  # a truncated or foreign file must never break a call
            warnings.warn(f"fastconv: recompiling {self._name}, its cached code could not be read: {error!r}",
                          RuntimeWarning, stacklevel=2)
            return None

    def save_overload(self, signature, compiled):
        path = self._path(signature, compiled.codegen)
        if path is None:
            return
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            if not path.parent.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                _remove_stale(path.parent)
            temporary.write_bytes(dumps(compiled._reduce()))
            os.replace(temporary, path)
        except Exception as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            warnings.warn(f"fastconv: {self._name} was compiled but could not be cached: {error!r}",
                          RuntimeWarning, stacklevel=2)


def _remove_stale(current):
    """Forget code of sources that nobody has run for a month."""
    for folder in current.parent.iterdir():
        if folder != current and time.time() - folder.stat().st_mtime > STALE_AFTER_DAYS * 86400:
            for file in folder.glob("*.bin"):
                file.unlink(missing_ok=True)


class _Launch:
    """What decides between the twins; fastconv.threads sets it."""

    threads = 1
    layer = None  # Numba's threading layer, once it has started
    serial_only = False  # a forked child of a process whose OpenMP pool has started
    lock = None  # a lock, where the threading layer cannot take two callers at once
    applied = threading.local()  # numba.set_num_threads is per thread and costs more than this check

    def prepare(self):
        """Called before the first launch of a process: settles thread count and layer."""


launch = _Launch()


class Kernel:
    """A compiled loop: ``.parallel``, ``.serial``, and a call that picks one."""

    def __init__(self, function, serial_only, options):
        functools.update_wrapper(self, function)
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self.serial = self._jit(function, parallel=False, **options)
        self.parallel = self.serial if serial_only else self._jit(function, parallel=True, **options)

    def _jit(self, function, parallel, **options):
        options = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, **options, "parallel": parallel}
        dispatcher = numba.njit(**options)(function)
        dispatcher.compile = compiling(function.__qualname__)(dispatcher.compile)
        dispatcher._cache = SourceCache(self.name, repr(sorted(options.items())))
        return dispatcher

    def __call__(self, *args):
        if launch.threads == 1 or launch.serial_only:
            return self.serial(*args)
        if getattr(launch.applied, "threads", 0) != launch.threads:
            launch.prepare()
        if launch.lock is None:
            return self.parallel(*args)
        with launch.lock:
            return self.parallel(*args)

    def twin(self, microseconds):
        """The twin to launch for work of about that length on one core: splitting costs some itself."""
        return self if microseconds > WORTH_SPLITTING else self.serial

    def __repr__(self):
        return f"<kernel {self.name}>"


@typeof_impl.register(Kernel)
def _typeof_kernel(value, context):
    """Inside a user's own ``@njit`` function a kernel is its parallel twin."""
    return Dispatcher(value.parallel)


def kernel(function=None, *, serial_only=False, **options):
    """Decorate a loop over ``numba.prange`` as a :class:`Kernel`; options go to ``numba.njit``.

    Validate everything in Python before a call: an exception raised inside ``prange`` is lost.
    """
    if function is None:
        return lambda decorated: Kernel(decorated, serial_only, options)
    return Kernel(function, serial_only, options)


def device_function(function=None, *, allocates=False, **options):
    """A helper inlined into kernels; it is compiled, and cached, as a part of them.

    It borrows its arrays: the kernel holds them, and to count references again in each call would have all cores
    write to one cache line, for up to a quarter of a kernel's time. ``allocates``: it makes arrays, or returns one.
    """
    if function is None:
        return lambda decorated: device_function(decorated, allocates=allocates, **options)
    return DeviceFunction(function, **{"nogil": True, "error_model": "numpy", "_nrt": allocates, **options})


def cache_report():
    """Folder, number of files and bytes of the current cache: ``(Path | None, int, int)``."""
    folder = cache_folder()
    files = list(folder.rglob("*.bin")) if folder else []
    return folder, len(files), sum(file.stat().st_size for file in files)
