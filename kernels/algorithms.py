"""The ordered list of algorithms for each direction of a convolution, best first, and the choice among them.

An algorithm answers ``supports(problem, layout, dtype)`` with None or the reason why not, and makes a *runner*: a
plan with its buffers, called with arrays that are already checked.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import conv_direct, conv_filter, conv_pixels, correlation
from .jit import launch
from .scratch import scratch

MULTIPLY_ADDS_A_MICROSECOND = 30_000  # of one core, about: tells small problems from large
DIRECTIONS = ("forward", "input_gradient", "filter_gradient")


class Algorithm(NamedTuple):
    """One way to run one direction."""

    name: str
    supports: Callable
    make_runner: Callable
    exact: bool = True  # on integers: no rounding but the products' and sums' own


class Runner:
    """A plan ready to run, ``run(*arrays)``: which twin, and how much scratch, are settled once."""

    def __init__(self, plan, kernel, dtype, multiply_adds):
        self.plan = plan
        self.kernel = kernel
        self.twin = kernel.twin(multiply_adds / MULTIPLY_ADDS_A_MICROSECOND)
        self.dtype = np.dtype(dtype)

    def __call__(self, *arrays):
        workers = self.workers
        buffer = scratch(self.plan.scratch_elements(workers), self.dtype)
        self.twin(*arrays, *self.plan.arguments(buffer, workers))

    @property
    def workers(self):
        """Threads that get a share of the work."""
        return min(launch.threads, self.plan.tasks) if self.twin is self.kernel else 1

    @property
    def extra_bytes(self):
        """Scratch beside the tensors, for the present number of threads."""
        return self.plan.scratch_elements(self.workers) * self.dtype.itemsize

    def arguments(self, workers=1):
        """What ``kernel`` takes after its arrays, with scratch of its own: for your own jitted functions."""
        return self.plan.arguments(np.empty(self.plan.scratch_elements(workers), self.dtype), workers)


class CorrelationRunner(Runner):
    """``run(y, x, w, bias)``: forward, or the input gradient with y = dx, x = dy; ``bias`` is (K,) or None."""

    def __init__(self, module, sum_, multiply_adds):
        super().__init__(module.plan(sum_), module.correlate, sum_.dtype, multiply_adds)
        self.no_bias = np.empty(0, self.dtype)

    def __call__(self, y, x, w, bias=None):
        super().__call__(y, x, w, self.no_bias if bias is None else bias)


class FilterRunner(Runner):
    """``run(dw, x, dy)``."""

    def __init__(self, problem, layout, dtype):
        super().__init__(conv_filter.plan(problem, layout, dtype), conv_filter.filter_gradient, dtype,
                         problem.multiply_adds)


def _always(problem, layout, dtype):
    return None


def _correlation(name, module, direction, exact=True):
    """``module`` as an algorithm for one of the directions that are correlations."""
    describe = getattr(correlation, direction)

    def supports(problem, layout, dtype):
        return module.supports(describe(problem, layout, dtype))

    def make_runner(problem, layout, dtype):
        return CorrelationRunner(module, describe(problem, layout, dtype), problem.multiply_adds)

    return Algorithm(name, supports, make_runner, exact)


ALGORITHMS = {
    "forward": (_correlation("direct_pixels", conv_pixels, "forward"),
                _correlation("direct", conv_direct, "forward")),
    "input_gradient": (_correlation("direct_pixels", conv_pixels, "input_gradient"),
                       _correlation("direct", conv_direct, "input_gradient")),
    "filter_gradient": (Algorithm("direct", _always, FilterRunner),),
}


def names():
    """Names that ``algorithm=`` takes, beside "auto"."""
    return tuple(dict.fromkeys(a.name for listed in ALGORITHMS.values() for a in listed))


def choose(direction, problem, layout, dtype, name="auto"):
    """The first algorithm that takes the problem, or the named one."""
    known = names()
    if name != "auto" and name not in known:
        raise ValueError(f"algorithm must be one of {', '.join(map(repr, ('auto', *known)))}, got {name!r}")
    for algorithm in ALGORITHMS[direction]:
        if name in ("auto", algorithm.name):
            reason = algorithm.supports(problem, layout, dtype)
            if reason is None:
                return algorithm
            if name == algorithm.name:
                raise ValueError(f"algorithm {name!r} cannot run {direction.replace('_', ' ')} of {problem}: {reason}")
    raise ValueError(f"algorithm {name!r} has no {direction.replace('_', ' ')}")


@functools.lru_cache(maxsize=1024)
def runner(direction, problem, layout, dtype, name="auto"):
    """The cached runner for a problem."""
    return choose(direction, problem, layout, dtype, name).make_runner(problem, layout, dtype)


def explain(problem, layout="NCHW", dtype="float32"):
    """For each direction: ``[(name, None or the reason why not)]`` in order of preference."""
    return {direction: [(a.name, a.supports(problem, layout, dtype)) for a in listed]
            for direction, listed in ALGORITHMS.items()}
