"""Sizes, counts, receptive fields and the summary table, against worked examples and against torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastconv import analysis, nn
from fastconv.nn import models

DIGITS = (1, 1, 28, 28)


def test_sizes_of_the_digits_network():
    assert analysis.conv_output_size(28, 3) == 26
    assert analysis.pool_output_size(26, 2) == 13
    assert analysis.conv_output_size(13, 3) == 11
    assert analysis.pool_output_size(11, 2) == 5
    assert analysis.conv_output_size((28, 20), (3, 5), 2, 1) == (14, 9)


@pytest.mark.parametrize(
    "size, kernel, stride, padding, dilation", list(itertools.product((5, 8), (1, 2, 3), (1, 2, 3), (0, 1), (1, 2)))
)
def test_sizes_equal_torchs(size, kernel, stride, padding, dilation):
    torch = pytest.importorskip("torch")
    x = torch.zeros(1, 1, size, size)
    y = torch.nn.functional.conv2d(x, torch.zeros(1, 1, kernel, kernel), None, stride, padding, dilation)
    assert analysis.conv_output_size((size, size), kernel, stride, padding, dilation) == tuple(y.shape[2:])
    if 2 * padding <= kernel:
        for ceil_mode in (False, True):
            y = torch.nn.functional.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
            assert analysis.pool_output_size((size, size), kernel, stride, padding, dilation, ceil_mode) == tuple(
                y.shape[2:]
            )


@pytest.mark.parametrize("kernel, dilation", [(2, 1), (3, 1), (4, 2)])
def test_named_and_uneven_padding(kernel, dilation):
    assert analysis.conv_output_size((7, 9), kernel, padding="same", dilation=dilation) == (7, 9)
    valid = analysis.conv_output_size((7, 9), kernel, padding="valid", dilation=dilation)
    assert valid == analysis.conv_output_size((7, 9), kernel, dilation=dilation)
    uneven = analysis.conv_output_size((7, 9), kernel, padding=((1, 0), (2, 1)), dilation=dilation)
    assert uneven == (valid[0] + 1, valid[1] + 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: analysis.conv_output_size(2, 3), "kernel of 3x3 .* is larger than the padded input of 2x2"),
        (lambda: analysis.conv_output_size(5, 3, stride=0), "stride must be a positive integer"),
        (lambda: analysis.conv_output_size(5, 3, padding="full"), "padding must be .*got 'full'"),
        (lambda: analysis.summary(models.digits_cnn(), 28), r"input_size must be a shape with the batch first.*got 28"),
        (lambda: analysis.summary(models.digits_cnn(), (0, 1, 28, 28)), "input_size must be a positive integer, got 0"),
        (
            lambda: analysis.summary(models.digits_cnn(), (1, 3, 28, 28)),
            r"takes 1 input channels, got input of shape \(1, 3, 28, 28\)",
        ),
        (
            lambda: analysis.layers(nn.Residual(nn.MaxPool2d(2)), (1, 2, 4, 4)),
            r"the paths of the model \(Residual\) must end in one shape, got \(1, 2, 2, 2\) and \(1, 2, 4, 4\)",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_counts_of_the_digits_network():
    model = models.digits_cnn()
    assert analysis.parameter_count(model) == 225_034
    products = 26 * 26 * 32 * 9 + 11 * 11 * 64 * 32 * 9 + 1600 * 128 + 128 * 10
    assert analysis.multiply_adds(model, DIGITS) == products == model.multiply_adds(DIGITS)
    assert analysis.multiply_adds(model, (7, 1, 28, 28)) == 7 * products


def test_counts_of_grouped_and_transposed_convolutions():
    grouped = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)
    assert analysis.parameter_count(grouped) == 12 * 8 * 9 // 4 + 12
    assert grouped.multiply_adds((2, 8, 9, 9)) == 2 * 12 * 5 * 5 * 2 * 9
    transposed = nn.ConvTranspose2d(8, 12, 3, stride=2, groups=4)
    assert transposed.multiply_adds((2, 8, 5, 5)) == 2 * 8 * 5 * 5 * 3 * 9


def test_receptive_fields_of_the_digits_network():
    found = [(layer.name, layer.receptive_field, layer.jump) for layer in analysis.receptive_field(models.digits_cnn())]
    assert found == [
        (str(place), (size, size), (jump, jump))
        for place, (size, jump) in enumerate([(3, 1), (3, 1), (4, 2), (8, 2), (8, 2), (10, 4)])
    ]


def test_receptive_field_is_what_an_output_sees(rng):
    """The gradient of one output is zero outside a window of that size."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, (3, 2), stride=2, dilation=(1, 2), dtype=np.float64, rng=0),
        nn.AvgPool2d((2, 3), stride=1),
        nn.Conv2d(2, 1, 3, dtype=np.float64, rng=0),
    )
    x = rng.uniform(1, 2, (1, 1, 24, 24))
    y = model(x)
    dy = np.zeros_like(y)
    dy[0, 0, 1, 1] = 1
    seen = model.backward(dy)[0, 0] != 0
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    last = analysis.receptive_field(model)[-1]
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == last.receptive_field == (9, 11)
    assert (rows[0], columns[0]) == last.jump == (2, 2)


