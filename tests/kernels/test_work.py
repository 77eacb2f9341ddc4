"""Work counted, not timed: scratch, tasks and cycles by plan for the reference problems, and their tiles' loops.

Plans are made for one stated machine, whichever runs the tests, so the figures are the same everywhere. Where a table
holds a figure of today, a plan that improves may lower it; raising one needs a reason.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from fastconv.kernels import blocking, conv_filter, conv_winograd_filter, jit, winograd_blocking
from fastconv.kernels.algorithms import DIRECTIONS, Algorithm, choose
from fastconv.kernels.blocking import ENOUGH_TASKS, SMALLEST_TASK
from fastconv.kernels.depthwise_filter_tile import DepthwiseFilterTile, compile_depthwise_filter_tile
from fastconv.kernels.depthwise_tile import DepthwiseTile, compile_depthwise_tile
from fastconv.kernels.dot_tile import DotTile, compile_dot_tile
from fastconv.kernels.grouped_channels_tile import (
    ChannelsFilterTile,
    ChannelsTile,
    compile_channels_filter_tile,
    compile_channels_tile,
)
from fastconv.kernels.plan import ConvProblem, Plan
from fastconv.kernels.simd import Tile, VectorUnit, compile_tile, vector_unit
from fastconv.kernels.winograd import Transform, compile_transform
from fastconv.problems import packaged
from tests.conv_cases import LAYOUTS
from tests.kernels.test_simd import X86, inner_loop

UNIT, L1, L2, CORES = VectorUnit("AVX-512", 512, 32, True), 32 << 10, 1 << 20, 2
LANES, SIZE = UNIT.lanes("float32"), 4
WORKERS = 2
DIRECT_SCRATCH = 0.05, 4 << 20  # of the tensors, and bytes a worker
LONG_PANELS = {  # of L2: filter gradients in NCHW that pack long runs of pixels, a ninth quicker though x streams
    "rn50.3_down": 1.584, "rn50.4_1x1": 1.609,
}
WINOGRAD_SCRATCH = {  # of the tensors, where more than one times: large filters, whose transforms each worker holds
    "vgg.5_2": 1.196, "rn50.4_3x3": 1.555, "rn50.5_3x3": 1.193, "deeplab.d2": 1.555, "alex.5x5": 2.075, "one.3x3": 1.6,
}
FEW_TASKS = {  # by direction: Winograd shares transforms within a task, a filter gradient adds up the tasks' sums
    "digits.conv2": (8, 16, 6), "cifar.conv2": (16, 16, 8), "vgg.1_1": (56, 56, 16), "vgg.1_2": (64, 64, 56),
    "vgg.2_2": (12, 12, 10), "vgg.3_2": (8, 8, 8), "vgg.4_2": (8, 8, 8), "vgg.5_2": (8, 8, 8),
    "rn50.stem": (64, 64, 40), "rn50.2_1x1": (42, 48, 48), "rn50.2_3x3": (64, 64, 15),
    "rn50.3_down": (64, 64, 8), "rn50.3_3x3": (8, 8, 8),
    "rn50.3_s2": (64, 8, 8), "rn50.4_3x3": (8, 8, 8), "rn50.4_1x1": (14, 16, 4), "rn50.5_3x3": (8, 8, 8),
    "resnext.g32": (55, 55, 32), "deeplab.d2": (8, 8, 8), "alex.5x5": (8, 8, 9), "one.3x3": (14, 14, 2),
    "one.1x1": (12, 12, 2),
}
CYCLES = {  # of an ideal core, by direction: NCHW, then NHWC where it differs; 3 % above what the plans come to
    "digits.conv1": (2.29, 1.56, 1.42, 2.37, 23.9, 1.12),
    "digits.conv2": (0.622, 0.646, 0.581, 0.536, 0.556, 0.541),
    "cifar.conv1": (1.4, 1.88, 1.57, 1.73, 7.48, 1.34),
    "cifar.conv2": (0.738, 0.738, 0.621, 0.593, 0.593, 0.554),
    "vgg.1_1": (1.28, 2.48, 1.45, 1.47, 6.88, 1.06),
    "vgg.1_2": (0.446, 0.446, 0.441, 0.398, 0.398, 0.419),
    "vgg.2_2": (0.407, 0.407, 0.397, 0.383, 0.383, 0.386),
    "vgg.3_2": (0.378, 0.378, 0.387, 0.366, 0.366, 0.379),
    "vgg.4_2": (0.376, 0.376, 0.387, 0.37, 0.37, 0.38),
    "vgg.5_2": (0.506, 0.506, 0.525, 0.498, 0.498, 0.516),
    "rn50.stem": (1.11, 1.48, 1.16, 1.11, 6.83, 1.12),
    "rn50.2_1x1": (1.23, 1.59, 1.25, 1.23, 1.15, 1.23),
    "rn50.2_3x3": (0.447, 0.447, 0.442, 0.399, 0.399, 0.419),
    "rn50.3_down": (1.27, 2.09, 1.15, 1.09, 1.2, 1.26),
    "rn50.3_3x3": (0.387, 0.387, 0.398, 0.363, 0.363, 0.387),
    "rn50.3_s2": (1.05, 0.96, 1.08, 1.05, 0.916, 1.09),
    "rn50.4_3x3": (0.499, 0.499, 0.51, 0.483, 0.483, 0.499),
    "rn50.4_1x1": (1.27, 1.21, 1.09, 1.08, 1.1, 1.11),
    "rn50.5_3x3": (0.506, 0.506, 0.525, 0.498, 0.498, 0.516),
    "mobile.dw3": (1.78, 1.78, 1.52, 1.4, 1.4, 1.4),
    "mobile.dw3s2": (4.42, 3.05, 4.45, 1.4, 2.29, 1.4),
    "next.dw7": (1.86, 1.86, 1.83, 1.13, 1.13, 1.13),
    "resnext.g32": (1.45, 1.45, 1.7, 1.44, 1.44, 1.44),
    "deeplab.d2": (0.528, 0.528, 0.51, 0.512, 0.512, 0.499),
    "alex.5x5": (0.625, 0.671, 0.638, 0.576, 0.621, 0.615),
    "one.3x3": (0.459, 0.459, 0.448, 0.411, 0.411, 0.426),
    "one.1x1": (1.44, 1.84, 1.1, 1.42, 1.4, 1.11),
}
COMPILERS = {Tile: compile_tile, DotTile: compile_dot_tile, DepthwiseTile: compile_depthwise_tile,
             DepthwiseFilterTile: compile_depthwise_filter_tile, ChannelsTile: compile_channels_tile,
             ChannelsFilterTile: compile_channels_filter_tile, Transform: compile_transform}
WINOGRAD_CYCLES = 0.95  # at most, or its rounding is not worth it


class Work(NamedTuple):
    """What one direction of a problem comes to."""

    name: str
    problem: ConvProblem
    direction: int
    layout: str
    algorithm: Algorithm
    cycles: float
    plan: Plan

    @property
    def winograd(self) -> bool:
        return self.algorithm.family == "winograd"


@functools.cache
def planned(direction: str, layout: str, here: bool = False) -> list[Work]:
    """All reference problems, on the stated machine or on the one ``here``; a tile stands for its machine code."""
    stand_ins: dict[str, Any] = dict.fromkeys([compiler.__name__ for compiler in COMPILERS.values()],
                                              lambda tile: SimpleNamespace(address=0, tile=tile))
    if not here:
        stand_ins |= dict(vector_unit=lambda: UNIT, cache_bytes=lambda: (L1, L2), cores=lambda: CORES)
    with pytest.MonkeyPatch.context() as patch:
        for module in [m for name, m in sys.modules.items() if name.startswith("fastconv.kernels.")]:
            for name in stand_ins.keys() & vars(module).keys():  # modules import functions by name
                patch.setattr(module, name, stand_ins[name])
        found = []
        for name, problem in packaged("reference").items():
            algorithm = choose(direction, problem, layout, "float32")
            found.append(Work(name, problem, DIRECTIONS.index(direction), layout, algorithm,
                              algorithm.cycles(problem, layout, "float32"),
                              algorithm.make_runner(problem, layout, "float32").plan))
    return found


@pytest.fixture(params=itertools.product(DIRECTIONS, LAYOUTS), ids="-".join)
def works(request):
    return planned(*request.param)


def test_scratch(works):
    """Little beside the tensors; what one worker of a direct algorithm packs stays in its L2."""
    found = {}
    for work in works:
        tensors, scratch = SIZE * work.problem.tensor_elements, SIZE * work.plan.scratch_elements(WORKERS)
        if work.winograd:
            bound = WINOGRAD_SCRATCH.get(work.name, 1) * tensors
        else:
            bound = DIRECT_SCRATCH[0] * tensors + DIRECT_SCRATCH[1] * WORKERS
            long = (DIRECTIONS[work.direction], work.layout) == ("filter_gradient", "NCHW")
            if SIZE * work.plan.worker_elements > L2 * (LONG_PANELS.get(work.name, 1) if long else 1):
                found[work.name] = "a worker's scratch", SIZE * work.plan.worker_elements / L2
        if scratch > bound:
            found[work.name] = "scratch by tensors", scratch / tensors
    assert not found


def wanted_tasks(work: Work) -> int:
    """Enough, but none of less than SMALLEST_TASK."""
    return min(ENOUGH_TASKS, work.problem.multiply_adds // LANES // SMALLEST_TASK)


def test_tasks(works):
    found = {}
    for work in works:
        least = FEW_TASKS[work.name][work.direction] if work.name in FEW_TASKS else wanted_tasks(work)
        if work.plan.tasks < least:
            found[work.name] = work.plan.tasks, least
    assert not found


def times_ideal(work: Work) -> float:
    """Estimated cycles by those of one vector multiply-add a cycle."""
    return work.cycles / (work.problem.multiply_adds / LANES)


@pytest.mark.parametrize(("name", "direction"), [
    ("vgg.4_2", "forward"), ("vgg.4_2", "input_gradient"), ("rn50.3_s2", "input_gradient"),
    ("vgg.2_2", "filter_gradient")])
def test_tasks_for_many_cores(monkeypatch, name, direction):
    """Winograd cuts strips by output channels where there are more cores than strips, or takes smaller ones."""
    problem = packaged("reference")[name]
    algorithm = choose(direction, problem, "NCHW", "float32", "winograd")
    few = algorithm.make_runner(problem, "NCHW", "float32").plan
    for module in (blocking, winograd_blocking, conv_winograd_filter):
        monkeypatch.setattr(module, "cores", lambda: 64)
    many = algorithm.make_runner(problem, "NCHW", "float32").plan
    assert few.tasks < 32 <= many.tasks
    assert many.scratch_elements(64) <= few.scratch_elements(64)


@pytest.mark.parametrize(("name", "direction", "algorithm"), [
    *itertools.product(["one.1x1"], DIRECTIONS[:2], ["direct_pointwise"]),
    *itertools.product(["one.3x3"], DIRECTIONS[:2], ["direct_channels"]),
    ("one.1x1", "filter_gradient", "direct_channels")])
def test_one_image_has_tasks_for_the_cores_there_are(monkeypatch, name, direction, algorithm):
    """Each task packs something again, so few cores get few tasks."""
    problem, found = packaged("reference")[name], {}
    for cores in (2, 64):
        for module in (blocking, conv_filter):
            monkeypatch.setattr(module, "cores", lambda cores=cores: cores)
        found[cores] = choose(direction, problem, "NCHW", "float32", algorithm).make_runner(
            problem, "NCHW", "float32").plan.tasks
    assert 2 <= found[2] <= 32 <= found[64]


def test_cycles(works):
    """The estimate of the algorithm chosen: no problem falls back to a slower one unseen."""
    found = {}
    for work in works:
        figures = CYCLES[work.name]
        bound = (figures[:3] if work.layout == "NCHW" else figures[-3:])[work.direction]
        if work.winograd:
            bound = min(bound, WINOGRAD_CYCLES)
        if times_ideal(work) > bound:
            found[work.name] = work.algorithm.name, times_ideal(work), bound
    assert not found


def test_tables_name_reference_problems():
    names = packaged("reference").keys()
    assert CYCLES.keys() == names
    assert FEW_TASKS.keys() | WINOGRAD_SCRATCH.keys() <= names


@pytest.mark.skipif(not X86, reason="reads x86 assembly")
def test_tiles(monkeypatch):
    """Each tile that the plans compile here multiplies as often as it must, and keeps its sums in registers."""
    monkeypatch.setattr(jit, "cache_folder", lambda: None)  # there is no assembly of what comes from a cache
    tiles = {micro_kernel.tile for options in itertools.product(DIRECTIONS, LAYOUTS)
             for work in planned(*options, here=True) for micro_kernel in work.plan.tiles}
    assert {type(tile) for tile in tiles} == COMPILERS.keys()
    tiles = {tile for tile in tiles if not isinstance(tile, Transform)}  # they add more than they multiply
    product, found = r"vfmadd\w+ps\s" if vector_unit().fma else r"mulps\s", {}
    for tile in tiles:
        code = COMPILERS[type(tile)].__wrapped__(tile).assembly
        if isinstance(tile, DepthwiseFilterTile):  # a loop for each pass and block
            loop, wanted = [line.strip() for line in code.splitlines()], (tile.height + tile.rest) * tile.products
        else:
            loop = inner_loop(code, product)
        products = sum(bool(re.match(product, line)) for line in loop)
        if isinstance(tile, Tile):
            wanted = tile.groups * tile.rows * tile.vectors
        elif isinstance(tile, DepthwiseTile):
            wanted = tile.products
        elif isinstance(tile, ChannelsTile):  # LLVM may unroll it
            wanted = tile.products * max(1, products // tile.products)
        elif isinstance(tile, DotTile):  # LLVM may unroll it: by the vectors that it reads, each once
            reads = sum("(" in line and not line.startswith("prefetch") for line in loop)
            columns = len(tile.b_offsets)
            wanted = reads * tile.rows * columns / (tile.rows + columns)
        may_spill = isinstance(tile, (DepthwiseTile, DepthwiseFilterTile))  # no slower there
        spilled = [line for line in loop if "(%rsp" in line and not may_spill]
        few = products // 20 if isinstance(tile, ChannelsTile) and tile.group > 1 else 0
        if products != wanted or not products or len(spilled) > few:
            found[tile] = products, wanted, spilled
    assert not found
