"""A trained network made ready for many calls of inference on inputs of one size."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastconv import check, convolution, elementwise, pooling
from fastconv.analysis import Size
from fastconv.kernels import activation, gemm, layouts
from fastconv.kernels.blocking import round_up
from fastconv.kernels.jit import Kernel, launch
from fastconv.kernels.pages import HUGE_PAGE, empty_bytes
from fastconv.nn import channels_last
from fastconv.nn.activation import Dropout, ReLU
from fastconv.nn.container import Residual, Sequential
from fastconv.nn.conv import Conv2d
from fastconv.nn.linear import Flatten, Linear
from fastconv.nn.module import Module
from fastconv.nn.norm import BatchNorm2d
from fastconv.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

LINE_ELEMENTS = 16  # what packed filters begin at multiples of

Call = tuple[Callable[..., Any], tuple[Any, ...]]  # a kernel and all its arguments


def freeze(model: Module, input_size: Size, dtype: Any = np.float32) -> Frozen:
    """``model`` in evaluation mode as a function of inputs of one size, several times quicker on small batches.

    Its weights are copied: batch norms are folded into the convolutions before them, filters are packed, and memory
    for all that passes between layers is set aside, once. Inside, images have channels last where the layers are known
    to allow it. What the model learns later does not reach it.

    frozen = nn.freeze(model, (1, 3, 32, 32))
    logits = frozen(image)

    Args:
        model: any module; of modules that are not fastconv's own a copy is called.
        input_size: of the input, batch included.
        dtype: of the input and the parameters, float32 or float64.

    Raises:
        TypeError, ValueError: where the model does not take such an input.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    wrong = next((str(parameter.dtype) for parameter in model.parameters() if parameter.dtype != dtype), None)
    if wrong:
        raise TypeError(f"dtype must be that of the model, whose parameters are {wrong}, got {dtype}")
    return Frozen(model, input_size, dtype)


class Frozen:
    """What :func:`freeze` returns: ``frozen(input)`` is a new array. Threads take turns."""

    def __init__(self, model: Module, input_size: Size, dtype: np.dtype) -> None:
        self.input_size = tuple(check.integer("input_size", size, 1) for size in input_size)
        self.dtype = dtype
        self._lock = threading.Lock()
        self._compiler = _Compiler(dtype)
        model = copy.deepcopy(model).eval()
        model(np.zeros(self.input_size, dtype))  # it refuses what does not fit, in its own words
        self._turned = channels_last.turn(list(_flat(model)), self.input_size)
        n, *image = self.input_size
        self._input = self._compiler.take((n, *image[1:], image[0]) if self._turned else self.input_size)
        self._output = self._compiler.add(model, self._input)
        self.output_size = self._output.shape
        self._threads = 0
        self._calls: list[Call] = []

    def __call__(self, input: np.ndarray) -> np.ndarray:
        x = check.array("input", input, len(self.input_size), self.dtype)
        check.shape("input", x, self.input_size, "as frozen for")
        with self._lock:
            if self._threads != launch.threads:
                self._calls, self._threads = self._compiler.bind(), launch.threads
            if self._turned:
                layouts.to_nhwc.twin(x.size * elementwise.MICROSECONDS)(self._input, x)
            else:
                self._input[...] = x
            for kernel, arguments in self._calls:
                kernel(*arguments)
            return self._output.copy()

    def __repr__(self) -> str:
        return f"Frozen({self.input_size} to {self.output_size}, {self.dtype})"


class _Kept(NamedTuple):
    """A convolution whose packed filters stay in memory: its runner, the arrays that it takes, and its ReLU."""

    runner: Any
    arrays: tuple[Any, ...]
    relu: bool = False


