"""Sequential and Residual."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv import grad, nn
from tests.tolerance import assert_close, assert_gradient


def network(dtype=np.float64) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, dtype=dtype, rng=0),
        nn.BatchNorm2d(3, dtype=dtype),
        nn.Tanh(),
        nn.Residual(nn.Sequential(nn.Conv2d(3, 3, 1, dtype=dtype, rng=1), nn.Tanh())),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 4, dtype=dtype, rng=2),
    )


def test_a_whole_network_against_finite_differences(rng):
    model, x = network(), rng.uniform(-1, 1, (2, 2, 4, 4))
    dy = rng.uniform(-1, 1, (2, 4))
    model(x)
    assert_gradient(lambda z: (model(z) * dy).sum(), x, model.backward(dy), rng)


@pytest.mark.parametrize("shortcut", [None, lambda: nn.Conv2d(3, 3, 1, dtype=np.float64, rng=1)])
def test_residual_against_finite_differences(shortcut, rng):
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, dtype=np.float64, rng=0), nn.Tanh())
    model, x = nn.Residual(body, shortcut and shortcut()), rng.uniform(-1, 1, (2, 3, 4, 3))
    y = model(x)
    other = x if shortcut is None else model.shortcut(x)
    assert_close(y, body(x) + other, 1, y)
    dy = rng.uniform(-1, 1, y.shape)
    model(x)
    assert_gradient(lambda z: (model(z) * dy).sum(), x, model.backward(dy), rng)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"kernel_size": 3, "stride": 2, "padding": 1},
                                     {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
                                     {"kernel_size": 3, "dilation": 3, "padding": 1}])
def test_relu_and_max_pool_fuse_to_the_same_bits(options, layout, rng):
    """Ties, whole windows below zero, infinities, NaN, and, with dilation, a window in the padding."""
    x = rng.integers(-3, 3, (2, 8, 8, 8)).astype(np.float32)
    x[0, :4] -= 3
    x[1, 1, 2, 3], x[1, 4, 5, 5], x[1, 6], x[0, 0, 0] = np.nan, np.inf, -np.inf, -0.0
    relu, pool = nn.ReLU(), nn.MaxPool2d(**{"kernel_size": 2, **options}, layout=layout)
    expected = pool(relu(x))
    dy = rng.standard_normal(expected.shape).astype(np.float32)
    dx = relu.backward(pool.backward(dy))
    model = nn.Sequential(relu, pool)
    assert_array_equal(model(x).view(np.int32), expected.view(np.int32))
    assert_array_equal(model.backward(dy).view(np.int32), dx.view(np.int32))
    assert list(model) == [relu, pool]


def one_by_one(layers, x, rng):
    """Output, a gradient of it, and the gradients of input and convolution, without any Sequential."""
    y = x
    for layer in layers:
        y = layer(y)
    dy = rng.integers(-9, 10, y.shape).astype(np.float32)
    dx = dy
    for layer in reversed(layers):
        dx = layer.backward(dx)
    return y, dy, dx, [parameter.grad.copy() for parameter in layers[0].parameters()]


def assert_sequential_gives(layers, x, y, dy, dx, gradients):
    """The same again, and gradients are added to what is there."""
    model = nn.Sequential(*layers)
    assert_array_equal(model(x), y)
    assert_array_equal(model.backward(dy), dx)
    for parameter, once in zip(layers[0].parameters(), gradients):
        assert_array_equal(parameter.grad, 2 * once)


def whole_numbers(conv, rng):
    for parameter in conv.parameters():
        parameter.data[...] = rng.integers(-3, 4, parameter.shape)
    return conv


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "stride": 2, "padding": 1},
                                     {"kernel_size": 3, "stride": 1}])
def test_bias_gradient_of_a_pooled_convolution(options, relu, layout, rng, monkeypatch):
    """Exact on integers, from the windows alone, and added to what is there."""
    conv = whole_numbers(nn.Conv2d(1, 16, 3, layout=layout, rng=0), rng)
    pool = nn.MaxPool2d(**{"kernel_size": 2, **options}, layout=layout)
    layers = [conv, nn.ReLU(), pool] if relu else [conv, pool]
    x = rng.integers(-3, 4, (5, 1, 12, 12) if layout == "NCHW" else (5, 12, 12, 1)).astype(np.float32)
    expected = one_by_one(layers, x, rng)
    monkeypatch.setattr(grad, "conv2d_bias", None)
    assert_sequential_gives(layers, x, *expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("options", [{}, {"ceil_mode": True}, {"stride": 1}])
def test_a_first_layer_that_is_pooled(options, layout, rng):
    """Without the input's gradient; every forward serves one backward."""
    conv = whole_numbers(nn.Conv2d(3, 16, 3, layout=layout, rng=0), rng)
    pool = nn.MaxPool2d(2, **options, layout=layout)
    x = rng.integers(-3, 4, (4, 3, 15, 15) if layout == "NCHW" else (4, 15, 15, 3)).astype(np.float32)
    _, dy, _, gradients = one_by_one([conv, nn.ReLU(), pool], x, rng)
    model = nn.Sequential(conv, nn.ReLU(), pool)
    model(x)
    assert model.backward(dy, need_input_grad=False) is None
    for parameter, once in zip(conv.parameters(), gradients):
        assert_array_equal(parameter.grad, 2 * once)
    with pytest.raises(RuntimeError, match="needs a forward"):
        model.backward(dy, need_input_grad=False)


