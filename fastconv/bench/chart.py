"""The chart of a comparison: how fast each path is, against what the machine can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastconv import info
from fastconv.bench.results import Group, Results, duration
from fastconv.bench.session import Measurement
from fastconv.extras import require
from fastconv.plot import FAINT, INK, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"jit": "#1b6ca8", "im2col": "#9aa5b1", "naive": "#d0d5da", "torch": "#e4572e",
           "torch_compile": "#f2a65a", "onnxruntime": "#76b041", "jax": "#8e6bb4"}
OTHER_COLOUR = "#c9a227"
BAR_INCHES = 0.21
PANEL_INCHES = 4.6


@styled
def chart(results: Results) -> Figure:
    """A panel for each operation, a bar for each path and problem, with its time; dashed, the machine's peak."""
    groups = list(results.groups().items())
    columns = min(3, len(groups))
    lines = [groups[first : first + columns] for first in range(0, len(groups), columns)]
    heights = [max(_bars(found) for _, found in line) for line in lines]
    figure = require("matplotlib.figure").Figure(
        figsize=(PANEL_INCHES * columns, BAR_INCHES * sum(heights) + 1.1 * len(lines) + 0.9))
    axes = figure.subplots(len(lines), columns, squeeze=False, height_ratios=heights).ravel()
    for panel, (group, found) in zip(axes, groups):
        _draw_panel(panel, results, group, found)
    for panel in axes[len(groups):]:
        panel.set_axis_off()
    patch = require("matplotlib.patches").Patch
    paths = dict.fromkeys(m.path for m in results.measured)
    figure.legend(handles=[patch(color=_colour(path), label=path) for path in paths], ncols=len(paths),
                  loc="outside upper center", frameon=False)
    figure.supxlabel(_caption(results), fontsize=7, color=FAINT)
    return figure


def _bars(found: Sequence[Measurement]) -> int:
    """Bars of a panel, and the gaps between problems."""
    return len({m.case.name for m in found}) * (len({m.path for m in found}) + 1)


def _draw_panel(panel: Any, results: Results, group: Group, found: Sequence[Measurement]) -> None:
    op, layout, dtype = group
    arithmetic = found[0].case.flops > 0
    peak = results.peak_gflops[dtype] if arithmetic else results.peak_gbytes
    problems, paths = (list(dict.fromkeys(names)) for names in zip(*((m.case.name, m.path) for m in found)))
    pitch = len(paths) + 1
    longest = max([peak, *map(_rate, found)])
    panel.axvline(peak, color=INK, linestyle="--", linewidth=0.9)
    for m in found:
        y = problems.index(m.case.name) * pitch + paths.index(m.path)
        panel.barh(y, _rate(m), height=0.86, color=_colour(m.path), zorder=2)
        panel.text(_rate(m) + longest * 0.012, y, f"{_label(m)}, {_rate(m) / peak:.0%}", va="center", fontsize=6.5,
                   bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    panel.set_yticks([place * pitch + (len(paths) - 1) / 2 for place in range(len(problems))], problems,
                     fontsize=8, color=INK)
    panel.set_ylim(len(problems) * pitch - 1.2, -0.8)
    panel.set_xlim(0, longest * 1.32)
    panel.set_title(f"{op.replace('_', ' ').capitalize()}  ({layout}, {dtype})", fontsize=9.5)
    panel.set_xlabel("useful GFLOP/s; dashed: the machine's multiply-add peak" if arithmetic else
                     "GB/s; dashed: the machine's memory bandwidth", fontsize=7.5)
    panel.tick_params(axis="x", labelsize=7)
    panel.tick_params(axis="y", length=0)


def _rate(m: Measurement) -> float:
    return m.gflops if m.case.flops else m.gbytes


def _label(m: Measurement) -> str:
    """Its time, and on how many images where it could not run the whole batch."""
    return duration(m.seconds) + ("" if m.ran.images == m.case.images else f" (batch {m.ran.images})")


def _colour(path: str) -> str:
    return COLOURS.get(path, OTHER_COLOUR)


def _caption(results: Results) -> str:
    machine = info.machine()
    versions = ", ".join(f"{name} {value}" for name, value in info.versions().items() if value)
    return (f"{machine['cpu']}, {machine['vectors']}, {results.threads} threads, medians, each path in a process "
            f"of its own\n{versions}" + (f", commit {info.commit()}" if info.commit() else ""))
