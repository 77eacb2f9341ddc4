"""Packages that only some commands need, imported when they do."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


class MissingExtra(ImportError):
    """A package of an optional extra is not installed; the message says how to get it."""

    def __init__(self, what: str, extra: str = "train") -> None:
        super().__init__(f"this needs {what}: pip install 'fastconv[{extra}]'")


def require(module: str, extra: str = "train") -> ModuleType:
    """The imported module, or an error that names the extra which brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtra(f"the package {error.name.partition('.')[0]}", extra) from error


def check_installed(*modules: str, extra: str = "train") -> None:
    """Refuse, without importing any, to begin where one of these is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtra(f"the packages {', '.join(missing)}", extra)
