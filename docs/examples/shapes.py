"""Shapes, parameters, receptive field of the CIFAR-10 network, beside an MLP of its kind."""

from fastconv import analysis
from fastconv.nn import models

model = models.cifar_cnn(rng=0)
print(analysis.summary(model, (1, 3, 32, 32)))
print(analysis.compare_with_mlp(model, (1, 3, 32, 32), hidden=(128, 128), classes=10))
