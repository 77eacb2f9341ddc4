"""What a network costs and sees, from its layers alone: nothing is run, no kernel is compiled.

Sizes are shapes with the batch first, as (N, C, H, W). For kernel k, stride s, padding p, dilation d:

    output size      P = floor((H + 2p - d(k-1) - 1)/s) + 1
    receptive field  RF_0 = 1, J_0 = 1;  RF_l = RF_{l-1} + (d(k_l - 1)) J_{l-1};  J_l = J_{l-1} s_l

where the jump J is the distance, in input pixels, between the centres of two neighbouring outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fastconv import check, convolution, pooling

if TYPE_CHECKING:
    from fastconv.nn.module import Module

Size = tuple[int, ...]
Pair = tuple[int, int]


# Output sizes


@overload
def conv_output_size(
    input_size: int, kernel_size: int, stride: int = ..., padding: Any = ..., dilation: int = ...
) -> int: ...
@overload
def conv_output_size(
    input_size: Sequence[int], kernel_size: Any, stride: Any = ..., padding: Any = ..., dilation: Any = ...
) -> Pair: ...
def conv_output_size(
    input_size: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> int | Pair:
    """Rows and columns after a convolution: an int for an int, (P, Q) for (H, W).

    Arguments are those of :func:`fastconv.functional.conv2d`. ValueError where the kernel does not fit.
    """
    weight_size = (1, 1, *check.pair("kernel_size", kernel_size, 1))
    image = (1, 1, *check.pair("input_size", input_size, 1))
    found = convolution.problem(image, weight_size, stride, padding, dilation, 1, "NCHW")
    return found.p if isinstance(input_size, int) else (found.p, found.q)


@overload
def pool_output_size(
    input_size: int,
    kernel_size: int,
    stride: int | None = ...,
    padding: int = ...,
    dilation: int = ...,
    ceil_mode: bool = ...,
) -> int: ...
@overload
def pool_output_size(
    input_size: Sequence[int],
    kernel_size: Any,
    stride: Any = ...,
    padding: Any = ...,
    dilation: Any = ...,
    ceil_mode: bool = ...,
) -> Pair: ...
def pool_output_size(
    input_size: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> int | Pair:
    """Rows and columns after a pool: as :func:`conv_output_size`, but the stride defaults to the kernel.

    ``ceil_mode`` rounds up, unless the last window would start in the bottom or right padding.
    """
    image = (1, 1, *check.pair("input_size", input_size, 1))
    _, _, rows, columns = pooling.max_pool(image, kernel_size, stride, padding, dilation, ceil_mode, "NCHW").output_size
    return rows if isinstance(input_size, int) else (rows, columns)


# Walking through a model


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a model as :func:`layers` meets it; sizes are () where no input size was given.

    ``receptive_field`` and ``jump`` are (rows, columns) in input pixels, of the layer's output; None from the
    first layer on that sees the whole image.
    """

    name: str
    module: Module
    depth: int
    input_size: Size
    output_size: Size
    receptive_field: Pair | None
    jump: Pair | None

    @property
    def is_leaf(self) -> bool:
        """Whether this is a layer, not a container of layers."""
        return not self.module.paths()

    @property
    def parameters(self) -> int:
        """Trained numbers in the layer."""
        return parameter_count(self.module)

    @property
    def multiply_adds(self) -> int:
        """Multiplications, each with an addition, of the layer; 0 where no input size was given."""
        return self.module.multiply_adds(self.input_size) if self.input_size else 0


def layers(model: Module, input_size: Sequence[int] | None = None) -> list[LayerInfo]:
    """The model and every module in it, containers before their content, in the order of a forward pass."""
    size = () if input_size is None else _checked_size(input_size)
    found: list[LayerInfo] = []
    _walk(LayerInfo("", model, 0, size, size, (1, 1), (1, 1)), found)
    return found


def _walk(start: LayerInfo, found: list[LayerInfo]) -> LayerInfo:
    """Append ``start.module`` and all in it. ``start`` describes its input, the result its output."""
    place = len(found)
    found.append(start)
    if start.is_leaf:
        end = _through_leaf(start)
    else:
        ends = [_through_path(start, path, found) for path in start.module.paths()]
        end = _joined(start, ends)
    found[place] = end
    return end


def _through_path(start: LayerInfo, path: Sequence[tuple[str, Module]], found: list[LayerInfo]) -> LayerInfo:
    end = start
    for name, module in path:
        dotted = f"{start.name}.{name}" if start.name else name
        end = _walk(replace(end, name=dotted, module=module, depth=start.depth + 1, input_size=end.output_size), found)
    return end


def _joined(start: LayerInfo, ends: Sequence[LayerInfo]) -> LayerInfo:
    """Where paths meet: one size, and the widest view."""
    sizes = {end.output_size for end in ends}
    if len(sizes) > 1:
        raise ValueError(
            f"the paths of {start.name or 'the model'} ({type(start.module).__name__}) must end in one "
            f"shape, got {' and '.join(map(str, sorted(sizes, key=str)))}"
        )
    widest = max(ends, key=lambda end: end.receptive_field or (math.inf,) * 2)
    return replace(start, output_size=widest.output_size, receptive_field=widest.receptive_field, jump=widest.jump)


def _through_leaf(start: LayerInfo) -> LayerInfo:
    output_size = start.module.output_size(start.input_size) if start.input_size else ()
    window = start.module.window()
    if window is None or start.receptive_field is None or start.jump is None:
        return replace(start, output_size=output_size, receptive_field=None, jump=None)
    extent, stride = window
    (high, wide), (down, across) = start.receptive_field, start.jump
    return replace(
        start,
        output_size=output_size,
        receptive_field=(high + (extent[0] - 1) * down, wide + (extent[1] - 1) * across),
        jump=(down * stride[0], across * stride[1]),
    )


