"""The algorithms for each direction of a convolution, and the choice among them: the least estimate of cycles.

An algorithm answers ``supports(problem, layout, dtype)`` with None or the reason why not, estimates its ``cycles`` on
one core, and makes a *runner*: a plan with its buffers, called with arrays that are already checked.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import (
    conv_depthwise,
    conv_depthwise_filter,
    conv_direct,
    conv_filter,
    conv_filter_pixels,
    conv_grouped_channels,
    conv_grouped_channels_filter,
    conv_pixels,
    conv_pointwise,
    conv_pooled,
    conv_taps,
    conv_winograd,
    conv_winograd_adjoint,
    conv_winograd_filter,
    correlation,
)
from .jit import launch
from .scratch import scratch

MULTIPLY_ADDS_A_MICROSECOND = 30_000  # of one core, about: tells small problems from large
ROUNDING_COST = 1.08  # times as quick as a direct sum Winograd must be, or its rounding is not worth it
DIRECTIONS = ("forward", "input_gradient", "filter_gradient")


class Algorithm(NamedTuple):
    """One way to run one direction. Names begin with the family: direct or winograd."""

    name: str
    supports: Callable
    cycles: Callable
    make_runner: Callable

    @property
    def family(self):
        return self.name.partition("_")[0]

    @property
    def exact(self):
        """On integers; Winograd's transforms round."""
        return self.family == "direct"


class _Settings:
    winograd = os.environ.get("FASTCONV_WINOGRAD", "1") != "0"


def set_winograd(allowed):
    """Whether "auto" may choose Winograd, whose error is larger than that of the direct sum (a few 1e-6)."""
    _Settings.winograd = bool(allowed)
    runner.cache_clear()
    pooled_runner.cache_clear()


def winograd_allowed():
    """Whether "auto" may choose Winograd."""
    return _Settings.winograd


class Runner:
    """A plan ready to run, ``run(*arrays)``: which twin, and how much scratch, are settled once."""

    def __init__(self, plan, kernel, dtype, multiply_adds):
        self.plan = plan
        self.kernel = kernel
        self.twin = kernel.twin(multiply_adds / MULTIPLY_ADDS_A_MICROSECOND)
        self.dtype = np.dtype(dtype)
        self._bound = 0, 0, (), ()  # threads; elements of scratch, and what kernels take before and after it

    def __call__(self, *arrays):
        threads, elements, before, after = self._bound
        if threads != launch.threads:
            threads, workers = launch.threads, self.workers  # asked once: another thread may change it meanwhile
            elements, arguments = self.plan.scratch_elements(workers), self.plan.arguments(None, workers)
            before, after = arguments[:3], arguments[4:]
            self._bound = threads, elements, before, after
        self.twin(*arrays, *before, scratch(elements, self.dtype), *after)

    @property
    def workers(self):
        """Threads that get a share of the work."""
        return min(launch.threads, self.plan.tasks) if self.twin is self.kernel else 1

    @property
    def extra_bytes(self):
        """Scratch beside the tensors, for the present number of threads."""
        return self.plan.scratch_elements(self.workers) * self.dtype.itemsize

    def keep_filters(self, memory, first, workers_start, arrays, relu=False):
        """``(kernel, arguments)`` of a call whose packed filters stay in ``memory``; it is run once, to pack them.

        They lie from element ``first`` on; scratch of the workers, which calls may share, from ``workers_start`` on.
        ``arrays`` are the kernel's own; ``relu`` of the results, for a plan that rectifies.
        """
        place = memory[first:], workers_start - first, self.plan.worker_elements, self.workers
        self.twin(*arrays, self.plan.geometry, self.plan.table, self.plan.lists, *place)
        return self.twin, (*arrays, self.plan.keeping(relu).geometry, self.plan.table, self.plan.lists, *place)

    def arguments(self, workers=1):
        """What ``kernel`` takes after its arrays, with scratch of its own: for your own jitted functions."""
        return self.plan.arguments(np.empty(self.plan.scratch_elements(workers), self.dtype), workers)


class CorrelationRunner(Runner):
    """``run(y, x, w, bias)``: forward, or the input gradient with y = dx, x = dy; ``bias`` is (K,) or None."""

    def __init__(self, plan, kernel, dtype, multiply_adds):
        super().__init__(plan, kernel, dtype, multiply_adds)
        self.no_bias = np.empty(0, self.dtype)

    def __call__(self, y, x, w, bias=None):
        super().__call__(y, x, w, self.no_bias if bias is None else bias)


def _correlation(name, module, direction):
    """``module`` as an algorithm for one of the directions that are correlations."""
    describe = getattr(correlation, direction)

    def supports(problem, layout, dtype):
        return module.supports(describe(problem, layout, dtype))

    def cycles(problem, layout, dtype):
        return module.cycles(describe(problem, layout, dtype))

    def make_runner(problem, layout, dtype):
        found = module.plan(describe(problem, layout, dtype))
        return CorrelationRunner(found, module.correlate, dtype, problem.multiply_adds)

    return Algorithm(name, supports, cycles, make_runner)


def _adjoint(name, module):
    """``module`` as an algorithm for the input gradient that is planned by the forward convolution's sizes."""
    def make_runner(problem, layout, dtype):
        found = module.plan(problem, layout, dtype)
        return CorrelationRunner(found, module.correlate, dtype, problem.multiply_adds)

    return Algorithm(name, module.supports, module.cycles, make_runner)


