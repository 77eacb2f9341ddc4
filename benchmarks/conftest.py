"""Speed with pytest-benchmark: ``pytest benchmarks --benchmark-only``.

Every path is measured in a process of its own, which proves its result first and warms up; all paths of a case that
were selected take turns. pytest-benchmark is given the times of single calls that these processes measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import fastconv
from fastconv import info
from fastconv.bench.contenders import CONTENDERS, AnyCase, installed
from fastconv.bench.session import Measurement, Session
from fastconv.bench.suites import suite

ROUNDS = 5
SECONDS = 0.1  # of a round
MOST_CALLS = 500  # that are handed to pytest-benchmark

_now = 0.0


def clock() -> float:
    """The timer of pytest-benchmark: it advances by what the processes measured."""
    return _now


def _advance(seconds: float) -> None:
    global _now
    _now += seconds


def contest(name: str, operations: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Parametrize a benchmark over a suite's cases of these operations, and the paths that can run them."""
    found = [
        pytest.param(case, path, id=f"{case.for_path(path)}-path={path}")
        for case in suite(name, operations)
        for path in installed()
        if not CONTENDERS[path].why_not(case)
    ]

    def decorate(function: Any) -> Any:
        return pytest.mark.benchmark(timer=clock)(pytest.mark.parametrize(("case", "path"), found)(function))

    return decorate


class Contests:
    """Measures a case once, by all paths selected for it."""

    def __init__(self, items: Sequence[pytest.Item]) -> None:
        self.selected: dict[AnyCase, list[str]] = {}
        for item in items:
            parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
            if "path" in parameters:
                self.selected.setdefault(parameters["case"], []).append(parameters["path"])
        paths = dict.fromkeys(path for listed in self.selected.values() for path in listed)
        self.session = Session(list(paths), fastconv.get_num_threads())
        self.found: dict[AnyCase, dict[str, Measurement]] = {}

    def measurement(self, case: AnyCase, path: str) -> Measurement:
        """Of one path, and all others of the case the first time."""
        if case not in self.found:
            measured = self.session.measure(case, self.selected[case], ROUNDS, SECONDS)
            self.found[case] = {m.path: m for m in measured}
        return self.found[case][path]


@pytest.fixture(scope="session")
def contests(request: pytest.FixtureRequest) -> Iterator[Contests]:
    """The workers, started once."""
    found = Contests(request.session.items)
    with found.session:
        yield found


@pytest.fixture
def report(benchmark: Any, contests: Contests) -> Callable[[AnyCase, str], None]:
    """Measure a path and hand its times and circumstances to pytest-benchmark."""

    def record(case: AnyCase, path: str) -> None:
        m = contests.measurement(case, path)
        calls = [seconds for times in m.rounds for seconds in times]
        calls = calls[:: -(-len(calls) // MOST_CALLS)]
        following = iter(calls)
        benchmark.group = str(case)
        benchmark.extra_info.update(_circumstances(m, contests.session))
        benchmark.pedantic(_advance, setup=lambda: ((next(following),), {}), rounds=len(calls))

    return record


def _circumstances(m: Measurement, session: Session) -> dict[str, Any]:
    whole, images = m.case.images, m.ran.images
    return {
        "problem": m.ran.text,
        **({"note": f"{images} of {whole} images: the whole batch would take too long"} if images < whole else {}),
        "median_of_rounds": m.seconds,
        "gflops": m.gflops,
        "gbytes": m.gbytes,
        "peak_gflops": session.peak_gflops(m.case.dtype),
        "peak_gbytes": session.peak_gbytes,
        "extra_bytes": m.extra_bytes,
        "im2col_bytes": m.ran.im2col_bytes,
        "largest_error": m.error,
        "error_bound": m.bound,
        "threads": session.threads,
        "machine": info.machine(),
        "versions": info.versions(),
        "commit": info.commit(),
    }