def _checked_size(input_size: Sequence[int]) -> Size:
    if not isinstance(input_size, tuple | list) or not input_size:
        raise ValueError("input_size must be a shape with the batch first, as (1, 3, 32, 32), "
                         f"got {check.shown(input_size)}")
    return tuple(check.integer("input_size", side, 1) for side in input_size)


# Counts


def output_size(model: Module, input_size: Sequence[int]) -> Size:
    """Shape of the model's output for an input of this shape, batch included."""
    return layers(model, input_size)[0].output_size


def parameter_count(model: Module) -> int:
    """Trained numbers in the model; a convolution has K*C*R*S/G + K."""
    return sum(parameter.size for parameter in model.parameters())


def multiply_adds(model: Module, input_size: Sequence[int]) -> int:
    """Multiplications, each with an addition, of all convolutions and matrix products in one forward pass.

    A convolution has N*K*P*Q * R*S*C/G. ``input_size`` is the input's shape, batch included.
    """
    return sum(layer.multiply_adds for layer in layers(model, input_size) if layer.is_leaf)


def receptive_field(model: Module) -> list[LayerInfo]:
    """``.receptive_field`` and ``.jump`` of the layers, without containers, that see a part of the image."""
    return [layer for layer in layers(model) if layer.is_leaf and layer.receptive_field is not None]


# Summary


@dataclass(frozen=True)
class Summary:
    """Layer-by-layer table of a model; ``str()`` prints it."""

    layers: Sequence[LayerInfo]
    dtype: np.dtype

    @property
    def parameters(self) -> int:
        return self.layers[0].parameters

    @property
    def multiply_adds(self) -> int:
        return sum(layer.multiply_adds for layer in self.layers if layer.is_leaf)

    @property
    def input_bytes(self) -> int:
        return math.prod(self.layers[0].input_size) * self.dtype.itemsize

    @property
    def parameter_bytes(self) -> int:
        return self.parameters * self.dtype.itemsize

    @property
    def activation_bytes(self) -> int:
        """All layers' outputs together."""
        return sum(self._output_bytes(layer) for layer in self.layers if layer.is_leaf)

    def _output_bytes(self, layer: LayerInfo) -> int:
        return math.prod(layer.output_size) * self.dtype.itemsize

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The cells of the table, the header first."""
        yield "Layer", "Output shape", "Params", "Mult-adds", "Receptive field", "Memory"
        for layer in self.layers:
            name = layer.name.rpartition(".")[2]
            label = "  " * layer.depth + (f"{name}: " if name else "") + type(layer.module).__name__
            if not layer.is_leaf:
                yield label, str(layer.output_size), "", "", "", ""
                continue
            yield (
                label,
                str(layer.output_size),
                _count(layer.parameters),
                _count(layer.multiply_adds),
                _field(layer),
                _readable(self._output_bytes(layer)),
            )

    def __str__(self) -> str:
        rows = list(self.rows())
        widths = [max(map(len, column)) for column in zip(*rows)]
        aligned = [
            [cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
            for row in rows
        ]
        lines = ["  ".join(row).rstrip() for row in aligned]
        rule = "=" * max(map(len, lines))
        totals = [
            f"Parameters: {self.parameters:,}",
            f"Multiply-adds: {self.multiply_adds:,}",
            f"Memory: input {_readable(self.input_bytes)}, outputs of all layers "
            f"{_readable(self.activation_bytes)}, parameters {_readable(self.parameter_bytes)}",
        ]
        return "\n".join([rule, lines[0], rule, *lines[1:], rule, *totals, rule])


def summary(model: Module, input_size: Sequence[int]) -> Summary:
    """As torchinfo prints: output shape, parameters, multiply-adds, receptive field, bytes of each output.

    ``input_size`` is the input's shape, batch included, in the model's layout.
    """
    dtype = next((parameter.dtype for parameter in model.parameters()), np.dtype(np.float32))
    return Summary(layers(model, input_size), dtype)


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _field(layer: LayerInfo) -> str:
    if layer.receptive_field is None:
        return "-"
    rows, columns = layer.receptive_field
    return str(rows) if rows == columns else f"{rows}x{columns}"


def _readable(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"


# Comparison with a fully connected network


@dataclass(frozen=True)
class MLPComparison:
    """Parameters of a network and of a fully connected one for the same task."""

    model_parameters: int
    mlp_parameters: int
    mlp_widths: Size

    @property
    def percent_fewer(self) -> float:
        """How many fewer parameters the model has, in percent of the fully connected network's."""
        return 100 * (1 - self.model_parameters / self.mlp_parameters)

    def __str__(self) -> str:
        relation = "fewer" if self.percent_fewer >= 0 else "more"
        widths = " -> ".join(f"{width:,}" for width in self.mlp_widths)
        return (
            f"{self.model_parameters:,} parameters, {abs(self.percent_fewer):.1f} % {relation} than the "
            f"{self.mlp_parameters:,} of a fully connected {widths}"
        )


def compare_with_mlp(
    model: Module, input_size: Sequence[int], hidden: Sequence[int] = (128, 128), classes: int = 10
) -> MLPComparison:
    """The model beside the MLP that reads the same image: ``input_size`` is (N, C, H, W)."""
    inputs = math.prod(_checked_size(input_size)[1:])
    widths = (inputs, *(check.integer("hidden", width, 1) for width in hidden), check.integer("classes", classes, 1))
    weights_and_biases = sum((before + 1) * after for before, after in pairwise(widths))
    return MLPComparison(parameter_count(model), weights_and_biases, widths)
