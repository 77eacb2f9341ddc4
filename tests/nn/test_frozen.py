"""A frozen network: its answers are the model's own, whatever its layers, threads and calls before."""

from __future__ import annotations

import threading as python_threads

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastconv import nn, threads
from fastconv.nn import models
from tests.conv_cases import LAYOUTS

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}  # of the largest answer: filters are folded, and may be transformed


def images(rng, count, channels, rows, layout="NCHW", dtype="float32"):
    shape = (count, channels, rows, rows) if layout == "NCHW" else (count, rows, rows, channels)
    return rng.standard_normal(shape).astype(dtype)


def trained(model, x):
    """The model after its batch norms have seen a batch, and moved weights."""
    model(x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None:
            module.weight.data[:] = np.linspace(0.5, 1.5, module.num_features)
            module.bias.data[:] = np.linspace(-1, 1, module.num_features)
    return model


def assert_same_answers(model, x):
    """Frozen or not, twice, so that what a call leaves behind changes nothing."""
    frozen = nn.freeze(model, x.shape, x.dtype)
    expected = model.eval()(x)
    other = frozen(-x)
    for _ in range(2):
        found = frozen(x)
        assert found.shape == expected.shape == frozen.output_size and found.dtype == expected.dtype
        assert_allclose(found, expected, atol=TOLERANCE[str(x.dtype)] * abs(expected).max(), rtol=0)
    assert not np.array_equal(other, found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("factory, channels, rows, dtype", [
    (models.digits_cnn, 1, 28, "float64"), (models.cifar_cnn, 3, 32, "float32"), (models.vgg8, 3, 32, "float32"),
    (models.resnet18, 3, 16, "float32")])
def test_models(factory, channels, rows, dtype, layout, rng):
    x = images(rng, 1, channels, rows, layout, dtype)
    model = factory(layout=layout, dtype=dtype, rng=0)
    assert_same_answers(trained(model, images(rng, 4, channels, rows, layout, dtype)), x)


class Halved(nn.Conv2d):
    """A layer of the user's own that is no longer a convolution."""

    def forward(self, input):
        return 0.5 * super().forward(input)


LAYERS = {
    "relu first": lambda: [nn.ReLU(), nn.Conv2d(3, 4, 3)],
    "relu last": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU()],
    "pool": lambda: [nn.MaxPool2d(2)],
    "dilated pool after relu": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2, dilation=2)],
    "norm alone": lambda: [nn.BatchNorm2d(3)],
    "norm without statistics": lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)],
    "norm without weights": lambda: [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)],
    "norm after bias": lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)],
    "average pools": lambda: [nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AdaptiveAvgPool2d((2, None)),
                              nn.AvgPool2d(2, divisor_override=3)],
    "dropout": lambda: [nn.Dropout(0.5), nn.Conv2d(3, 4, 3), nn.Dropout(0.5)],
    "residual": lambda: [nn.Residual(nn.Conv2d(3, 3, 3, padding=1)), nn.ReLU()],
    "residual of relu": lambda: [nn.Residual(nn.ReLU(), nn.ReLU()), nn.Tanh()],
    "residual in residual": lambda: [nn.Residual(nn.Residual(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1)))),
                                     nn.Residual(nn.Sequential(), nn.Conv2d(3, 3, 1))],
    "own layer": lambda: [Halved(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()],
    "other layers": lambda: [nn.ConvTranspose2d(3, 2, 3), nn.LeakyReLU(), nn.AvgPool2d(2), nn.Sigmoid(),
                             nn.Flatten(), nn.Softmax()],
    "grouped, strided, dilated": lambda: [nn.Conv2d(3, 6, 3, 2, groups=3), nn.Conv2d(6, 4, 1),
                                          nn.Conv2d(4, 4, 2, dilation=2)],
    "linear without bias": lambda: [nn.Flatten(), nn.Linear(3 * 12 * 12, 5, bias=False), nn.ReLU(), nn.Linear(5, 7)],
    "wide": lambda: [nn.Conv2d(3, 32, 3, padding="same"), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
                     nn.Conv2d(32, 16, 1)],
    "features": lambda: [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Tanh(),
                         nn.Dropout(0.5), nn.Linear(100, 7), nn.ReLU(), nn.Linear(7, 3)],
    "features of nested layers": lambda: [nn.Sequential(nn.Residual(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid()))),
                                          nn.ConvTranspose2d(3, 2, 3, 2), nn.AvgPool2d(2), nn.Flatten(1, 3),
                                          nn.Linear(288, 3)],
    "features of an own layer": lambda: [nn.Conv2d(3, 4, 3), Halved(4, 2, 3), nn.Flatten(), nn.Linear(128, 3)],
    "relu of what a shortcut reads": lambda: [nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, padding=1), nn.Residual(
        nn.Sequential(nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)))],
}


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, batch, rng):
    model = trained(nn.Sequential(*LAYERS[name]()), images(rng, 4, 3, 12))
    assert_same_answers(model, images(rng, batch, 3, 12))


