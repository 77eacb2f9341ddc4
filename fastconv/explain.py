"""How a convolution would run: the algorithm of each direction, why not the others, and its blocking."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.check import Layout
from fastconv.kernels import algorithms
from fastconv.kernels.plan import ConvProblem
from fastconv.kernels.simd import vector_unit
from fastconv.reference.im2col import im2col_bytes

FIELDS = {  # of a plan's geometry record, where it has them: what they say
    "strips": "strips an image",
    "strip_out": "output rows a strip",
    "task_tiles": "Winograd tiles a task",
    "k_blocks": "blocks of output channels",
    "reduction_blocks": "blocks of the reduction",
    "units": "strips in all",
    "chunks": "chunks with sums of their own",
}


def explain(problem: ConvProblem, layout: Layout = "NCHW", dtype: str = "float32") -> dict[str, Any]:
    """Everything about ``problem`` that does not need it to run, as plain numbers and text.

    Compiles the register tiles of the algorithms chosen, as calling them would.
    """
    item = np.dtype(dtype).itemsize
    top, left = (pads[0] for pads in problem.padding)
    matrix = im2col_bytes(problem.input_shape(layout), (problem.r, problem.s), problem.stride, (top, left),
                          problem.dilation, layout=layout, dtype=np.dtype(dtype))
    listed = algorithms.explain(problem, layout, dtype)
    return {
        "problem": str(problem),
        "layout": layout,
        "dtype": dtype,
        "input": problem.input_shape(layout),
        "weight": problem.weight_shape,
        "output": problem.output_shape(layout),
        "multiply_adds": problem.multiply_adds,
        "tensor_bytes": problem.tensor_elements * item,
        "im2col_bytes": matrix,
        "directions": {direction: _direction(direction, candidates, problem, layout, dtype)
                       for direction, candidates in listed.items()},
    }


def _direction(direction: str, candidates: list[tuple[str, str | None]], problem: ConvProblem, layout: str,
               dtype: str) -> dict[str, Any]:
    runner = algorithms.runner(direction, problem, layout, dtype)
    return {
        "algorithm": next(name for name, reason in candidates if reason is None),
        "others": {name: reason for name, reason in candidates if reason is not None},
        "phases": [_phase(record) for record in runner.plan.geometry if record["tasks"]],
        "tasks": int(runner.plan.tasks),
        "threads": runner.workers,
        "scratch_bytes": int(runner.extra_bytes),
    }


def _phase(record: np.void) -> dict[str, Any]:
    """The blocking of one phase: an input gradient has one for each place of a pixel within the stride."""
    names = record.dtype.names or ()
    found: dict[str, Any] = {}
    if "tile_rows" in names:
        groups = f"{record['tile_groups']} x " if "tile_groups" in names and record["tile_groups"] > 1 else ""
        if "tile_columns" in names:
            shape = f"{record['tile_columns']} columns, a vector of {record['lanes']} each"
        else:
            shape = f"{record['width'] // record['lanes']} vectors of {record['lanes']}"
        found["register tile"] = f"{groups}{record['tile_rows']} rows x {shape}"
    found |= {what: int(record[name]) for name, what in FIELDS.items() if name in names}
    if "packed" in names:
        found["input"] = "copied strip by strip, with its padding" if record["packed"] else "read where it lies"
    return found


def vector_description() -> str:
    """The vectors that tiles are made of."""
    unit = vector_unit()
    return f"{unit.name}, {unit.registers} registers of {unit.bits} bits"
