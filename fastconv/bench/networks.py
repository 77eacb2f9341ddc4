"""Networks of fastconv.nn as other libraries run them: plain NumPy, PyTorch, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastconv import recipes
from fastconv.nn import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Residual,
    Sequential,
    models,
)
from fastconv.reference import im2col, naive

NETWORKS: dict[str, tuple[Callable[..., Module], tuple[int, int, int]]] = {  # and the images (C, H, W) they read
    "digits": recipes.MODELS["digits"][:2],
    "cifar": recipes.MODELS["cifar"][:2],
    "vgg8": (models.vgg8, (3, 32, 32)),
    "resnet18": (models.resnet18, (3, 64, 64)),
}


class Plain(NamedTuple):
    """A layer in plain NumPy."""

    forward: Callable[[Any, np.ndarray], tuple[np.ndarray, Any]]  # (layer, x) -> (y, what backward needs)
    backward: Callable[[Any, Any, np.ndarray, bool], Any]  # (layer, kept, dy, need_input_grad) -> dx, which may be None


def forward(layer: Module, x: np.ndarray) -> tuple[np.ndarray, Any]:
    """The layer's output in its mode, and what :func:`backward` needs."""
    return PLAIN[type(layer)].forward(layer, x)


def backward(layer: Module, kept: Any, dy: np.ndarray, need_input_grad: bool = True) -> Any:
    """The gradient of the layer's input, where it is needed; those of its parameters are set."""
    return PLAIN[type(layer)].backward(layer, kept, dy, need_input_grad)


def _conv(layer: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bias = None if layer.bias is None else layer.bias.data
    return im2col.conv2d(x, layer.weight.data, bias, *_moves(layer), layout=layer.layout), x


def _conv_gradients(layer: Any, x: np.ndarray, dy: np.ndarray, need_input_grad: bool) -> Any:
    w, layout, moves = layer.weight.data, layer.layout, _moves(layer)
    layer.weight.grad = im2col.conv2d_weight(x, w.shape, dy, *moves, layout=layout)
    if layer.bias is not None:
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


def _norm(layer: Any, x: np.ndarray) -> tuple[np.ndarray, Any]:
    if not layer.training:
        state = layer.running_mean, layer.running_var, layer.weight.data, layer.bias.data
        return naive.batch_norm(x, *state, eps=layer.eps, layout=layer.layout), None
    y, mean, inverse_std = naive.batch_norm_training(x, layer.weight.data, layer.bias.data, eps=layer.eps,
                                                     layout=layer.layout)
    return y, (x, mean, inverse_std)


def _norm_gradients(layer: Any, kept: Any, dy: np.ndarray, need_input_grad: bool) -> np.ndarray:
    x, mean, inverse_std = kept
    dx, layer.weight.grad, layer.bias.grad = naive.batch_norm_grad(
        x, layer.weight.data, mean, inverse_std, dy, layout=layer.layout)
    return dx


def _chain(layer: Any, x: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    kept = []
    for step in layer:
        x, for_backward = forward(step, x)
        kept.append(for_backward)
    return x, kept


def _chain_gradients(layer: Any, kept: list[Any], dy: Any, need_input_grad: bool) -> Any:
    for place in range(len(layer) - 1, -1, -1):
        dy = backward(layer[place], kept.pop(), dy, need_input_grad or place > 0)
    return dy


def _residual(layer: Any, x: np.ndarray) -> tuple[np.ndarray, Any]:
    y, body = forward(layer.body, x)
    other, shortcut = (x, None) if layer.shortcut is None else forward(layer.shortcut, x)
    return y + other, (body, shortcut)


def _residual_gradients(layer: Any, kept: Any, dy: np.ndarray, need_input_grad: bool) -> Any:
    body, shortcut = kept
    through_body = backward(layer.body, body, dy, need_input_grad)
    other = dy if layer.shortcut is None else backward(layer.shortcut, shortcut, dy, need_input_grad)
    return through_body + other if need_input_grad else None


PLAIN: dict[type[Module], Plain] = {
    Conv2d: Plain(_conv, _conv_gradients),
    MaxPool2d: Plain(_pool, _pool_gradient),
    Linear: Plain(_linear, _linear_gradients),
    ReLU: Plain(_relu, lambda layer, y, dy, need_input_grad: naive.relu_grad(y, dy)),
    Flatten: Plain(lambda layer, x: (x.reshape(len(x), -1), x.shape),
                   lambda layer, shape, dy, need_input_grad: dy.reshape(shape)),
    BatchNorm2d: Plain(_norm, _norm_gradients),
    AdaptiveAvgPool2d: Plain(
        lambda layer, x: (naive.adaptive_avg_pool2d(x, layer.target_size, layout=layer.layout), x.shape),
        lambda layer, shape, dy, need_input_grad: naive.adaptive_avg_pool2d_grad(shape, dy, layout=layer.layout)),
    Sequential: Plain(_chain, _chain_gradients),
    Residual: Plain(_residual, _residual_gradients),
}


def torch_module(layer: Module, layout: str) -> Any:
    """PyTorch's module of the same name and state; flattening follows the memory order, as ours does."""
    from torch import nn

    if isinstance(layer, Sequential):
        return nn.Sequential(*(torch_module(step, layout) for step in layer))
    if isinstance(layer, Residual):
        return _torch_residual(layer, layout)
    if isinstance(layer, Flatten):
        return _torch_flatten(layout)
    arguments: dict[str, tuple[str, ...]] = {
        "Conv2d": ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
        "MaxPool2d": ("kernel_size", "stride", "padding", "dilation"),
        "AdaptiveAvgPool2d": ("target_size",),
        "BatchNorm2d": ("num_features", "eps", "momentum"),
        "Linear": ("in_features", "out_features"),
        "ReLU": (),
    }
    kind = type(layer).__name__
    options = {"bias": getattr(layer, "bias", None) is not None} if kind in ("Conv2d", "Linear") else {}
    return getattr(nn, kind)(*(getattr(layer, name) for name in arguments[kind]), **options)


def _torch_residual(layer: Residual, layout: str) -> Any:
    from torch import nn

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch_module(layer.body, layout)
            self.shortcut = None if layer.shortcut is None else torch_module(layer.shortcut, layout)

        def forward(self, x: Any) -> Any:
            return self.body(x) + (x if self.shortcut is None else self.shortcut(x))

    return Sum()


def _torch_flatten(layout: str) -> Any:
    from torch import nn

    class MemoryOrder(nn.Module):
        def forward(self, x: Any) -> Any:
            return (x.permute(0, 2, 3, 1) if layout == "NHWC" and x.ndim == 4 else x).flatten(1)

    return MemoryOrder()


def torch_network(network: Module, layout: str, dtype: str) -> Any:
    """The network in PyTorch, with the same weights; NHWC is its channels-last memory format."""
    import torch

    made = torch_module(network, layout).to(getattr(torch, dtype))
    made.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in network.state_dict().items()})
    return made.to(memory_format=torch.channels_last) if layout == "NHWC" else made


