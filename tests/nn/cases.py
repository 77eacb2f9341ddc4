"""One table of layers for all tests of layers: constructor arguments, and the shape of an input in NCHW."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from fastconv import nn


@dataclass(frozen=True)
class Case:
    """A layer that torch.nn knows under the same name and arguments."""

    name: str
    layer: str
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, layout: str = "NCHW", dtype: Any = np.float64) -> nn.Module:
        """The layer of fastconv, with seeded parameters that are no special values."""
        kind = getattr(nn, self.layer)
        extra = {"layout": layout, "dtype": dtype, "rng": 0}
        known = inspect.signature(kind).parameters
        layer = kind(*self.args, **self.options, **{name: extra[name] for name in extra.keys() & known.keys()})
        rng = np.random.default_rng(1)
        for parameter in layer.parameters():
            parameter.data[...] = rng.uniform(0.5, 1.5, parameter.shape) * rng.choice([-1, 1], parameter.shape)
        return layer

    def input(self, rng: np.random.Generator, layout: str = "NCHW") -> np.ndarray:
        """Distinct values around zero, none of them within a step of a kink."""
        size = int(np.prod(self.shape))
        values = rng.permutation(np.linspace(-2, 2, size + size % 2)[:size]).reshape(self.shape)
        return from_nchw(values, layout)


def from_nchw(array: np.ndarray, layout: str) -> np.ndarray:
    """An NCHW array in another layout; arrays of another rank as they are."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if layout == "NHWC" and array.ndim == 4 else array


def to_nchw(array: np.ndarray, layout: str) -> np.ndarray:
    """The inverse of :func:`from_nchw`."""
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if layout == "NHWC" and array.ndim == 4 else array


CASES = [
    Case("conv2d", "Conv2d", (2, 3, 7, 6), (3, 4, 3, 2, 1)),
    Case(
        "conv2d-grouped",
        "Conv2d",
        (2, 4, 6, 5),
        (4, 6, (3, 2)),
        {"padding": "same", "dilation": 2, "groups": 2, "bias": False},
    ),
    Case("conv_transpose2d", "ConvTranspose2d", (2, 3, 4, 5), (3, 4, 3, 2, 1, 1)),
    Case(
        "conv_transpose2d-grouped",
        "ConvTranspose2d",
        (1, 4, 4, 3),
        (4, 2, 2),
        {"groups": 2, "dilation": 2, "bias": False},
    ),
    Case("max_pool2d", "MaxPool2d", (2, 3, 6, 7), (2,)),
    Case("max_pool2d-overlapping", "MaxPool2d", (2, 2, 7, 6), (3, 2, 1), {"ceil_mode": True}),
    Case("avg_pool2d", "AvgPool2d", (2, 2, 7, 6), (3, 2, 1), {"count_include_pad": False, "ceil_mode": True}),
    Case("avg_pool2d-divisor", "AvgPool2d", (2, 2, 4, 4), (2,), {"divisor_override": 3}),
    Case("adaptive_avg_pool2d", "AdaptiveAvgPool2d", (2, 3, 7, 5), ((3, None),)),
    Case("linear", "Linear", (4, 7), (7, 5)),
    Case("linear-no-bias", "Linear", (3, 5), (5, 2), {"bias": False}),
    Case("flatten", "Flatten", (2, 3, 4, 5)),
    Case("flatten-part", "Flatten", (2, 3, 4, 5), (0, 2)),
    Case("relu", "ReLU", (3, 8)),
    Case("leaky_relu", "LeakyReLU", (3, 8), (0.2,)),
    Case("tanh", "Tanh", (3, 8)),
    Case("sigmoid", "Sigmoid", (3, 8)),
    Case("softmax", "Softmax", (3, 8), (1,)),
    Case("batch_norm2d", "BatchNorm2d", (3, 4, 3, 2), (4,)),
    Case("batch_norm2d-plain", "BatchNorm2d", (3, 4, 3, 2), (4, 1e-3, None, False)),
    Case("batch_norm2d-untracked", "BatchNorm2d", (3, 4, 3, 2), (4,), {"track_running_stats": False}),
    Case("dropout", "Dropout", (3, 8), (0.4,)),
]

LAYOUTS = {"Conv2d", "ConvTranspose2d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "BatchNorm2d"}


def parameters(cases: list[Case] = CASES) -> list[Any]:
    """(case, layout) for pytest: both layouts where a layer has them."""
    return [
        pytest.param(case, layout, id=f"{case.name}-{layout}")
        for case in cases
        for layout in (("NCHW", "NHWC") if case.layer in LAYOUTS else ("NCHW",))
    ]
