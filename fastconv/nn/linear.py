"""Fully connected layers, and the flattening before them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from fastconv import check, functional, grad, init
from fastconv.analysis import Size
from fastconv.nn.module import Module, Parameter


class Linear(Module):
    """input @ weight.T + bias: (N, in_features) to (N, out_features).

    As torch.nn.Linear; ``weight`` is (out_features, in_features), ``bias`` (out_features,).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: init.Rng = None,
    ) -> None:
        self.in_features = check.integer("in_features", in_features, 1)
        self.out_features = check.integer("out_features", out_features, 1)
        self.weight = Parameter(np.empty((out_features, in_features), dtype))
        self.bias = Parameter(np.empty(out_features, dtype)) if bias else None
        self.reset_parameters(rng)

    def reset_parameters(self, rng: init.Rng = None) -> None:
        """Draw torch's default first values again."""
        init.layer_default_(self.weight.data, self._bias_data(), rng=rng)

    def _bias_data(self) -> np.ndarray | None:
        return self.bias.data if self.bias is not None else None

    def forward(self, input: np.ndarray) -> np.ndarray:
        self._save(input)
        return functional.linear(input, self.weight.data, self._bias_data())

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        (input,) = self._take_saved()
        self.weight.accumulate(grad.linear_weight(input, grad_output))
        if self.bias is not None:
            self.bias.accumulate(grad.linear_bias(grad_output))
        return grad.linear_input(self.weight.data, grad_output) if need_input_grad else None

    def output_size(self, input_size: Size) -> Size:
        if input_size[-1] != self.in_features:
            raise ValueError(
                f"the last axis of input must have {self.in_features} features for this Linear, got shape {input_size}"
            )
        return (*input_size[:-1], self.out_features)

    def multiply_adds(self, input_size: Size) -> int:
        return math.prod(input_size) * self.out_features

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Flatten(Module):
    """Axes ``start_dim`` to ``end_dim`` as one, in memory order: (N, C, H, W) to (N, C*H*W)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: np.ndarray) -> np.ndarray:
        self._save(input.shape)
        return input.reshape(self.output_size(input.shape))

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        (input_size,) = self._take_saved()
        return grad_output.reshape(input_size) if need_input_grad else None

    def output_size(self, input_size: Size) -> Size:
        rank = len(input_size)
        start, end = (dim + rank if dim < 0 else dim for dim in (self.start_dim, self.end_dim))
        if not 0 <= start <= end < rank:
            raise ValueError(
                f"start_dim {self.start_dim} and end_dim {self.end_dim} must be axes of the input in "
                f"order, got an input of shape {input_size}"
            )
        return (*input_size[:start], math.prod(input_size[start : end + 1]), *input_size[end + 1 :])

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"
