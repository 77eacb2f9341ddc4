"""Runs a snippet in a Python process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

LIMIT = 120  # seconds: a hang is a failure


def python(code: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """The finished process; None removes a variable from its environment. Fails unless the status is zero."""
    changed = {name: value for name, value in environment.items() if value is not None}
    inherited = {name: value for name, value in os.environ.items() if name not in environment}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=inherited | changed, text=True,
                          capture_output=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr or done.returncode
    return done
