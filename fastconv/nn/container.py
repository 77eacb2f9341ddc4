"""Modules made of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from fastconv import functional, grad, memory
from fastconv.nn.activation import ReLU
from fastconv.nn.conv import Conv2d
from fastconv.nn.module import Module
from fastconv.nn.pool import MaxPool2d


class Sequential(Module):
    """Layers one after another: ``Sequential(Conv2d(...), ReLU())``, or a dict of named layers.

    Layers are named "0", "1", ... as torch names them. A layer may stand in it only once, since it keeps the
    arrays of one forward pass. A ReLU before a max-pool runs in the same pass, to the same bits, and so does the
    convolution before both, where it can; its bias gradient is summed over the pool's windows.
    """

    def __init__(self, *layers: Module | Mapping[str, Module]) -> None:
        named = (
            layers[0]
            if len(layers) == 1 and isinstance(layers[0], Mapping)
            else ({str(place): layer for place, layer in enumerate(layers)})
        )
        self._layers: dict[str, Module] = {}
        for name, layer in named.items():
            self._layers[name] = self._checked(name, layer)
        self._steps = _fused(self._layers.values())

    def _checked(self, name: str, layer: Any) -> Module:
        if not isinstance(layer, Module):
            raise TypeError(f"layer {name} must be a Module, got {type(layer).__name__}")
        if any(layer is other for other in self._layers.values()):
            raise ValueError(
                f"layer {name} ({type(layer).__name__}) stands in this Sequential already: make a second one, "
                "since a layer keeps the arrays of one forward pass"
            )
        return layer

    def forward(self, input: np.ndarray) -> np.ndarray:
        for step in self._steps:
            input = step(input)
        return input

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        first = 0 if need_input_grad else self._first_trained()
        gradient: Any = grad_output
        for place in range(len(self._steps) - 1, first - 1, -1):
            gradient = self._steps[place].backward(gradient, need_input_grad or place > first)
        return gradient if need_input_grad else None

    def _first_trained(self) -> int:
        """Place of the first step with parameters: nothing before it needs a gradient."""
        places = (place for place, step in enumerate(self._steps) if any(step.parameters()))
        return next(places, len(self._steps))

    def activations(self, input: np.ndarray) -> Iterator[tuple[str, Module, np.ndarray]]:
        """(name, layer, output) of each layer in turn, for an input."""
        for name, layer in self._layers.items():
            input = layer(input)
            yield name, layer, input

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return iter(self._layers.items())

    def paths(self) -> Sequence[Sequence[tuple[str, Module]]]:
        return (tuple(self._layers.items()),)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._layers.values())

    def __len__(self) -> int:
        return len(self._layers)

    @overload
    def __getitem__(self, place: int) -> Module: ...
    @overload
    def __getitem__(self, place: slice) -> Sequential: ...
    def __getitem__(self, place: int | slice) -> Module:
        """A layer, or a Sequential of the same layers for a slice."""
        if isinstance(place, slice):
            return Sequential(dict(list(self._layers.items())[place]))
        return list(self._layers.values())[place]


class _Pooled(Module):
    """Max-pool in one pass with the ReLU before it, and with a convolution before both where it can.

    The largest of a window and of 0; where that is 0, no pixel gets its gradient. The bias gradient is summed over the
    windows instead of the pixels.
    """

    def __init__(self, conv: Conv2d | None, relu: bool, pool: MaxPool2d) -> None:
        self.conv = conv
        self.relu = relu
        self.pool = pool

    def forward(self, input: np.ndarray) -> np.ndarray:
        if self.conv is None:
            return self.pool.forward(input, relu=self.relu)
        if not self.pool.touching:
            return self.pool.forward(self.conv.forward(input), relu=self.relu)
        conv, pool = self.conv, self.pool
        output, positions = functional.conv2d_max_pool2d(
            input, conv.weight.data, conv._bias_data(), **conv._geometry(), kernel_size=pool.kernel_size,
            relu=self.relu)
        conv._save(input)
        pool._save(conv.output_size(np.shape(input)), positions)
        return output

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        if self.conv is None:
            return self.pool.backward(grad_output, need_input_grad)
        conv, pool = self.conv, self.pool
        if need_input_grad or not pool.touching:
            gradient, grad_bias = pool.backward_with_bias(grad_output)
            return conv.backward(gradient, need_input_grad, grad_bias)
        (input,), (_, positions) = conv._take_saved(), pool._take_saved()
        conv.weight.accumulate(grad.conv2d_max_pool2d_weight(
            input, conv.weight.shape, positions, grad_output, **conv._geometry(), kernel_size=pool.kernel_size))
        conv._accumulate_bias(grad_output, grad.max_pool2d_bias(
            positions, grad_output, pool.kernel_size, layout=pool.layout))
        return None


def _fused(layers: Iterable[Module]) -> list[Module]:
    """The steps that run the layers.

    Not fused are pools whose dilation can leave a window without a pixel: its maximum is -inf.
    """
    steps: list[Module] = []
    for layer in layers:
        if type(layer) is MaxPool2d and layer.dilation == (1, 1):
            relu = bool(steps) and type(steps[-1]) is ReLU
            conv = steps[-1 - relu] if len(steps) > relu else None
            if type(conv) is Conv2d and conv.bias is not None and conv.layout == layer.layout:
                steps[len(steps) - 1 - relu :] = [_Pooled(conv, relu, layer)]
                continue
            if relu:
                steps[-1] = _Pooled(None, relu, layer)
                continue
        steps.append(layer)
    return steps


class Residual(Module):
    """body(input) + shortcut(input); without a shortcut the input itself is added (He et al. 2015)."""

    def __init__(self, body: Module, shortcut: Module | None = None) -> None:
        self.body = body
        self.shortcut = shortcut

    def forward(self, input: np.ndarray) -> np.ndarray:
        other = input if self.shortcut is None else self.shortcut(input)
        output = self.body(input)
        if output.shape != other.shape:
            raise ValueError(f"body and shortcut must give one shape, got {output.shape} and {other.shape}")
        self._save()
        return _sum(output, other)

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        self._take_saved()
        through_body = self.body.backward(grad_output, need_input_grad)
        if self.shortcut is None:
            other: np.ndarray | None = grad_output
        else:
            other = self.shortcut.backward(grad_output, need_input_grad)
        return None if through_body is None or other is None else _sum(through_body, other)

    def paths(self) -> Sequence[Sequence[tuple[str, Module]]]:
        shortcut = () if self.shortcut is None else (("shortcut", self.shortcut),)
        return (("body", self.body),), shortcut


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in a new array: either may still be kept by a layer."""
    return np.add(a, b, out=memory.empty(a.shape, a.dtype))
