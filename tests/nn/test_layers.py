"""Every layer, forward and backward: against central differences in float64, and against torch."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv import nn
from tests.nn.cases import CASES, Case, from_nchw, parameters, to_nchw
from tests.tolerance import assert_close, assert_gradient


def reseed(layer: nn.Module) -> None:
    """Let every call draw the same dropout mask."""
    for _, rng in layer.named_generators():
        rng.bit_generator.state = np.random.default_rng(3).bit_generator.state


def run(layer: nn.Module, x: np.ndarray) -> np.ndarray:
    reseed(layer)
    return layer(x)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case, layout", parameters())
def test_gradients_are_those_of_finite_differences(case, layout, training, rng):
    layer, x = case.make(layout), case.input(rng, layout)
    layer.train(training).save_for_backward()
    dy = rng.uniform(-1, 1, run(layer, x).shape)
    dx = layer.backward(dy)
    assert_gradient(lambda z: (run(layer, z) * dy).sum(), x, dx, rng)
    for parameter in layer.parameters():
        before, gradient = parameter.data.copy(), parameter.grad

        def loss(values, parameter=parameter):
            parameter.data[...] = values
            return (run(layer, x) * dy).sum()

        assert_gradient(loss, before, gradient, rng)
        parameter.data[...] = before


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case, layout", parameters([case for case in CASES if case.layer != "Dropout"]))
def test_equals_torch(case, layout, training, rng):
    torch = pytest.importorskip("torch")
    layer, x = case.make(layout), case.input(rng)
    twin = getattr(torch.nn, case.layer)(*case.args, **case.options).double()
    twin.load_state_dict({name: torch.tensor(value) for name, value in layer.state_dict().items()})
    twin.train(training)
    layer.train(training).save_for_backward()
    tx = torch.tensor(x, requires_grad=True)
    ty = twin(tx)
    dy = rng.uniform(-1, 1, ty.shape)
    ty.backward(torch.tensor(dy))
    y = layer(from_nchw(x, layout))
    dx = layer.backward(from_nchw(dy, layout))

    terms, scales = x.size + dy.size, [np.full(1, 4.0), *(parameter.data for parameter in layer.parameters())]
    assert_close(to_nchw(y, layout), ty.detach().numpy(), terms, *scales)
    assert_close(to_nchw(dx, layout), tx.grad.numpy(), terms, *scales)
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad, twin.get_parameter(name).grad.numpy(), terms, *scales)
    for name, buffer in twin.named_buffers():
        assert_close(getattr(layer, name), buffer.numpy(), terms, *scales)


@pytest.mark.parametrize("case, layout", parameters())
def test_output_size_is_that_of_a_forward_pass(case, layout, rng):
    layer, x = case.make(layout), case.input(rng, layout)
    assert layer.output_size(x.shape) == layer(x).shape


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_evaluation_gives_the_same_numbers_whether_or_not_it_saves(case: Case, rng):
    layer, x = case.make(), case.input(rng)
    saved = layer.eval().save_for_backward()(x)
    assert_array_equal(layer.eval()(x), saved)
    with pytest.raises(RuntimeError, match=rf"{case.layer}\.backward needs a forward call"):
        layer.backward(saved)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_input_gradient_can_be_left_out(case: Case, rng):
    layer, x = case.make(), case.input(rng)
    dy = rng.uniform(-1, 1, run(layer, x).shape)
    assert layer.backward(dy) is not None
    gradients = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    run(layer, x)
    assert layer.backward(dy, need_input_grad=False) is None
    for parameter, gradient in zip(layer.parameters(), gradients):
        assert_array_equal(parameter.grad, gradient)


def test_float32_layers_stay_float32(rng):
    for case in CASES:
        layer, x = case.make(dtype=np.float32), case.input(rng).astype(np.float32)
        y = layer(x)
        dx = layer.backward(y)
        kinds = [y.dtype, dx.dtype, *(parameter.grad.dtype for parameter in layer.parameters())]
        assert set(kinds) == {np.dtype(np.float32)}, case.name


def test_uneven_padding(rng):
    layer = nn.Conv2d(2, 3, 3, padding=((1, 0), (2, 1)), dtype=np.float64, rng=0)
    padded = nn.Conv2d(2, 3, 3, dtype=np.float64, rng=0)
    x = rng.integers(-4, 5, (2, 2, 5, 4)).astype(np.float64)
    wide = np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 1)))
    for model in (layer, padded):
        model.weight.data[...] = rng.integers(-4, 5, layer.weight.shape) if model is layer else layer.weight.data
        model.bias.data[...] = 1
    y = layer(x)
    assert_array_equal(y, padded(wide))
    assert layer.output_size(x.shape) == y.shape
    assert_array_equal(layer.backward(y), padded.backward(y)[:, :, 1:, 2:-1])


def test_dropout_keeps_the_mean_and_sends_gradients_where_values_went():
    layer, x = nn.Dropout(0.25, rng=0), np.ones((100, 100), np.float32)
    y = layer(x)
    kept = np.count_nonzero(y)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(kept - 7500) < 5 * np.sqrt(10_000 * 0.25 * 0.75)  # five standard deviations
    assert_array_equal(layer.backward(x), y)
    assert_array_equal(nn.Dropout(0.25, rng=0)(x), y)
    assert layer.eval()(x) is x


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.Conv2d(3, 4, 0), "kernel_size must be a positive integer or a pair of them, got 0"),
        (lambda: nn.Conv2d(3, 4, 3, stride=0), "stride must be a positive integer"),
        (lambda: nn.Conv2d(0, 4, 3), "in_channels must be a positive integer, got 0"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), "padding must be a non-negative integer"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), r"in_channels must be divisible by groups \(2\), got 3"),
        (lambda: nn.ConvTranspose2d(4, 3, 3, groups=2), r"out_channels must be divisible by groups \(2\), got 3"),
        (lambda: nn.Conv2d(3, 4, 3, layout="NCWH"), 'layout must be "NCHW" or "NHWC"'),
        (lambda: nn.MaxPool2d(2, padding=2).output_size((1, 1, 4, 4)), "padding must be at most half of kernel_size"),
        (lambda: nn.Linear(0, 3), "in_features must be a positive integer, got 0"),
        (lambda: nn.Dropout(1.5), "p must be a probability from 0 to 1, got 1.5"),
        (lambda: nn.CrossEntropyLoss(reduction="avg"), "reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
        (lambda: nn.Flatten(3).output_size((1, 2)), "start_dim 3 and end_dim -1 must be axes"),
        (lambda: nn.Linear(3, 2).output_size((1, 4)), "must have 3 features"),
        (lambda: nn.Conv2d(3, 2, 1).output_size((1, 4, 8, 8)), "takes 3 input channels, got input of shape"),
        (lambda: nn.Conv2d(3, 2, 1).output_size((1, 3, 8)), "input_size must be a shape of 4 integers"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