class _Compiler:
    """Turns layers into steps, and steps into calls for the present number of threads.

    Arrays that pass between layers come from :meth:`take`; one without users serves again.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype
        self._steps: list[_Kept | Callable[[], Call]] = []
        self._blocks: dict[int, np.ndarray] = {}  # by address
        self._users: dict[int, int] = {}
        self._rest = empty_bytes(0)  # of memory that has been asked for

    def bind(self) -> list[Call]:
        """The calls. All filters are packed here, one convolution's behind another's; the workers share the rest."""
        runners = [step.runner for step in self._steps if isinstance(step, _Kept)]
        ends = list(itertools.accumulate((round_up(run.plan.shared_elements, LINE_ELEMENTS) for run in runners),
                                         initial=0))
        workers = max((run.workers * run.plan.worker_elements for run in runners), default=0)
        memory, firsts = self._memory(ends[-1] + workers), iter(ends)
        return [step.runner.keep_filters(memory, next(firsts), ends[-1], step.arrays, step.relu)
                if isinstance(step, _Kept) else step() for step in self._steps]

    def _memory(self, elements: int) -> np.ndarray:
        """Behind what was given before, so that all of a small network lies in one huge page."""
        size = round_up(max(elements, 1), LINE_ELEMENTS) * self.dtype.itemsize
        if self._rest.size < size:
            self._rest = empty_bytes(max(size, HUGE_PAGE))
        given, self._rest = self._rest[:size], self._rest[size:]
        return given.view(self.dtype)

    def _copied(self, array: np.ndarray) -> np.ndarray:
        """A copy that nothing else shares."""
        copied = self._memory(array.size)[:array.size].reshape(array.shape)
        copied[...] = array
        return copied

    # Arrays

    def take(self, shape: Size) -> np.ndarray:
        """An array with one user."""
        size = math.prod(shape)
        idle = (where for where, block in self._blocks.items() if not self._users[where] and block.size >= size)
        where = min(idle, key=lambda where: self._blocks[where].size, default=None)
        if where is None:
            block = self._memory(size)
            where = _place(block)
            self._blocks[where] = block
        self._users[where] = 1
        return self._blocks[where][:size].reshape(shape)

    def hold(self, array: np.ndarray) -> None:
        """One user more."""
        self._users[_place(array)] += 1

    def release(self, array: np.ndarray) -> None:
        """One user less."""
        self._users[_place(array)] -= 1

    # Layers: each takes its input over, and gives away its output

    def add(self, model: Module, x: np.ndarray) -> np.ndarray:
        """Steps of a model that reads ``x``; its output."""
        layers = list(_flat(model))
        while layers:
            step = next(step for step in _STEPS if step.fits(layers))
            x = step.emit(self, x, *layers[:len(step.kinds)])
            del layers[:len(step.kinds)]
        return x

    def convolution(self, x: np.ndarray, layer: Conv2d, norm: BatchNorm2d | None = None) -> np.ndarray:
        """A convolution, and the batch norm behind it."""
        weight, bias = self._folded(layer, norm)
        found, run = convolution.prepared("inference", x.shape, weight.shape, layer.stride, layer.padding,
                                          layer.dilation, layer.groups, layer.layout, self.dtype.char, "auto")
        y = self.take(found.output_shape(layer.layout))
        self._steps.append(_Kept(run, (y, x, weight, bias)))
        self.release(x)
        return y

    def convolution_max_pool(self, x: np.ndarray, layer: Conv2d, pool: MaxPool2d, relu: bool = False) -> np.ndarray:
        """A convolution and its max-pool, with ReLU or without: in one pass where it can."""
        weight, bias = self._folded(layer, None)
        found = pooling.pooled_convolution(
            "inference", x.shape, weight.shape, layer.stride, layer.padding, layer.dilation, layer.groups,
            pool.kernel_size, layer.layout, self.dtype.char)
        if found.run is None:
            return self.max_pool(self.convolution(x, layer), pool, relu)
        y = self.take(found.pool.output_size)
        self._steps.append(_Kept(found.run, (y.reshape(-1), None, x, weight, bias, int(relu))))
        self.release(x)
        return y

    def max_pool(self, x: np.ndarray, layer: MaxPool2d, relu: bool = False) -> np.ndarray:
        """A max-pool, with ReLU or without."""
        found = pooling.max_pool(x.shape, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                                 layer.ceil_mode, layer.layout)
        y = self.take(found.output_size)
        arguments = found.plan.forward_relu if relu else found.plan.forward
        self._call(found.plan.forward_kernel, y.reshape(-1), None, x.reshape(-1), *arguments)
        self.release(x)
        return y

    def average_pool(self, x: np.ndarray, layer: AvgPool2d) -> np.ndarray:
        """An average pool."""
        return self._average(x, pooling.average_pool(
            x.shape, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad,
            layer.divisor_override, layer.layout, self.dtype.char))

    def adaptive_average_pool(self, x: np.ndarray, layer: AdaptiveAvgPool2d) -> np.ndarray:
        """Means of the cells of a grid."""
        target = pooling.images(layer.output_size(x.shape), layer.layout)
        return self._average(x, pooling.adaptive_average_pool(x.shape, (target.h, target.w), layer.layout,
                                                              self.dtype.char))

    def _average(self, x: np.ndarray, found: pooling.AveragePool) -> np.ndarray:
        y = self.take(found.output_size)
        self._call(found.plan.forward_kernel, y.reshape(-1), x.reshape(-1), *found.plan.forward)
        self.release(x)
        return y

    def linear(self, x: np.ndarray, layer: Linear) -> np.ndarray:
        """A linear layer."""
        weight = self._copied(layer.weight.data)
        bias = np.empty(0, self.dtype) if layer.bias is None else layer.bias.data
        y = self.take(layer.output_size(x.shape))
        rows = y.size // len(weight)
        product = gemm.Product(rows, *weight.shape, weight.shape[1], 1, 1, weight.shape[1], self.dtype.char)
        self._steps.append(lambda: gemm.bound(y.reshape(rows, -1), x.reshape(rows, -1), weight, bias, product,
                                              lambda elements, dtype: self._memory(elements)))
        self.release(x)
        return y

    def flatten(self, x: np.ndarray, layer: Flatten) -> np.ndarray:
        """The same memory in another shape."""
        return x.reshape(layer.output_size(x.shape))

    def relu(self, x: np.ndarray) -> np.ndarray:
        """ReLU: of a convolution's results as it makes them, where it can and nobody else reads them, or by itself."""
        last = self._steps[-1] if self._steps else None
        if isinstance(last, _Kept) and last.arrays[0] is x and last.runner.plan.rectifies and (
                self._users[_place(x)] == 1):
            self._steps[-1] = last._replace(relu=True)
            return x
        return self._elementwise(activation.relu, x)

    def residual(self, x: np.ndarray, layer: Residual, relu: bool = False) -> np.ndarray:
        """A body and its shortcut, added up."""
        self.hold(x)
        other = x if layer.shortcut is None else self.add(layer.shortcut, x)
        return self._elementwise(activation.add_relu if relu else activation.add, self.add(layer.body, x), other)

    def other(self, x: np.ndarray, layer: Module) -> np.ndarray:
        """Any other layer, as it is."""
        y = self.take(layer(np.zeros(x.shape, self.dtype)).shape)
        self._call(_copy_output, layer, x, y)
        self.release(x)
        return y

    def _elementwise(self, kernel: Kernel, *operands: np.ndarray) -> np.ndarray:
        y = self.take(operands[0].shape)  # in place it would take three times as long: LLVM fears that arrays overlap
        self._call(kernel.twin(y.size * elementwise.MICROSECONDS), *(a.reshape(-1) for a in (y, *operands)))
        for array in operands:
            self.release(array)
        return y

    def _folded(self, layer: Conv2d, norm: BatchNorm2d | None) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias that do what the convolution does and then the batch norm; an empty bias for none."""
        weight, bias = layer.weight.data, None if layer.bias is None else layer.bias.data
        if norm is None:
            return weight, np.empty(0, self.dtype) if bias is None else bias
        mean, variance = (np.asarray(value, np.float64) for value in (norm.running_mean, norm.running_var))
        scale = 1 / np.sqrt(variance + norm.eps)
        if norm.weight is not None:
            scale *= norm.weight.data
        shift = ((0 if bias is None else bias) - mean) * scale
        if norm.bias is not None:
            shift += norm.bias.data
        return (weight * scale[:, None, None, None]).astype(weight.dtype), shift.astype(weight.dtype)

    def _call(self, kernel: Callable[..., Any], *arguments: Any) -> None:
        self._steps.append(lambda: (kernel, arguments))


class _Step(NamedTuple):
    """Neighbouring layers of these types that become one step where they allow it."""

    kinds: tuple[type[Module], ...]
    emit: Callable[..., np.ndarray]  # (compiler, x, *layers)
    allowed: Callable[..., bool] = lambda *layers: True

    def fits(self, layers: list[Module]) -> bool:
        """Whether it begins these layers."""
        first = layers[:len(self.kinds)]
        alike = self.kinds in ((Module,), tuple(map(type, first)))  # a subclass may do anything
        return alike and self.allowed(*first)


_STEPS = (  # the first that fits is taken
    _Step((Conv2d, BatchNorm2d), _Compiler.convolution, lambda layer, norm: norm.running_var is not None),
    _Step((Conv2d, ReLU, MaxPool2d), lambda compiler, x, layer, _, pool: compiler.convolution_max_pool(
        x, layer, pool, relu=True), lambda layer, _, pool: _touching(layer, pool)),
    _Step((Conv2d, MaxPool2d), _Compiler.convolution_max_pool, lambda layer, pool: _touching(layer, pool)),
    _Step((Conv2d,), _Compiler.convolution),
    _Step((ReLU, MaxPool2d), lambda compiler, x, _, pool: compiler.max_pool(x, pool, relu=True),
          lambda _, pool: pool.dilation == (1, 1)),
    _Step((MaxPool2d,), _Compiler.max_pool),
    _Step((AvgPool2d,), _Compiler.average_pool),
    _Step((AdaptiveAvgPool2d,), _Compiler.adaptive_average_pool),
    _Step((Residual, ReLU), lambda compiler, x, layer, _: compiler.residual(x, layer, relu=True)),
    _Step((Residual,), _Compiler.residual),
    _Step((ReLU,), lambda compiler, x, _: compiler.relu(x)),
    _Step((Linear,), _Compiler.linear),
    _Step((Flatten,), _Compiler.flatten),
    _Step((Module,), _Compiler.other),
)


def _flat(model: Module) -> Iterator[Module]:
    """The layers in turn; a dropout does nothing in evaluation mode."""
    if type(model) is Sequential:
        for layer in model:
            yield from _flat(layer)
    elif type(model) is not Dropout:
        yield model


def _touching(layer: Conv2d, pool: MaxPool2d) -> bool:
    return pool.touching and pool.layout == layer.layout


def _copy_output(layer: Module, x: np.ndarray, y: np.ndarray) -> None:
    y[...] = layer(x)


def _place(array: np.ndarray) -> int:
    """The address, which tells arrays of one block from those of another."""
    return array.ctypes.data