def _filter(name, module):
    """``module`` as an algorithm for the filter gradient, ``run(dw, x, dy)``."""
    def make_runner(problem, layout, dtype):
        return Runner(module.plan(problem, layout, dtype), module.filter_gradient, dtype, problem.multiply_adds)

    return Algorithm(name, module.supports, module.cycles, make_runner)


_CORRELATIONS = (("winograd", conv_winograd), ("direct_depthwise", conv_depthwise),
                 ("direct_grouped_channels", conv_grouped_channels), ("direct_taps", conv_taps),
                 ("direct_pointwise", conv_pointwise), ("direct_pixels", conv_pixels), ("direct_channels", conv_direct))
ALGORITHMS = {
    "forward": tuple(_correlation(name, module, "forward") for name, module in _CORRELATIONS),
    "input_gradient": (*(_correlation(name, module, "input_gradient") for name, module in _CORRELATIONS),
                       _adjoint("winograd_adjoint", conv_winograd_adjoint)),
    "filter_gradient": (_filter("winograd", conv_winograd_filter), _filter("direct_depthwise", conv_depthwise_filter),
                        _filter("direct_grouped_channels", conv_grouped_channels_filter),
                        _filter("direct_pixels", conv_filter_pixels), _filter("direct_channels", conv_filter)),
}


_PLANNED = ALGORITHMS | {"inference": tuple(_correlation(name, module, "inference") for name, module in _CORRELATIONS)}
_NAMES = {algorithm.name for listed in ALGORITHMS.values() for algorithm in listed}


def names():
    """What ``algorithm=`` takes: "auto", a family, or one algorithm, which a family of the same name gives way to."""
    listed = [a for algorithms in ALGORITHMS.values() for a in algorithms]
    return tuple(dict.fromkeys(["auto", *(a.family for a in listed), *(a.name for a in listed)]))


def _filled(problem):
    """An empty batch is planned as one image."""
    return problem if problem.n else dataclasses.replace(problem, n=1)


def reason_against(algorithm, problem, layout, dtype, name="auto"):
    """None where ``algorithm=name`` may run the problem so, else why not."""
    if name not in ("auto", algorithm.name) and (name != algorithm.family or name in _NAMES):
        return f"not {name}"
    if name == "auto" and algorithm.family == "winograd" and not _Settings.winograd:
        return "switched off by set_winograd(False) or FASTCONV_WINOGRAD=0"
    return algorithm.supports(_filled(problem), layout, dtype)


def choose(direction, problem, layout, dtype, name="auto"):
    """The algorithm of that name or family that takes the problem in the fewest cycles, by estimate.

    Between an exact one and one that is hardly quicker it is the exact one.
    """
    if name not in names():
        raise ValueError(f"algorithm must be one of {', '.join(map(repr, names()))}, got {name!r}")
    reasons = {a: reason_against(a, problem, layout, dtype, name) for a in _PLANNED[direction]}
    able = [algorithm for algorithm, reason in reasons.items() if reason is None]
    if not able:
        wanted = "; ".join(r for a, r in reasons.items() if name in (a.family, a.name)) or "it has none"
        raise ValueError(f"algorithm {name!r} cannot run the {direction.replace('_', ' ')} of {problem}: {wanted}")
    return min(able, key=lambda algorithm: algorithm.cycles(_filled(problem), layout, dtype) * (
        1 if algorithm.exact else ROUNDING_COST))


@functools.lru_cache(maxsize=1024)
def runner(direction, problem, layout, dtype, name="auto"):
    """The cached runner for a problem."""
    return choose(direction, problem, layout, dtype, name).make_runner(problem, layout, dtype)


@functools.lru_cache(maxsize=1024)
def pooled_runner(direction, problem, layout, dtype, window):
    """The cached runner that max-pools by such windows in the same pass, or None where nothing does.

    Forward ``run(y, where, x, w, bias, relu)``, filter gradient ``run(dw, x, (dy, where))``; see :mod:`.conv_pooled`.
    """
    if (conv_pooled.supports(problem, layout, dtype, window) is not None
            or choose(direction, problem, layout, dtype).name != "direct_channels"):
        return None
    make_plan, make_kernel = conv_pooled.PASSES[direction]
    found = make_plan(problem, layout, dtype, window)
    return found and Runner(found, make_kernel(window), dtype, problem.multiply_adds)


def explain(problem, layout="NCHW", dtype="float32"):
    """For each direction: ``[(name, None for the chosen one, or the reason why not)]``."""
    return {direction: _reasons(direction, problem, layout, dtype) for direction in DIRECTIONS}


def _reasons(direction, problem, layout, dtype):
    chosen = choose(direction, problem, layout, dtype)
    least = chosen.cycles(_filled(problem), layout, dtype)
    found = []
    for algorithm in ALGORITHMS[direction]:
        reason = reason_against(algorithm, problem, layout, dtype)
        if reason is None and algorithm is not chosen:
            times = algorithm.cycles(_filled(problem), layout, dtype) / least
            reason = f"estimated {times:.2f}x the cycles of {chosen.name}" + ", which is exact" * (times < 1)
        found.append((algorithm.name, reason))
    return found
