"""Activation layers and dropout. Each keeps of its forward pass only what its derivative is written in."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fastconv import functional, grad, init
from fastconv.nn.module import Pointwise


class _OfOutput(Pointwise):
    """An activation whose derivative is written in its output, under one name in functional and in grad."""

    name: ClassVar[str]

    def forward(self, input: np.ndarray) -> np.ndarray:
        output = getattr(functional, self.name)(input)
        self._save(output)
        return output

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        (output,) = self._take_saved()
        return getattr(grad, self.name)(output, grad_output) if need_input_grad else None


class ReLU(_OfOutput):
    """max(0, input); derivative 1 where the input is positive, else 0."""

    name = "relu"


class Tanh(_OfOutput):
    """tanh(input); derivative 1 - output^2."""

    name = "tanh"


class Sigmoid(_OfOutput):
    """1/(1 + exp(-input)); derivative output (1 - output)."""

    name = "sigmoid"


class LeakyReLU(Pointwise):
    """input where it is positive, else negative_slope * input."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = float(negative_slope)

    def forward(self, input: np.ndarray) -> np.ndarray:
        self._save(input)
        return functional.leaky_relu(input, self.negative_slope)

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        (input,) = self._take_saved()
        return grad.leaky_relu(input, grad_output, self.negative_slope) if need_input_grad else None

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class Softmax(Pointwise):
    """exp(input) over its sum along ``dim``. Before a CrossEntropyLoss leave it out: that takes logits."""

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, input: np.ndarray) -> np.ndarray:
        output = functional.softmax(input, self.dim)
        self._save(output)
        return output

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        (output,) = self._take_saved()
        return grad.softmax(output, grad_output, self.dim) if need_input_grad else None

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Dropout(Pointwise):
    """In training zeroes each element with probability ``p`` and scales the rest by 1/(1 - p).

    ``rng`` draws the masks; its state is a part of a checkpoint (:meth:`Module.named_generators`).
    """

    def __init__(self, p: float = 0.5, *, rng: init.Rng = None) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability from 0 to 1, got {p}")
        self.p = float(p)
        self.rng = init.generator(rng)

    def forward(self, input: np.ndarray) -> np.ndarray:
        if not self.training or self.p == 0:
            self._save(None)
            return input
        output, mask = functional.dropout_with_mask(input, self.p, rng=self.rng)
        self._save(mask)
        return output

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        (mask,) = self._take_saved()
        if not need_input_grad:
            return None
        return grad_output if mask is None else grad.dropout(mask, grad_output, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
