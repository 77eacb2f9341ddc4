"""First values: variances, fans and gains, the last two against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv import init, nn

SHAPE = (48, 32, 3, 3)
FAN_IN, FAN_OUT = 288, 432


@pytest.mark.parametrize(
    "fill, variance",
    [
        (lambda w: init.he_(w, rng=0), 2 / FAN_IN),
        (lambda w: init.xavier_(w, rng=0), 1 / FAN_IN),
        (lambda w: init.kaiming_normal_(w, rng=0), 2 / FAN_IN),
        (lambda w: init.kaiming_uniform_(w, rng=0), 2 / FAN_IN),
        (lambda w: init.kaiming_uniform_(w, a=math.sqrt(5), rng=0), 1 / (3 * FAN_IN)),
        (lambda w: init.kaiming_normal_(w, mode="fan_out", nonlinearity="tanh", rng=0), (5 / 3) ** 2 / FAN_OUT),
        (lambda w: init.xavier_normal_(w, rng=0), 2 / (FAN_IN + FAN_OUT)),
        (lambda w: init.xavier_uniform_(w, gain=2.0, rng=0), 8 / (FAN_IN + FAN_OUT)),
        (lambda w: init.normal_(w, 0, 3, rng=0), 9),
        (lambda w: init.uniform_(w, -1, 1, rng=0), 1 / 3),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_variance(fill, variance, dtype):
    weight = np.empty(SHAPE, dtype)
    assert fill(weight) is weight
    spread = math.sqrt(2 / weight.size)  # relative standard deviation of a normal sample's variance
    assert abs(weight.var() / variance - 1) < 5 * spread
    assert abs(weight.mean()) < 5 * math.sqrt(variance / weight.size)


def test_fans_and_gains_are_torchs():
    torch = pytest.importorskip("torch")
    for shape in (SHAPE, (5, 7), (4, 6, 3)):
        assert init.fans(shape) == torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    for name in ("linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu"):
        assert init.calculate_gain(name) == torch.nn.init.calculate_gain(name)
    assert init.calculate_gain("leaky_relu", 0.2) == torch.nn.init.calculate_gain("leaky_relu", 0.2)


@pytest.mark.parametrize(
    "make", [lambda rng: nn.Conv2d(4, 6, 3, groups=2, rng=rng), lambda rng: nn.Linear(18, 6, rng=rng)]
)
def test_layers_start_as_torchs_do(make):
    """Uniform on +-1/sqrt(fan_in), weight and bias, both filling their interval."""
    layer, bound = make(0), 1 / math.sqrt(18)
    for values in (layer.weight.data, layer.bias.data):
        assert np.abs(values).max() <= bound
    assert np.abs(layer.weight.data).max() > 0.9 * bound
    first = layer.weight.data.copy()
    layer.reset_parameters(1)
    assert (layer.weight.data != first).any()
    layer.reset_parameters(0)
    assert_array_equal(layer.weight.data, first)


def test_a_transposed_convolution_starts_as_torchs_does():
    torch = pytest.importorskip("torch")
    layer = nn.ConvTranspose2d(8, 12, 3, groups=2, rng=0)
    fan_in, _ = torch.nn.init._calculate_fan_in_and_fan_out(torch.nn.ConvTranspose2d(8, 12, 3, groups=2).weight)
    assert 0.9 / math.sqrt(fan_in) < np.abs(layer.weight.data).max() <= 1 / math.sqrt(fan_in)


def test_one_generator_gives_different_layers_and_a_seed_the_same():
    rng = np.random.default_rng(0)
    one, two = nn.Linear(3, 4, rng=rng), nn.Linear(3, 4, rng=rng)
    assert (one.weight.data != two.weight.data).all()
    assert_array_equal(nn.Linear(3, 4, rng=0).weight.data, one.weight.data)
    assert_array_equal(nn.Linear(3, 4, rng=0, dtype=np.float64).weight.data.astype(np.float32), one.weight.data)
    assert (nn.Linear(3, 4).weight.data != nn.Linear(3, 4).weight.data).any()


def test_constants():
    array = np.empty((2, 3))
    assert_array_equal(init.zeros_(array), np.zeros((2, 3)))
    assert_array_equal(init.ones_(array), np.ones((2, 3)))
    assert_array_equal(init.constant_(array, 2.5), np.full((2, 3), 2.5))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: init.normal_(np.empty(3, np.int64)), TypeError, "must be a float32 or float64 NumPy array.*got int64"),
        (lambda: init.zeros_([1.0]), TypeError, "must be a float32 or float64 NumPy array.*got list"),
        (lambda: init.he_(np.empty(3)), ValueError, r"at least 2 dimensions to have fans, got shape \(3,\)"),
        (
            lambda: init.kaiming_normal_(np.empty((2, 3)), mode="fan"),
            ValueError,
            "mode must be one of 'fan_in', 'fan_out'",
        ),
        (lambda: init.calculate_gain("swish"), ValueError, "nonlinearity must be one of .*got 'swish'"),
        (lambda: init.generator("seed"), TypeError, "rng must be a numpy.random.Generator, an integer seed or None"),
        (lambda: init.generator(True), TypeError, "rng must be a numpy.random.Generator"),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
