"""Hold every kernel against the plain-loop reference, in both layouts and types.

These are convolution and its gradients by every algorithm, transposed convolution, matrix product, pools,
activations, batch norm and losses, forward and backward. Without arguments: on a packaged list of small problems.
The status is 1 where a result is out of its bound.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import fastconv
from fastconv import problems
from fastconv.compiling import watch_compiling
from fastconv.kernels.plan import ConvProblem
from fastconv.terminal import show, steps
from fastconv.verify import Check, reference_seconds, verify

HEADERS = ("operation", "problem", "layout, type", "largest error", "bound", "checks", "verdict")
TEXT_COLUMNS = 3
LONG_SECONDS = 20
SHOWN_FAILURES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to verify, and how to say it."""
    parser.add_argument("--problem", metavar="PROBLEM", action="append", default=[],
                        help="instead of the packaged list: a name (digits.conv2), a string (n2c3h8w8k4r3s3u2p1) or a "
                             ".txt file of such lines; may be given several times")
    parser.add_argument("--all", action="store_true",
                        help="a row for each check; else one for each operation, with its worst check")
    parser.add_argument("--threads", type=int, help=f"(default: {fastconv.get_num_threads()})")
    parser.add_argument("--json", action="store_true", help="print every check as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Verify, print, and return 1 where a kernel is wrong."""
    if arguments.threads is not None:
        fastconv.set_num_threads(arguments.threads)
    wanted = problems.find(arguments.problem) if arguments.problem else problems.packaged("verify")
    loops = sum(map(reference_seconds, wanted.values()))
    if loops > LONG_SECONDS:
        print(f"The plain loops take about {loops:,.0f} s on this.", file=sys.stderr)
    started = time.perf_counter()
    with watch_compiling() as compiling:
        checks = _checks(wanted)
    seconds = time.perf_counter() - started
    failed = [check for check in checks if not check.difference.passed]
    if arguments.json:
        record = {"checks": [_record(check) for check in checks], "failed": len(failed), "seconds": seconds}
        print(json.dumps(record, indent=2))
        return 1 if failed else 0
    groups = [[check] for check in checks] if arguments.all else _by_operation(checks)
    show(HEADERS, [_row(group) for group in groups], left=TEXT_COLUMNS)
    print()
    for check in failed[:SHOWN_FAILURES]:
        print(_failure(check))
    print(_summary(checks, failed, len(wanted)) + f" ({seconds:.1f} s, of these {compiling.seconds:.1f} s compiling; "
                                                  f"{fastconv.get_num_threads()} threads)")
    return 1 if failed else 0


def _checks(wanted: dict[str, ConvProblem]) -> list[Check]:
    checks: list[Check] = []
    with steps(len(wanted)) as advance:
        for name, problem in wanted.items():
            advance(name)
            checks += verify({name: problem})
    return checks


def _by_operation(checks: Sequence[Check]) -> list[list[Check]]:
    groups: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.operation, check.algorithm), []).append(check)
    return list(groups.values())


def _row(group: Sequence[Check]) -> tuple[str, ...]:
    """One row for checks of one operation: the worst of them."""
    worst = max(group, key=lambda check: check.difference.severity)
    difference = worst.difference
    problems = len({check.problem for check in group})
    return (
        _operation(worst),
        worst.problem if problems == 1 or difference.error else f"all {problems}",
        _where(worst),
        f"{difference.error:.2g}",
        f"{difference.bound:.2g}",
        str(len(group)) if len(group) > 1 else "",
        "ok" if difference.passed else "FAILED",
    )


def _operation(check: Check) -> str:
    return f"{check.operation} ({check.algorithm})" if check.algorithm else check.operation


def _where(check: Check) -> str:
    return ", ".join(filter(None, (check.layout, check.dtype)))


def _failure(check: Check) -> str:
    difference = check.difference
    what = difference.message or f"off by {difference.error:.3g}, at most {difference.bound:.3g} is right"
    return f"FAILED: {_operation(check)} on {check.problem}, {_where(check)}: {what}"


def _summary(checks: Sequence[Check], failed: Sequence[Check], count: int) -> str:
    operations = len({check.operation for check in checks})
    done = f"{len(checks):,} checks of {operations} operations on {count} problem{'s' * (count != 1)}"
    if failed:
        wrong = sorted({check.operation for check in failed})
        return f"{len(failed):,} of {done} FAILED: {', '.join(wrong)}."
    exact = sum(check.difference.bound == 0 for check in checks)
    return f"{done}: all right, {exact:,} of them to the last bit and the others within their bounds."


def _record(check: Check) -> dict[str, Any]:
    """As JSON, which has no infinity: null instead."""
    difference = check.difference
    return {
        **{name: value for name, value in vars(check).items() if name != "difference"},
        **dataclasses.asdict(difference),
        "error": difference.error if math.isfinite(difference.error) else None,
        "passed": difference.passed,
    }
