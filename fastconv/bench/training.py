"""Whole networks: a training step (forward, cross-entropy, backward, gradient descent with momentum), and inference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from fastconv import analysis, optim
from fastconv.bench.networks import NETWORKS, backward, forward, onnx_call, onnx_model, torch_network
from fastconv.nn import CrossEntropyLoss, Module, freeze
from fastconv.reference import naive
from fastconv.reference.tolerance import bound

LR, MOMENTUM = 0.01, 0.9
CLASSES = 10


@dataclass(frozen=True)
class NetworkCase:
    """One of the NETWORKS on a batch of images."""

    model: str
    images: int
    layout: str = "NCHW"
    dtype: str = "float32"
    op: ClassVar[str]
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

    def layers(self) -> list[analysis.LayerInfo]:
        """Those that multiply."""
        found = analysis.layers(self.network(), self.input_size)
        return [layer for layer in found if layer.is_leaf and layer.multiply_adds]

    @property
    def input_size(self) -> tuple[int, ...]:
        """Shape of the images."""
        channels, rows, columns = NETWORKS[self.model][1]
        return (self.images, *((channels, rows, columns) if self.layout == "NCHW" else (rows, columns, channels)))

    def network(self) -> Any:
        """The network with its first weights, the same in every process."""
        return NETWORKS[self.model][0](layout=self.layout, dtype=self.dtype, rng=0)

    def arrays(self) -> SimpleNamespace:
        """Images x and labels, the same in every process."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal(self.input_size, np.float32).astype(self.dtype, copy=False)
        return SimpleNamespace(x=x, labels=rng.integers(0, CLASSES, self.images))

    def bound(self, expected: np.ndarray) -> float:
        """Errors of all layers add up: each sums over its weights, and their gradients over batch and pixels."""
        terms = sum(layer.multiply_adds // math.prod(layer.output_size) + math.prod(layer.output_size[:-1])
                    for layer in self.layers())
        return bound(terms, expected)

    def for_path(self, path: str) -> Any:
        """Every path runs the whole batch."""
        return self


class TrainingCase(NetworkCase):
    """A training step."""

    op: ClassVar[str] = "training_step"

    @property
    def flops(self) -> int:
        """Useful floating-point operations: each of a layer's gradients takes as many as its forward pass."""
        trained = [layer.multiply_adds for layer in self.layers()]
        return 2 * (3 * sum(trained) - trained[0])  # nobody needs the gradient of the images

    def expected(self) -> np.ndarray:
        """All gradients of the first step, in the matrix form."""
        call, array = im2col_training(self, self.arrays(), 1)
        return array(call())


class InferenceCase(NetworkCase):
    """The logits of images, in evaluation mode."""

    op: ClassVar[str] = "inference"

    @property
    def flops(self) -> int:
        """Useful floating-point operations."""
        return 2 * sum(layer.multiply_adds for layer in self.layers())

    def network(self) -> Any:
        """In evaluation mode."""
        return super().network().eval()

    def expected(self) -> np.ndarray:
        """The logits, in the matrix form."""
        return forward(self.network(), self.arrays().x)[0]


Prepared = tuple[Callable[[], Any], Callable[[Any], np.ndarray]]


def jit_training(case: TrainingCase, a: SimpleNamespace, threads: int) -> Prepared:
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


def jit_inference(case: InferenceCase, a: SimpleNamespace, threads: int) -> Prepared:
    """The layers of fastconv.nn, frozen."""
    network = freeze(case.network(), case.input_size, case.dtype)
    return lambda: network(a.x), np.asarray


def _gradients(network: Module) -> np.ndarray:
    """Of all parameters, one after another."""
    return np.concatenate([parameter.grad.ravel() for parameter in network.parameters() if parameter.grad is not None])


def im2col_training(case: TrainingCase, a: SimpleNamespace, threads: int) -> Prepared:
    """The same layers by the matrix form and plain NumPy."""
    network = case.network()
    velocities = [np.zeros_like(parameter.data) for parameter in network.parameters()]

    def call() -> Module:
        logits, kept = forward(network, a.x)
        backward(network, kept, naive.cross_entropy_grad(logits, a.labels), need_input_grad=False)
        for parameter, velocity in zip(network.parameters(), velocities):
            velocity *= MOMENTUM
            velocity += parameter.grad
            parameter.data -= LR * velocity
        return network

    return call, _gradients


def im2col_inference(case: InferenceCase, a: SimpleNamespace, threads: int) -> Prepared:
    """The same layers by the matrix form and plain NumPy."""
    network = case.network()
    return lambda: forward(network, a.x)[0], np.asarray


def _torch_images(case: NetworkCase, a: SimpleNamespace) -> Any:
    import torch

    x = torch.from_numpy(a.x)
    return x.permute(0, 3, 1, 2) if case.layout == "NHWC" else x


def torch_training(case: TrainingCase, a: SimpleNamespace, threads: int) -> Prepared:
    """PyTorch eager with its own layers, loss and optimizer."""
    import torch

    torch.set_num_threads(threads)
    network = torch_network(case.network(), case.layout, case.dtype)
    x, labels = _torch_images(case, a), torch.from_numpy(a.labels)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)

    def call() -> Any:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
        return network

    def array(trained: Any) -> np.ndarray:
        return torch.cat([parameter.grad.contiguous().ravel() for parameter in trained.parameters()]).numpy()

    return call, array


def torch_inference(
    case: InferenceCase, a: SimpleNamespace, threads: int, compiled: Callable[[Any], Any] = lambda network: network,
) -> Prepared:
    """PyTorch eager, without autograd, unless the network is ``compiled``."""
    import torch

    torch.set_num_threads(threads)
    network, x = compiled(torch_network(case.network(), case.layout, case.dtype).eval()), _torch_images(case, a)

    def call() -> Any:
        with torch.inference_mode():
            return network(x)

    return call, lambda logits: logits.numpy()


def torch_compile_inference(case: InferenceCase, a: SimpleNamespace, threads: int) -> Prepared:
    """PyTorch's compiler, with the weights as constants where it can: with channels last it fails on some networks."""
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = case.layout == "NCHW"
    return torch_inference(case, a, threads, torch.compile)


def onnxruntime_inference(case: InferenceCase, a: SimpleNamespace, threads: int) -> Prepared:
    """The whole network as one graph."""
    return onnx_call(onnx_model(case.network(), case.input_size), a.x, ["y"], threads)


NETWORK_CASES: dict[str, type[TrainingCase] | type[InferenceCase]] = {
    TrainingCase.op: TrainingCase, InferenceCase.op: InferenceCase}
# how each path runs an operation
PREPARE: dict[str, dict[str, Callable[[Any, SimpleNamespace, int], Prepared]]] = {
    "training_step": {"jit": jit_training, "im2col": im2col_training, "torch": torch_training},
    "inference": {"jit": jit_inference, "im2col": im2col_inference, "torch": torch_inference,
                  "torch_compile": torch_compile_inference, "onnxruntime": onnxruntime_inference},
}