def onnx_model(network: Module, input_size: tuple[int, ...]) -> Any:
    """The network in evaluation mode as an ONNX model from "x" to "y", NCHW, weights as constants."""
    import onnx
    from onnx import helper

    graph = _OnnxGraph()
    last = graph.add(network, "x")
    graph.node("Identity", [last], output="y")
    made = helper.make_graph(
        graph.nodes, "network", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, input_size)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class _OnnxGraph:
    """Nodes and constants, named by counting."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add a node; the name of its output."""
        from onnx import helper

        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, layer: Any, x: str) -> str:
        """Add a layer that reads ``x``; the name of its output."""
        if isinstance(layer, Sequential):
            for step in layer:
                x = self.add(step, x)
            return x
        if isinstance(layer, Residual):
            return self.node("Add", [self.add(layer.body, x), self.add(layer.shortcut, x) if layer.shortcut else x])
        if isinstance(layer, Conv2d):
            values = [layer.weight.data] + ([] if layer.bias is None else [layer.bias.data])
            return self.node("Conv", [x, *map(self.constant, values)], group=layer.groups, **_onnx_window(layer))
        if isinstance(layer, MaxPool2d):
            return self.node("MaxPool", [x], **_onnx_window(layer))
        if isinstance(layer, BatchNorm2d):
            assert layer.weight and layer.bias
            state = layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var
            return self.node("BatchNormalization", [x, *map(self.constant, state)], epsilon=layer.eps)
        if isinstance(layer, Linear):
            assert layer.bias
            return self.node("Gemm", [x, self.constant(layer.weight.data), self.constant(layer.bias.data)], transB=1)
        plain = {ReLU: "Relu", Flatten: "Flatten", AdaptiveAvgPool2d: "GlobalAveragePool"}
        return self.node(plain[type(layer)], [x])


def _onnx_window(layer: Any) -> dict[str, Any]:
    pads = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,) * 2
    return {"kernel_shape": layer.kernel_size, "strides": layer.stride, "pads": pads * 2, "dilations": layer.dilation}


def onnx_call(model: Any, x: np.ndarray, outputs: Sequence[str], threads: int) -> tuple[Callable[[], Any], Any]:
    """A call of ONNX Runtime with input "x" and outputs bound once, and the array of what it returns."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    for name in outputs:
        binding.bind_output(name)

    def call() -> Any:
        session.run_with_iobinding(binding)
        return binding

    return call, lambda bound: bound.copy_outputs_to_cpu()[0]
