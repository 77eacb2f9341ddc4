"""What all tests share: a seeded generator each, and hypothesis that lets a kernel compile."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("fastconv", deadline=None, derandomize=True)
settings.load_profile("fastconv")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name alone."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
