"""What importing costs and needs: NumPy and Numba alone, no compilation, no threads."""

from __future__ import annotations

import ast
import importlib.metadata
import pkgutil
import sys
from pathlib import Path

import pytest

import fastconv
import fastconv.kernels
from tests.processes import python

PACKAGE = Path(fastconv.__file__).parent
KERNELS = Path(fastconv.kernels.__file__).parent
OPTIONAL = ("torch", "matplotlib", "rich", "safetensors", "PIL", "mlxtend", "pandas", "sklearn", "onnx",
            "onnxruntime", "mpi4py", "pytest", "hypothesis")
CORE = ("fastconv", "fastconv.functional", "fastconv.grad", "fastconv.nn", "fastconv.optim", "fastconv.init",
        "fastconv.analysis", "fastconv.reference", "fastconv.reference.naive", "fastconv.reference.im2col")


def imported(path: Path) -> set[str]:
    """Top-level names that a module imports anywhere; relative imports count as fastconv's."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level or (node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("module", CORE)
def test_alone(module):
    """Each module is imported by itself, brings nothing optional, and neither compiles nor starts threads."""
    done = python(f"""
        import gc
        import sys
        import {module}
        jit = sys.modules.get("fastconv.kernels.jit")
        kernels = [found for found in gc.get_objects() if jit and isinstance(found, jit.Kernel)]
        compiled = [kernel.name for kernel in kernels if kernel.serial.signatures or kernel.parallel.signatures]
        print([name for name in {OPTIONAL} if name in sys.modules], compiled, jit and jit.launch.layer)
    """)
    assert done.stdout == "[] [] None\n"


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda path: path.name)
def test_kernels_import_nothing_of_the_layers(path):
    assert imported(path) <= {".", "numba", "numpy", "llvmlite", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", [*PACKAGE.glob("functional/*.py"), *PACKAGE.glob("grad/*.py")],
                         ids=lambda path: f"{path.parent.name}/{path.name}")
def test_functions_import_no_layers(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    assert not [node.module for node in nodes if (node.module or "").startswith(("fastconv.nn", "fastconv.train"))]


def test_public_names():
    assert all(hasattr(fastconv, name) for name in fastconv.__all__)
    assert fastconv.__version__ == importlib.metadata.version("fastconv")
    for module in ("functional", "grad", "nn"):
        found = __import__(f"fastconv.{module}", fromlist=["__all__"])
        missing = [name for name in getattr(found, "__all__", ()) if not hasattr(found, name)]
        assert not missing


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").exists()


def test_every_package_is_installed():
    """The list in pyproject.toml is written by hand."""
    import tomllib
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    listed = settings["tool"]["setuptools"]["packages"]
    found = {"fastconv", "fastconv.kernels"} | {
        module.name for module in pkgutil.walk_packages([str(PACKAGE)], "fastconv.") if module.ispkg}
    assert sorted(listed) == sorted(found)