@pytest.mark.parametrize("bias, layout", [(False, "NCHW"), (True, "NHWC")])
def test_convolutions_that_a_pool_cannot_sum_for(bias, layout, rng):
    """There is no bias, or the pool's channels are others."""
    conv, pool = whole_numbers(nn.Conv2d(2, 8, 3, bias=bias, rng=0), rng), nn.MaxPool2d(2, layout=layout)
    x = rng.integers(-3, 4, (2, 2, 8, 8)).astype(np.float32)
    expected = one_by_one([conv, pool], x, rng)
    assert_sequential_gives([conv, pool], x, *expected)


def test_a_bias_that_is_taken_away(rng):
    conv = nn.Conv2d(2, 8, 3, rng=0)
    model = nn.Sequential(conv, nn.MaxPool2d(2))
    conv.bias = None
    x = rng.standard_normal((2, 2, 8, 8), np.float32)
    assert model.backward(np.ones_like(model(x))).shape == x.shape


def test_relu_and_max_pool_run_in_one_pass(monkeypatch):
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(2))
    for layer in (model[0], model[2]):
        monkeypatch.setattr(layer, "forward", None)
    x = np.arange(-8, 8, dtype=np.float32).reshape(1, 1, 4, 4)
    assert model(x).item() == 7
    assert model.eval()(x).item() == 7
    assert model(-1 - x**2).item() == 0


def test_residual_of_different_shapes_is_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(1, 2, 2, 2\) and \(1, 2, 4, 4\)"):
        nn.Residual(nn.MaxPool2d(2))(np.zeros((1, 2, 4, 4), np.float32))
    with pytest.raises(RuntimeError, match=r"Residual.backward needs a forward"):
        nn.Residual(nn.ReLU()).backward(np.zeros(1, np.float32))


def test_residual_does_not_disturb_what_its_body_keeps(rng):
    model, x = nn.Residual(nn.Tanh()), rng.uniform(-1, 1, (3, 4))
    dy = np.ones_like(x)
    model(x)
    assert_close(model.backward(dy), 2 - np.tanh(x) ** 2, 4, dy)


def test_the_first_trained_layer_need_not_give_an_input_gradient(rng, monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 6, rng=0), nn.ReLU(), nn.Linear(6, 2, rng=1))
    x, dy = rng.uniform(-1, 1, (3, 2, 2, 2)).astype(np.float32), np.ones((3, 2), np.float32)
    model(x)
    assert model.backward(dy).shape == x.shape
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()

    asked, linear_input = [], grad.linear_input
    monkeypatch.setattr(grad, "linear_input", lambda weight, dy: asked.append(weight.shape) or linear_input(weight, dy))
    model(x)
    assert model.backward(dy, need_input_grad=False) is None
    assert asked == [(2, 6)]
    for parameter, gradient in zip(model.parameters(), expected):
        assert_array_equal(parameter.grad, gradient)


def test_without_parameters_nothing_is_computed():
    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    assert model.backward(np.ones(3), need_input_grad=False) is None


def test_it_is_a_sequence_of_layers():
    model = network()
    assert len(model) == 7
    assert isinstance(model[-1], nn.Linear)
    assert [type(layer) for layer in model[:2]] == [nn.Conv2d, nn.BatchNorm2d]
    assert list(model)[2] is model[2]
    assert list(model[5:].state_dict()) == ["6.weight", "6.bias"]
    assert model[5:][1] is model[6]


def test_layers_may_have_names(rng):
    model = nn.Sequential({"hidden": nn.Linear(2, 3, rng=0), "act": nn.Tanh()})
    assert list(model.state_dict()) == ["hidden.weight", "hidden.bias"]
    assert repr(model).splitlines()[1] == "  (hidden): Linear(in_features=2, out_features=3, bias=True)"


def test_activations_are_those_of_the_forward_pass(rng):
    model, x = network(np.float32).eval(), rng.uniform(-1, 1, (2, 2, 4, 4)).astype(np.float32)
    steps = list(model.activations(x))
    assert [(name, layer) for name, layer, _ in steps] == list(model.named_children())
    assert_array_equal(steps[-1][2], model(x))
    assert_array_equal(steps[0][2], model[0](x))


def test_an_empty_sequential_is_the_identity():
    x = np.ones((1, 2), np.float32)
    model = nn.Sequential()
    assert model(x) is x
    assert model.backward(x) is x
    assert repr(model) == "Sequential()"


def test_what_cannot_stand_in_it_is_refused():
    layer = nn.ReLU()
    with pytest.raises(ValueError, match=r"layer 2 \(ReLU\) stands in this Sequential already: make a second one"):
        nn.Sequential(layer, nn.Tanh(), layer)
    with pytest.raises(TypeError, match="layer 1 must be a Module, got builtin_function_or_method"):
        nn.Sequential(nn.ReLU(), max)