def test_channels_last_inside(rng):
    """Where the layers are known to give the same features so, and nowhere else."""
    def turned(*layers, size=(2, 3, 12, 12)):
        return nn.freeze(nn.Sequential(*layers), size)._turned

    linear = nn.Linear(144, 144)
    assert turned(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(144, 2))
    assert not turned(nn.Conv2d(3, 1, 1, layout="NHWC"), nn.Flatten(), nn.Linear(144, 2), size=(2, 12, 12, 3))
    assert not turned(nn.Conv2d(3, 1, 1), nn.ReLU())
    assert not turned(nn.Conv2d(3, 1, 1), nn.Flatten())
    assert not turned(nn.Conv2d(3, 1, 1), nn.Flatten(2), nn.Linear(144, 2))
    assert not turned(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Softmax(), nn.Linear(144, 2))
    assert not turned(nn.Conv2d(3, 1, 1), nn.Flatten(), linear, nn.Sequential(linear))
    assert not turned(nn.ReLU(), nn.Flatten(), nn.Linear(432, 2))
    assert not turned(nn.Flatten(), nn.Linear(12, 2), size=(2, 12))


def test_weights_shared_by_two_layers(rng):
    first, second = nn.Linear(144, 144), nn.Linear(144, 144)
    second.weight = first.weight
    assert_same_answers(nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Flatten(), first, second), images(rng, 2, 3, 12))


def test_a_single_layer(rng):
    assert_same_answers(nn.Conv2d(3, 4, 3), images(rng, 2, 3, 9))


def test_relu_is_a_part_of_its_convolution(rng):
    x = images(rng, 1, 32, 16)
    frozen = nn.freeze(nn.Sequential(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.ReLU()), x.shape)
    assert frozen(x).min() == 0
    assert len(frozen._calls) == 1


def test_any_number_of_threads(rng):
    x = images(rng, 1, 3, 32)
    frozen, found = nn.freeze(models.vgg8(rng=0), x.shape), []
    for count in 1, 2, 1:
        with threads(count):
            found.append(frozen(x))
    assert_array_equal(found[0], found[1])
    assert_array_equal(found[0], found[2])


def test_weights_are_copied(rng):
    model, x = models.digits_cnn(rng=0), images(rng, 1, 1, 28)
    frozen = nn.freeze(model, x.shape)
    before = frozen(x)
    assert model.training
    for parameter in model.parameters():
        parameter.data *= 0
    assert_array_equal(frozen(x), before)


def test_answers_are_arrays_of_their_own(rng):
    frozen = nn.freeze(models.digits_cnn(rng=0), (1, 1, 28, 28))
    first, second = images(rng, 1, 1, 28), images(rng, 1, 1, 28)
    answer = frozen(first)
    kept, given = answer.copy(), first.copy()
    frozen(second)
    assert_array_equal(answer, kept)
    assert_array_equal(first, given)


def test_called_from_several_threads(rng):
    frozen = nn.freeze(models.digits_cnn(rng=0), (1, 1, 28, 28))
    inputs = [images(rng, 1, 1, 28) for _ in range(4)]
    expected, found = [frozen(x) for x in inputs], {}

    def work(place):
        found[place] = [frozen(inputs[place]) for _ in range(20)]

    workers = [python_threads.Thread(target=work, args=(place,)) for place in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for place, answers in found.items():
        for answer in answers:
            assert_array_equal(answer, expected[place])


def test_errors(rng):
    model = models.digits_cnn(rng=0)
    frozen = nn.freeze(model, (1, 1, 28, 28))
    assert repr(frozen) == "Frozen((1, 1, 28, 28) to (1, 10), float32)"
    with pytest.raises(ValueError, match=r"input must have shape \(1, 1, 28, 28\) as frozen for, got \(2, 1, 28, 28\)"):
        frozen(images(rng, 2, 1, 28))
    with pytest.raises(TypeError, match="float64"):
        frozen(images(rng, 1, 1, 28, dtype="float64"))
    with pytest.raises(ValueError, match="input_size must be"):
        nn.freeze(model, (0, 1, 28, 28))
    with pytest.raises(ValueError, match="channels"):
        nn.freeze(model, (1, 3, 28, 28))
    with pytest.raises(ValueError, match="input must have 4 dimensions, got 2"):
        nn.freeze(nn.Conv2d(3, 4, 3), (1, 27))
    with pytest.raises(ValueError, match="body and shortcut must give one shape"):
        nn.freeze(nn.Residual(nn.Conv2d(3, 4, 3)), (1, 3, 9, 9))
    with pytest.raises(TypeError, match="parameters are float32"):
        nn.freeze(model, (1, 1, 28, 28), "float64")
    with pytest.raises(TypeError, match="float32 or float64"):
        nn.freeze(model, (1, 1, 28, 28), "int32")
