"""Losses: a call gives the loss, ``backward()`` its gradient with respect to the first argument."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fastconv import check, functional, grad, losses
from fastconv.nn.module import Module


class _Loss(Module):
    """A function of (input, target) under one name in functional and in grad."""

    name: ClassVar[str]

    def __init__(self, *, reduction: str = "mean") -> None:
        self.reduction = check.one_of("reduction", reduction, ("mean", "sum", "none"))

    def _options(self) -> dict[str, Any]:
        return {"reduction": self.reduction}

    def forward(self, input: np.ndarray, target: np.ndarray) -> float | np.ndarray:
        """The loss: a float, or one an element with ``reduction="none"``."""
        loss = getattr(functional, self.name)(input, target, **self._options())
        self._save(input, target)
        return loss if self.reduction == "none" else float(loss)

    def backward(self, grad_output: Any = 1.0, need_input_grad: bool = True) -> np.ndarray | None:
        """The gradient with respect to the input, times ``grad_output``."""
        input, target = self._take_saved()
        if not need_input_grad:
            return None
        return getattr(grad, self.name)(input, target, **self._options(), grad_output=grad_output)

    def extra_repr(self) -> str:
        return "" if self.reduction == "mean" else f"reduction={self.reduction!r}"


class _WeightedLoss(_Loss):
    """A loss with ``weight``, which scales its terms."""

    def __init__(self, weight: np.ndarray | None = None, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.weight = weight

    def _options(self) -> dict[str, Any]:
        return {"weight": self.weight, **super()._options()}


class CrossEntropyLoss(_WeightedLoss):
    """-log softmax(input)[target], of logits (N, C) and labels (N,); arguments as torch.nn.CrossEntropyLoss.

    ``weight`` (C,) weighs the classes, and then the mean is the weighted one.
    """

    name = "cross_entropy"

    def __init__(
        self,
        weight: np.ndarray | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, reduction=reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def _options(self) -> dict[str, Any]:
        options = {"label_smoothing": self.label_smoothing, "ignore_index": self.ignore_index}
        return {**super()._options(), **options}

    def forward(self, input: np.ndarray, target: np.ndarray) -> float | np.ndarray:
        """The loss: a float, or one a sample with ``reduction="none"``. Its gradient is made in the same pass."""
        if not self.saving:
            return super().forward(input, target)
        loss, gradient = functional.cross_entropy_with_gradient(input, target, **self._options())
        self._save(gradient)
        return loss if self.reduction == "none" else float(loss)

    def backward(self, grad_output: Any = 1.0, need_input_grad: bool = True) -> np.ndarray | None:
        """The gradient with respect to the input, times ``grad_output``."""
        (gradient,) = self._take_saved()
        if not need_input_grad:
            return None
        shape = gradient.shape[:1] + gradient.shape[2:] if gradient.ndim > 1 else ()
        scale = losses.scaled(grad_output, shape, self.reduction, 1.0)
        if scale.ndim or scale != 1:
            gradient *= np.expand_dims(scale, 1).astype(gradient.dtype) if scale.ndim else gradient.dtype.type(scale)
        return gradient


class BCELoss(_WeightedLoss):
    """-[y log a + (1 - y) log(1 - a)] of probabilities ``input`` and targets in [0, 1] of the same shape."""

    name = "binary_cross_entropy"


class BCEWithLogitsLoss(_WeightedLoss):
    """BCELoss of sigmoid(input), without its loss of precision."""

    name = "binary_cross_entropy_with_logits"


class MSELoss(_Loss):
    """(input - target)^2 of two arrays of the same shape."""

    name = "mse_loss"
