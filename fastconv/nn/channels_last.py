"""A network for images with channels first, turned into the same network with channels last."""

from __future__ import annotations

from fastconv.analysis import Size
from fastconv.nn.activation import Dropout, LeakyReLU, ReLU, Sigmoid, Tanh
from fastconv.nn.container import Residual, Sequential
from fastconv.nn.conv import Conv2d, ConvTranspose2d
from fastconv.nn.linear import Flatten, Linear
from fastconv.nn.module import Module, Parameter
from fastconv.nn.norm import BatchNorm2d
from fastconv.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

OfImages = Conv2d | ConvTranspose2d | BatchNorm2d | MaxPool2d | AvgPool2d | AdaptiveAvgPool2d
Elementwise = ReLU | LeakyReLU | Sigmoid | Tanh | Dropout
Container = Sequential | Residual


def turn(layers: list[Module], input_size: Size) -> bool:
    """Turn ``layers`` in place, where that is known to change no answer but for rounding; whether it did.

    It is known where they make images into features: layers of images, then a Flatten, elementwise layers, and a
    Linear, whose columns are put in the new order.
    """
    kinds = [type(layer) for layer in layers]
    if len(input_size) != 4 or Flatten not in kinds or Linear not in kinds:
        return False
    at, last = kinds.index(Flatten), kinds.index(Linear)
    flatten, linear = layers[at], layers[last]
    assert isinstance(flatten, Flatten) and isinstance(linear, Linear)
    parts = [part for layer in layers[:at] for part in layer.modules() if type(part) not in Container.__args__]
    of_images = [part for part in parts if isinstance(part, OfImages)]
    if not (of_images and all(layer.layout == "NCHW" for layer in of_images)
            and all(type(part) in OfImages.__args__ + Elementwise.__args__ for part in parts)
            and all(kind in Elementwise.__args__ for kind in kinds[at + 1:last])
            and (flatten.start_dim, flatten.end_dim) in ((1, -1), (1, 3)) and layers.count(linear) == 1):
        return False
    size: Size = input_size
    for layer in layers[:at]:
        size = layer.output_size(size)
    for image_layer in of_images:
        image_layer.layout = "NHWC"
    weight = linear.weight.data
    linear.weight = Parameter(weight.reshape(-1, *size[1:]).transpose(0, 2, 3, 1).reshape(weight.shape))
    return True
