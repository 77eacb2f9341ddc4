"""One training step of a whole network: forward, cross-entropy, backward, and gradient descent with momentum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from fastconv import analysis, optim, recipes
from fastconv.nn import Conv2d, CrossEntropyLoss, Flatten, Linear, MaxPool2d, Module, ReLU
from fastconv.reference import im2col, naive
from fastconv.reference.tolerance import bound

LR, MOMENTUM = 0.01, 0.9
CLASSES = 10


@dataclass(frozen=True)
class TrainingCase:
    """A step of one of the recipes' networks on a batch of images."""

    model: str
    images: int
    layout: str = "NCHW"
    dtype: str = "float32"
    op: ClassVar[str] = "training_step"
    bytes: ClassVar[int] = 0  # unknown: it depends on what is kept in between
    result_bytes: ClassVar[int] = 0
    im2col_bytes: ClassVar[int] = 0

    @property
    def name(self) -> str:
        """Network and batch."""
        return f"{self.model}.batch{self.images}"

    text = name

    def __str__(self) -> str:
        return f"op={self.op}-problem={self.name}"

    def as_json(self) -> dict[str, Any]:
        """What the worker makes it from."""
        return {"op": self.op, **vars(self)}

    @property
    def flops(self) -> int:
        """Useful floating-point operations: each of a layer's gradients takes as many as its forward pass."""
        trained = [layer.multiply_adds for layer in self._layers()]
        return 2 * (3 * sum(trained) - trained[0])  # nobody needs the gradient of the images

    def _layers(self) -> list[analysis.LayerInfo]:
        """Those that multiply."""
        found = analysis.layers(self.network(), self._input_size)
        return [layer for layer in found if layer.is_leaf and layer.multiply_adds]

    @property
    def _input_size(self) -> tuple[int, ...]:
        channels, rows, columns = recipes.MODELS[self.model].image_shape
        return (self.images, *((channels, rows, columns) if self.layout == "NCHW" else (rows, columns, channels)))

    def network(self) -> Any:
        """The network with its first weights, the same in every process."""
        return recipes.MODELS[self.model].factory(layout=self.layout, dtype=self.dtype, rng=0)

    def arrays(self) -> SimpleNamespace:
        """Images x and labels, the same in every process."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal(self._input_size, np.float32).astype(self.dtype, copy=False)
        return SimpleNamespace(x=x, labels=rng.integers(0, CLASSES, self.images))

    def expected(self) -> np.ndarray:
        """All gradients of the first step, in the matrix form."""
        call, array = prepare_im2col(self, self.arrays())
        return array(call())

    def bound(self, expected: np.ndarray) -> float:
        """Errors of all layers add up: each sums over its weights, and their gradients over batch and pixels."""
        terms = sum(layer.multiply_adds // math.prod(layer.output_size) + math.prod(layer.output_size[:-1])
                    for layer in self._layers())
        return bound(terms, expected)

    def for_path(self, path: str) -> TrainingCase:
        """Every path runs the whole batch."""
        return self


Prepared = tuple[Callable[[], Any], Callable[[Any], np.ndarray]]


def prepare_jit(case: TrainingCase, a: SimpleNamespace) -> Prepared:
    """The layers of fastconv.nn and fastconv.optim."""
    network, criterion = case.network(), CrossEntropyLoss()
    optimizer = optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)

    def call() -> Module:
        optimizer.zero_grad()
        criterion(network(a.x), a.labels)
        network.backward(criterion.backward(), need_input_grad=False)
        optimizer.step()
        return network

    return call, _gradients


def _gradients(network: Module) -> np.ndarray:
    """Of all parameters, one after another."""
    return np.concatenate([parameter.grad.ravel() for parameter in network.parameters() if parameter.grad is not None])


def prepare_im2col(case: TrainingCase, a: SimpleNamespace) -> Prepared:
    """The same layers by the matrix form and plain NumPy."""
    network = case.network()
    velocities = [np.zeros_like(parameter.data) for parameter in network.parameters()]

    def call() -> Module:
        x, kept = a.x, []
        for layer in network:
            x, for_backward = PLAIN[type(layer)][0](layer, x)
            kept.append(for_backward)
        dy = naive.cross_entropy_grad(x, a.labels)
        for place in range(len(network) - 1, -1, -1):
            dy = PLAIN[type(network[place])][1](network[place], kept.pop(), dy, place > 0)
        for parameter, velocity in zip(network.parameters(), velocities):
            velocity *= MOMENTUM
            velocity += parameter.grad
            parameter.data -= LR * velocity
        return network

    return call, _gradients


def _conv(layer: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return im2col.conv2d(x, layer.weight.data, layer.bias.data, *_moves(layer), layout=layer.layout), x


def _conv_gradients(layer: Any, x: np.ndarray, dy: np.ndarray, need_input_grad: bool) -> Any:
    w, layout, moves = layer.weight.data, layer.layout, _moves(layer)
    layer.weight.grad = im2col.conv2d_weight(x, w.shape, dy, *moves, layout=layout)
    layer.bias.grad = dy.sum(axis=(0, 2, 3) if layout == "NCHW" else (0, 1, 2))
    return im2col.conv2d_input(x.shape, w, dy, *moves, layout=layout) if need_input_grad else None


def _moves(layer: Any) -> tuple[Any, Any, Any, int]:
    return layer.stride, layer.padding, layer.dilation, layer.groups


def _pool(layer: Any, x: np.ndarray) -> tuple[np.ndarray, Any]:
    y, positions = im2col.max_pool2d_with_positions(x, *_window(layer), layout=layer.layout)
    return y, (x.shape, positions)


def _pool_gradient(layer: Any, kept: Any, dy: np.ndarray, need_input_grad: bool) -> np.ndarray:
    input_size, positions = kept
    return im2col.max_pool2d_grad(input_size, positions, dy, *_window(layer), layout=layer.layout)


def _window(layer: Any) -> tuple[Any, Any, Any, Any]:
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation


def _linear(layer: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x @ layer.weight.data.T + layer.bias.data, x


def _linear_gradients(layer: Any, x: np.ndarray, dy: np.ndarray, need_input_grad: bool) -> np.ndarray:
    layer.weight.grad, layer.bias.grad = dy.T @ x, dy.sum(axis=0)
    return dy @ layer.weight.data


def _relu(layer: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y = naive.relu(x)
    return y, y


# layer: its output and what backward needs; from these and dy its gradients, that of the input returned
PLAIN: dict[type[Module], tuple[Callable[..., tuple[np.ndarray, Any]], Callable[..., Any]]] = {
    Conv2d: (_conv, _conv_gradients),
    MaxPool2d: (_pool, _pool_gradient),
    Linear: (_linear, _linear_gradients),
    ReLU: (_relu, lambda layer, y, dy, need_input_grad: naive.relu_grad(y, dy)),
    Flatten: (lambda layer, x: (x.reshape(len(x), -1), x.shape),
              lambda layer, shape, dy, need_input_grad: dy.reshape(shape)),
}


def prepare_torch(case: TrainingCase, a: SimpleNamespace) -> Prepared:
    """PyTorch eager with its own layers, loss and optimizer; NHWC is its channels-last memory format."""
    import torch

    network: Any = torch.nn.Sequential(*(_torch_layer(torch.nn, layer, case.layout) for layer in case.network()))
    state = {name: torch.from_numpy(value) for name, value in case.network().state_dict().items()}
    network.to(getattr(torch, case.dtype)).load_state_dict(state)
    x, labels = torch.from_numpy(a.x), torch.from_numpy(a.labels)
    if case.layout == "NHWC":
        network.to(memory_format=torch.channels_last)
        x = x.permute(0, 3, 1, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)

    def call() -> Any:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
        return network

    def array(trained: Any) -> np.ndarray:
        return torch.cat([parameter.grad.contiguous().ravel() for parameter in trained.parameters()]).numpy()

    return call, array


def _torch_layer(nn: Any, layer: Module, layout: str) -> Any:
    """PyTorch's layer of the same name; flattening follows the memory order, as ours does."""

    class MemoryOrder(nn.Module):
        def forward(self, x: Any) -> Any:
            return (x.permute(0, 2, 3, 1) if layout == "NHWC" and x.ndim == 4 else x).flatten(1)

    arguments: dict[str, tuple[str, ...]] = {
        "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
        "MaxPool2d": ("kernel_size", "stride", "padding", "dilation"),
        "Linear": ("in_features", "out_features"),
        "ReLU": (),
        "Flatten": (),
    }
    kind = type(layer).__name__
    made = MemoryOrder if kind == "Flatten" else getattr(nn, kind)
    return made(*(getattr(layer, name) for name in arguments[kind]))