def test_paths_side_by_side_see_what_the_wider_one_sees():
    model = nn.Sequential(nn.Residual(nn.Conv2d(2, 2, 3, padding=1)), nn.Conv2d(2, 2, 3))
    assert [layer.receptive_field for layer in analysis.receptive_field(model)] == [(3, 3), (5, 5)]
    model = nn.Sequential(nn.Residual(nn.AdaptiveAvgPool2d((4, 4))), nn.Conv2d(2, 2, 3))
    assert analysis.receptive_field(model) == []
    assert analysis.layers(model, (1, 2, 4, 4))[-1].output_size == (1, 2, 2, 2)


def test_layers_come_in_order_with_their_content():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Residual(nn.Sequential(nn.ReLU()), nn.Conv2d(2, 2, 1)))
    found = [
        (layer.name, layer.depth, layer.input_size, layer.output_size) for layer in analysis.layers(model, (1, 1, 4, 4))
    ]
    assert found == [
        ("", 0, (1, 1, 4, 4), (1, 2, 2, 2)),
        ("0", 1, (1, 1, 4, 4), (1, 2, 2, 2)),
        ("1", 1, (1, 2, 2, 2), (1, 2, 2, 2)),
        ("1.body", 2, (1, 2, 2, 2), (1, 2, 2, 2)),
        ("1.body.0", 3, (1, 2, 2, 2), (1, 2, 2, 2)),
        ("1.shortcut", 2, (1, 2, 2, 2), (1, 2, 2, 2)),
    ]


def test_summary_prints_a_table():
    assert (
        str(analysis.summary(models.digits_cnn(), DIGITS))
        == """\
==============================================================================
Layer           Output shape      Params  Mult-adds  Receptive field    Memory
==============================================================================
Sequential      (1, 10)
  0: Conv2d     (1, 32, 26, 26)      320    194,688                3  84.5 KiB
  1: ReLU       (1, 32, 26, 26)        -          -                3  84.5 KiB
  2: MaxPool2d  (1, 32, 13, 13)        -          -                4  21.1 KiB
  3: Conv2d     (1, 64, 11, 11)   18,496  2,230,272                8  30.2 KiB
  4: ReLU       (1, 64, 11, 11)        -          -                8  30.2 KiB
  5: MaxPool2d  (1, 64, 5, 5)          -          -               10   6.2 KiB
  6: Flatten    (1, 1600)              -          -                -   6.2 KiB
  7: Linear     (1, 128)         204,928    204,800                -     512 B
  8: ReLU       (1, 128)               -          -                -     512 B
  9: Linear     (1, 10)            1,290      1,280                -      40 B
==============================================================================
Parameters: 225,034
Multiply-adds: 2,631,040
Memory: input 3.1 KiB, outputs of all layers 264.2 KiB, parameters 879.0 KiB
=============================================================================="""
    )


def test_summary_counts_bytes_and_names_uneven_fields():
    model = nn.Sequential(nn.Conv2d(1, 1, (3, 5), dtype=np.float64))
    table = analysis.summary(model, (2, 1, 8, 8))
    assert (table.input_bytes, table.activation_bytes, table.parameter_bytes) == (1024, 2 * 6 * 4 * 8, 128)
    assert list(table.rows())[2][4] == "3x5"
    assert analysis.summary(nn.Sequential(nn.ReLU()), (1024, 1024, 1024)).input_bytes == 4 << 30
    assert "4.0 GiB" in str(analysis.summary(nn.Sequential(nn.ReLU()), (1024, 1024, 1024)))


def test_a_layer_that_does_not_tell_is_named():
    class Mystery(nn.Module):
        def __init__(self):
            self.weight = nn.Parameter(np.ones(3))

    model = nn.Sequential(nn.ReLU(), Mystery())
    assert analysis.parameter_count(model) == 3
    with pytest.raises(NotImplementedError, match="Mystery does not say its output size: define output_size"):
        analysis.summary(model, (1, 3))
    with pytest.raises(NotImplementedError, match="Mystery does not say its multiply-adds: define multiply_adds"):
        model[1].multiply_adds((1, 3))


def test_the_cifar_network_beside_its_mlp():
    comparison = analysis.compare_with_mlp(models.cifar_cnn(), (1, 3, 32, 32))
    assert (comparison.model_parameters, comparison.mlp_parameters) == (268_650, 411_146)
    assert round(comparison.percent_fewer, 1) == 34.7
    assert str(comparison) == (
        "268,650 parameters, 34.7 % fewer than the 411,146 of a fully connected 3,072 -> 128 -> 128 -> 10"
    )
    assert "% more than the 7,850" in str(analysis.compare_with_mlp(models.digits_cnn(), DIGITS, hidden=()))
