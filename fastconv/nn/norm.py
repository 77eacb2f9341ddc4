"""Batch normalisation."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike

from fastconv import check, functional, grad
from fastconv.analysis import Size
from fastconv.check import Layout
from fastconv.nn.module import Parameter, Pointwise, arguments


class BatchNorm2d(Pointwise):
    """weight * (input - mean)/sqrt(var + eps) + bias for each channel of (N, C, H, W).

    In training, mean and biased variance are the batch's, and move the running statistics by ``momentum``
    (None: towards the plain average of all batches); in evaluation the running statistics stand in for them.
    Arguments are those of torch.nn.BatchNorm2d.
    """

    buffer_names: ClassVar[tuple[str, ...]] = ("running_mean", "running_var", "num_batches_tracked")

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        layout: Layout = "NCHW",
        dtype: DTypeLike = np.float32,
    ) -> None:
        self.num_features = check.integer("num_features", num_features, 1)
        self.eps = eps
        self.momentum = momentum
        self.layout = check.layout(layout)
        self.weight = Parameter(np.ones(num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, dtype)) if affine else None
        self.running_mean = np.zeros(num_features, dtype) if track_running_stats else None
        self.running_var = np.ones(num_features, dtype) if track_running_stats else None
        self.num_batches_tracked = np.zeros((), np.int64) if track_running_stats else None

    def forward(self, input: np.ndarray) -> np.ndarray:
        weight, bias = self._affine()
        if not self.training and self.running_mean is not None and self.running_var is not None:
            inverse_std = 1 / np.sqrt(self.running_var + self.running_var.dtype.type(self.eps))
            self._save(grad.batch_norm_eval, input, self.running_mean, inverse_std)
            return functional.batch_norm(
                input, self.running_mean, self.running_var, weight, bias, eps=self.eps, layout=self.layout
            )
        statistics = (self.running_mean, self.running_var, self._count_batch(), self.eps)
        output, mean, inverse_std = functional.batch_norm_training(input, weight, bias, *statistics, layout=self.layout)
        self._save(grad.batch_norm, input, mean, inverse_std)
        return output

    def _affine(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        if self.weight is None or self.bias is None:
            return None, None
        return self.weight.data, self.bias.data

    def _count_batch(self) -> float:
        """The share of this batch in the running statistics."""
        if self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked += 1
        return 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        gradient, input, mean, inverse_std = self._take_saved()
        weight, _ = self._affine()
        grad_input, grad_weight, grad_bias = gradient(input, weight, mean, inverse_std, grad_output, layout=self.layout)
        if self.weight is not None and self.bias is not None:
            self.weight.accumulate(grad_weight)
            self.bias.accumulate(grad_bias)
        return grad_input if need_input_grad else None

    def multiply_adds(self, input_size: Size) -> int:
        return 0

    def extra_repr(self) -> str:
        return arguments(
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}, "
            f"track_running_stats={self.running_mean is not None}",
            layout=(self.layout, "NCHW"),
        )
