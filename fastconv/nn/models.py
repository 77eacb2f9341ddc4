"""Networks to start from: each call makes a new model, of logits, with He or Xavier weights and zero biases.

Every factory takes ``rng`` (a Generator, a seed or None), ``dtype`` and, where there are images, ``layout``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastconv import init
from fastconv.check import Layout
from fastconv.nn.activation import ReLU, Tanh
from fastconv.nn.container import Residual, Sequential
from fastconv.nn.conv import Conv2d
from fastconv.nn.linear import Flatten, Linear
from fastconv.nn.module import Module
from fastconv.nn.norm import BatchNorm2d
from fastconv.nn.pool import AdaptiveAvgPool2d, MaxPool2d


def digits_cnn(
    classes: int = 10, *, layout: Layout = "NCHW", dtype: DTypeLike = np.float32, rng: init.Rng = None
) -> Sequential:
    """For 28x28x1 digits: 3x3 convolutions (32, 64), each with ReLU and pool, then 1600-128-10.

    225,034 parameters.
    """
    model = Sequential(
        Conv2d(1, 32, 3, layout=layout, dtype=dtype),
        ReLU(),
        MaxPool2d(2, layout=layout),
        Conv2d(32, 64, 3, layout=layout, dtype=dtype),
        ReLU(),
        MaxPool2d(2, layout=layout),
        Flatten(),
        Linear(1600, 128, dtype=dtype),
        ReLU(),
        Linear(128, classes, dtype=dtype),
    )
    return _initialised(model, init.he_, rng)


def cifar_cnn(
    classes: int = 10, *, layout: Layout = "NCHW", dtype: DTypeLike = np.float32, rng: init.Rng = None
) -> Sequential:
    """For 32x32x3 images: two padded 3x3 convolutions (16, 32) with ReLU and pool, then 2048-128-classes.

    268,650 parameters, 34.7 % fewer than the MLP 3072-128-128-10.
    """
    model = Sequential(
        Conv2d(3, 16, 3, padding=1, layout=layout, dtype=dtype),
        ReLU(),
        MaxPool2d(2, layout=layout),
        Conv2d(16, 32, 3, padding=1, layout=layout, dtype=dtype),
        ReLU(),
        MaxPool2d(2, layout=layout),
        Flatten(),
        Linear(2048, 128, dtype=dtype),
        ReLU(),
        Linear(128, classes, dtype=dtype),
    )
    return _initialised(model, init.he_, rng)


def tanh_mlp(
    inputs: int = 784,
    hidden: Sequence[int] = (128, 128),
    classes: int = 10,
    *,
    dtype: DTypeLike = np.float32,
    rng: init.Rng = None,
) -> Sequential:
    """Fully connected, tanh after each hidden layer, Xavier weights; images of any layout are flattened."""
    layers: list[Module] = [Flatten()]
    for before, after in zip((inputs, *hidden), hidden):
        layers += [Linear(before, after, dtype=dtype), Tanh()]
    layers.append(Linear((inputs, *hidden)[-1], classes, dtype=dtype))
    return _initialised(Sequential(*layers), init.xavier_, rng)


def vgg8(
    classes: int = 10,
    widths: Sequence[int] = (64, 128, 256),
    *,
    layout: Layout = "NCHW",
    dtype: DTypeLike = np.float32,
    rng: init.Rng = None,
) -> Sequential:
    """For 32x32x3 images: three stages of two 3x3 convolutions with batch norm, then two linear layers.

    The manner of Simonyan and Zisserman 2014, cut to size.
    """
    options: dict[str, Any] = {"layout": layout, "dtype": dtype}
    layers: list[Module] = []
    for before, after in zip((3, *widths), widths):
        layers += [
            *_conv_norm(before, after, **options),
            ReLU(),
            *_conv_norm(after, after, **options),
            ReLU(),
            MaxPool2d(2, layout=layout),
        ]
    features = widths[-1] * (32 >> len(widths)) ** 2
    layers += [Flatten(), Linear(features, 512, dtype=dtype), ReLU(), Linear(512, classes, dtype=dtype)]
    return _initialised(Sequential(*layers), init.he_, rng)


def resnet18(
    classes: int = 10,
    channels: int = 3,
    *,
    layout: Layout = "NCHW",
    dtype: DTypeLike = np.float32,
    rng: init.Rng = None,
) -> Sequential:
    """For 32x32 images: a convolution, eight residual blocks (64 to 512 wide), the mean, a linear layer.

    He et al. 2015, with the small stem usual for CIFAR-10. 11,173,962 parameters.
    """
    options: dict[str, Any] = {"layout": layout, "dtype": dtype}
    layers: list[Module] = [*_conv_norm(channels, 64, **options), ReLU()]
    for before, after, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [
            _basic_block(before, after, stride, **options),
            ReLU(),
            _basic_block(after, after, 1, **options),
            ReLU(),
        ]
    layers += [AdaptiveAvgPool2d(1, layout=layout), Flatten(), Linear(512, classes, dtype=dtype)]
    return _initialised(Sequential(*layers), init.he_, rng)


def _basic_block(before: int, after: int, stride: int, **options: Any) -> Residual:
    body = Sequential(
        *_conv_norm(before, after, stride=stride, **options), ReLU(), *_conv_norm(after, after, **options)
    )
    if before == after and stride == 1:
        return Residual(body)
    return Residual(body, Sequential(*_conv_norm(before, after, kernel_size=1, stride=stride, **options)))


def _conv_norm(
    before: int, after: int, *, kernel_size: int = 3, stride: int = 1, layout: Layout, dtype: DTypeLike
) -> tuple[Conv2d, BatchNorm2d]:
    """A convolution that keeps the size at stride 1; no bias, since the batch norm would cancel it."""
    convolution = Conv2d(before, after, kernel_size, stride, kernel_size // 2, bias=False, layout=layout, dtype=dtype)
    return convolution, BatchNorm2d(after, layout=layout, dtype=dtype)


def _initialised(model: Sequential, fill: Callable[..., np.ndarray], rng: init.Rng) -> Sequential:
    """Weights from ``fill``, from Xavier in the last layer, which stands before a softmax; biases zero."""
    rng = init.generator(rng)
    trained = [layer for layer in model.modules() if isinstance(layer, Conv2d | Linear)]
    for layer in trained:
        (init.xavier_ if layer is trained[-1] else fill)(layer.weight.data, rng=rng)
        if layer.bias is not None:
            init.zeros_(layer.bias.data)
    return model
