"""Compare the speed of fastconv with other libraries and with plain NumPy, on this machine.

Every path runs in a process of its own, proves its result against the matrix form, warms up, and is timed in
turns with the others. Without arguments: convolutions and max-pools of the digits and CIFAR-10 networks. Suite
overhead also times a process from its start to its first training step; scaling compares one thread with all, and
with a model of many cores, on its problems or on those given.

A PROBLEM is a name (digits.conv2), a string such as n64c32h13w13k64r3s3, or a .txt file of such lines:
n batch, c channels in, h rows, w columns, k channels out, r and s kernel rows and columns, then where needed
u stride, p padding, d dilation, g groups.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastconv
from fastconv import problems
from fastconv.bench import scaling, startup
from fastconv.bench.case import CONVOLUTIONS, OPERATIONS
from fastconv.bench.contenders import CONTENDERS, AnyCase, installed
from fastconv.bench.results import HEADERS, OURS, TEXT_COLUMNS, Results
from fastconv.bench.scaling import Scaling
from fastconv.bench.session import Session
from fastconv.bench.suites import SUITES, cases, suite
from fastconv.extras import check_installed
from fastconv.terminal import show, steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, how long, and where to put it."""
    add = parser.add_argument
    add("problems", metavar="PROBLEM", nargs="*", help="(default: those of the suite)")
    add("--suite", choices=SUITES, default="networks", help="where no problem is given (default: networks)")
    add("--ops", metavar="LIST", type=_list_of(OPERATIONS), default=[],
        help=f"some of {','.join(OPERATIONS)} (default: those of the suite; for given problems the first three)")
    add("--peers", metavar="LIST", type=_list_of([path for path in CONTENDERS if CONTENDERS[path].packages]),
        help="compare jit with these alone: short for --paths jit,LIST")
    add("--paths", metavar="LIST", type=_list_of(CONTENDERS), default=installed(),
        help=f"some of {','.join(CONTENDERS)} (default: those installed)")
    add("--layout", metavar="LIST", type=_list_of(("NCHW", "NHWC")), default=["NCHW"], help="(default: NCHW)")
    add("--dtype", metavar="LIST", type=_list_of(("float32", "float64")), default=["float32"],
        help="(default: float32)")
    add("--threads", type=int, default=fastconv.get_num_threads(),
        help=f"for every path (default: {fastconv.get_num_threads()})")
    add("--rounds", type=int, default=5, help="turns that each path takes (default: 5)")
    add("--seconds", type=float, default=0.1, help="length of a turn (default: 0.1)")
    add("--json", metavar="FILE", type=Path, help="write everything measured; - prints it instead of tables")
    add("--plot", metavar="FILE", type=Path, help="write a chart, as PNG")


def _list_of(known: object) -> Callable[[str], list[str]]:
    allowed = list(known)  # type: ignore[call-overload]

    def parse(text: str) -> list[str]:
        words = text.split(",")
        unknown = [word for word in words if word not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(allowed)}")
        return words

    return parse


def run(arguments: argparse.Namespace) -> int:
    """Measure, then print tables and what they come to."""
    if arguments.plot:
        check_installed("matplotlib")
    if min(arguments.threads, arguments.rounds) < 1 or arguments.seconds <= 0:
        raise ValueError("threads and rounds must be positive integers and seconds a positive number, got "
                         f"{arguments.threads}, {arguments.rounds}, {arguments.seconds}")
    if arguments.peers:
        arguments.paths = [OURS, *arguments.peers]
    wanted, named = _cases(arguments), "" if arguments.problems else arguments.suite
    if arguments.suite == "scaling":
        return _scaling(wanted, arguments)
    results = _measure(wanted, arguments)
    found = results.as_json()
    if named == "overhead":
        found["startup_seconds"] = startup.measure(arguments.threads)
    if arguments.json != Path("-"):
        _print(results)
        if named == "overhead":
            print(startup.sentence(found["startup_seconds"]))
    _write(found, arguments.json)
    if arguments.plot:
        from fastconv import plot
        from fastconv.bench.chart import chart

        plot.save(chart(results), arguments.plot)
    return 0


def _scaling(wanted: list[AnyCase], arguments: argparse.Namespace) -> int:
    """Our path alone, on one thread and on all."""
    if arguments.threads == 1:
        raise ValueError("suite scaling compares one thread with several: threads must be at least 2, got 1")
    arguments.paths, threads = [OURS], arguments.threads
    arguments.threads = 1
    one = _measure(wanted, arguments)
    arguments.threads = threads
    found = Scaling(one, _measure(wanted, arguments))
    if arguments.json != Path("-"):
        show(found.headers(), found.rows(), f"fastconv on {threads} threads and on one", scaling.TEXT_COLUMNS)
        print("\n" + "\n".join(found.summary()))
    _write(found.as_json(), arguments.json)
    return 0


def _write(found: dict[str, Any], file: Path | None) -> None:
    if file == Path("-"):
        print(json.dumps(found, indent=2))
    elif file:
        file.write_text(json.dumps(found, indent=2) + "\n")


def _cases(arguments: argparse.Namespace) -> list[AnyCase]:
    if arguments.problems:
        listed = problems.find(arguments.problems)
        return list(cases(listed, arguments.ops or CONVOLUTIONS, arguments.layout, arguments.dtype))
    found = suite(arguments.suite, arguments.ops, arguments.layout, arguments.dtype)
    if not found:
        raise ValueError(f"suite {arguments.suite} has no {', '.join(arguments.ops)}")
    return found


def _measure(wanted: list[AnyCase], arguments: argparse.Namespace) -> Results:
    turns = len(wanted) * len(arguments.paths) * arguments.rounds
    measured = []
    with steps(turns) as advance, Session(arguments.paths, arguments.threads) as session:
        for case in wanted:
            def on_turn(path: str, case: AnyCase = case) -> None:
                advance(f"{case.op} {case.name} {case.layout} {path}")

            measured += session.measure(case, None, arguments.rounds, arguments.seconds, on_turn)
        return Results.of(session, measured)


def _print(results: Results) -> None:
    for (op, layout, dtype), found in results.groups().items():
        show(HEADERS, [results.row(m) for m in found], f"{op}, {layout}, {dtype}, {results.threads} threads",
             TEXT_COLUMNS)
        print()
    print("\n".join(results.summary()))
