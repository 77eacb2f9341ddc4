"""Layers, losses and containers: torch.nn's names on NumPy arrays, with an explicit backward pass.

model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5408, 10))
criterion = nn.CrossEntropyLoss()
loss = criterion(model(images), labels)
model.backward(criterion.backward(), need_input_grad=False)   # fills .grad of every parameter
"""

from fastconv.nn import models
from fastconv.nn.activation import Dropout, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from fastconv.nn.container import Residual, Sequential
from fastconv.nn.conv import Conv2d, ConvTranspose2d
from fastconv.nn.frozen import Frozen, freeze
from fastconv.nn.linear import Flatten, Linear
from fastconv.nn.loss import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, MSELoss
from fastconv.nn.module import Module, Parameter, Pointwise
from fastconv.nn.norm import BatchNorm2d
from fastconv.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "Frozen",
    "LeakyReLU",
    "Linear",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "Parameter",
    "Pointwise",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "freeze",
    "models",
]
