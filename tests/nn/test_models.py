"""The networks of the worked examples, and the larger ones."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv import analysis, nn, optim
from fastconv.nn import models


def test_digits_cnn_has_the_shapes_of_the_worked_example(rng):
    model = models.digits_cnn(rng=0)
    image = rng.random((1, 1, 28, 28), np.float32)
    shapes = [output.shape[1:] for _, layer, output in model.activations(image) if not isinstance(layer, nn.ReLU)]
    assert shapes == [(32, 26, 26), (32, 13, 13), (64, 11, 11), (64, 5, 5), (1600,), (128,), (10,)]
    weights = [value.size for name, value in model.state_dict().items() if name.endswith("weight")]
    assert weights == [288, 18_432, 204_800, 1_280]
    assert analysis.parameter_count(model) == 225_034


def test_what_the_pool_drops_gets_no_gradient(rng):
    model = models.digits_cnn(rng=0)[3:6]
    features = rng.random((1, 32, 13, 13), np.float32)
    output = model(features)
    relu_gradient = model[2].backward(np.ones_like(output))
    assert relu_gradient.shape == (1, 64, 11, 11)
    assert not relu_gradient[:, :, 10].any() and not relu_gradient[:, :, :, 10].any()
    assert relu_gradient.sum() == (output > 0).sum()  # nor what the ReLU drops, in the same pass


def test_cifar_cnn_has_the_parameters_of_the_worked_example():
    model = models.cifar_cnn(rng=0)
    layers = [layer for layer in model if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert [analysis.parameter_count(layer) for layer in layers] == [448, 4_640, 262_272, 1_290]


@pytest.mark.parametrize(
    "factory, shape, parameters",
    [
        (models.digits_cnn, (2, 1, 28, 28), 225_034),
        (models.cifar_cnn, (2, 3, 32, 32), 268_650),
        (models.tanh_mlp, (2, 1, 28, 28), 784 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10),
        (models.vgg8, (1, 3, 32, 32), 3_249_098),
        (models.resnet18, (1, 3, 32, 32), 11_173_962),
    ],
)
def test_every_model_has_its_size_and_shape(factory, shape, parameters):
    model = factory(rng=0)
    assert analysis.parameter_count(model) == parameters
    assert model.output_size(shape) == (shape[0], 10)


def test_channels_last_is_the_same_network(rng):
    first, last = (models.digits_cnn(layout=layout, dtype=np.float64, rng=0)[:3] for layout in ("NCHW", "NHWC"))
    x = rng.integers(-4, 5, (2, 1, 28, 28)).astype(np.float64)
    for model in (first, last):
        for parameter in model.parameters():
            parameter.data[...] = np.round(4 * parameter.data)
    assert_array_equal(last(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), first(x))


def test_weights_depend_on_the_seed_alone():
    one, same, other = models.cifar_cnn(rng=0), models.cifar_cnn(rng=0), models.cifar_cnn(rng=1)
    for name, value in one.state_dict().items():
        assert_array_equal(value, same.state_dict()[name])
    assert (one[0].weight.data != other[0].weight.data).any()


def test_weights_have_the_variance_of_their_activation():
    mlp = models.tanh_mlp(rng=0)
    conv = models.cifar_cnn(rng=0)
    for weight, variance in (
        (mlp[1].weight.data, 1 / 784),
        (conv[7].weight.data, 2 / 2048),
        (conv[9].weight.data, 1 / 128),
    ):
        spread = np.sqrt(2 / weight.size)  # relative standard deviation of a sample variance
        assert abs(weight.var() / variance - 1) < 5 * spread
    assert not mlp[1].bias.data.any()


@pytest.mark.parametrize(
    "factory, shape",
    [(models.digits_cnn, (8, 1, 28, 28)), (models.cifar_cnn, (8, 3, 32, 32)), (models.tanh_mlp, (8, 1, 28, 28))],
)
def test_one_step_of_gradient_descent_lowers_the_loss(factory, shape, rng):
    model, criterion = factory(rng=0), nn.CrossEntropyLoss()
    x, labels = rng.random(shape, np.float32), rng.integers(0, 10, shape[0])
    before = criterion(model(x), labels)
    assert model.backward(criterion.backward(), need_input_grad=False) is None
    optim.SGD(model.parameters(), lr=0.01).step()
    assert criterion(model(x), labels) < before


def test_a_residual_network_trains(rng):
    """Blocks with batch norm, both shortcuts, and the mean before the last layer, as resnet18 has them, but small."""
    block = models._basic_block(4, 8, 2, layout="NCHW", dtype=np.float32)
    same = models._basic_block(8, 8, 1, layout="NCHW", dtype=np.float32)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, rng=0),
        block,
        nn.ReLU(),
        same,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3, rng=0),
    )
    x, labels, criterion = rng.random((4, 3, 8, 8), np.float32), np.array([0, 1, 2, 0]), nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(6):
        losses.append(criterion(model(x), labels))
        optimizer.zero_grad()
        model.backward(criterion.backward(), need_input_grad=False)
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert int(same.body[1].num_batches_tracked) == 6
