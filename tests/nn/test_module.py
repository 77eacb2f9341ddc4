"""Parameters, state, modes and names of modules."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fastconv import nn


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, rng=0),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Residual(nn.Sequential(nn.Conv2d(2, 2, 1, rng=1)), nn.Conv2d(2, 2, 1, bias=False, rng=2)),
        nn.Flatten(),
        nn.Dropout(rng=3),
        nn.Linear(18, 3, rng=4),
    )


NAMES = {
    "0.weight": (2, 1, 3, 3),
    "0.bias": (2,),
    "1.weight": (2,),
    "1.bias": (2,),
    "1.running_mean": (2,),
    "1.running_var": (2,),
    "1.num_batches_tracked": (),
    "3.body.0.weight": (2, 2, 1, 1),
    "3.body.0.bias": (2,),
    "3.shortcut.weight": (2, 2, 1, 1),
    "6.weight": (3, 18),
    "6.bias": (3,),
}


def test_state_has_torchs_names_and_shapes(model):
    assert {name: value.shape for name, value in model.state_dict().items()} == NAMES
    buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert [name for name, _ in model.named_parameters()] == [name for name in NAMES if name not in buffers]
    assert model.state_dict()["1.num_batches_tracked"].dtype == np.int64


def test_state_of_a_torch_model_goes_in_and_comes_out():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(18, 3)
    )
    ours = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 3))
    state = theirs.state_dict()
    ours.load_state_dict(state)
    assert list(ours.state_dict()) == list(state)
    for name, value in ours.state_dict().items():
        assert_array_equal(value, state[name].numpy())
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})


def test_loading_copies_values_into_the_same_arrays(model):
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data += 1
    weight = model[0].weight.data
    given = {name: value.astype(np.float64) for name, value in other.state_dict().items()}
    assert model.load_state_dict(given) == ([], [])
    assert model[0].weight.data is weight
    assert weight.dtype == np.float32
    for name, value in other.state_dict().items():
        assert_array_equal(model.state_dict()[name], value)
    given["0.weight"][...] = 7
    assert not (weight == 7).any()


def test_a_state_that_does_not_fit_changes_nothing(model):
    before = {name: value.copy() for name, value in model.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    state["6.weight"] = np.zeros((3, 4), np.float32)
    state["7.weight"] = state.pop("0.bias")
    with pytest.raises(ValueError) as error:
        model.load_state_dict(state)
    assert str(error.value) == (
        "the state dict does not fit this Sequential: 6.weight must have shape (3, 18), "
        "got (3, 4); missing keys: 0.bias; unexpected keys: 7.weight"
    )
    with pytest.raises(ValueError, match=r"6.weight must have shape \(3, 18\), got \(3, 4\)$"):
        model.load_state_dict(state, strict=False)
    with pytest.raises(TypeError, match=r"0\.weight must be an array of numbers, got <U1"):
        model.load_state_dict({"0.weight": np.array("a")}, strict=False)
    for name, value in model.state_dict().items():
        assert_array_equal(value, before[name])


def test_part_of_a_state_loads_when_not_strict(model):
    result = model.load_state_dict({"6.bias": np.ones(3), "head": np.ones(1)}, strict=False)
    assert result.unexpected_keys == ["head"]
    assert result.missing_keys == [name for name in NAMES if name != "6.bias"]
    assert_array_equal(model[6].bias.data, np.ones(3, np.float32))


def test_modes_reach_every_module(model):
    assert model.eval() is model
    assert not any(module.training or module.saving for module in model.modules())
    assert all(module.saving and not module.training for module in model.save_for_backward().modules())
    assert all(module.training and module.saving for module in model.train().modules())


def test_evaluation_forgets_what_training_kept(model):
    x = np.ones((2, 1, 5, 5), np.float32)
    y = model(x)
    model.eval()
    assert all(module._saved is None for module in model.modules())
    with pytest.raises(RuntimeError, match=r"Linear.backward needs a forward call before it: each forward in train"):
        model.backward(y)


def test_one_forward_serves_one_backward():
    layer = nn.Linear(2, 3)
    with pytest.raises(RuntimeError, match="needs a forward call"):
        layer.backward(np.ones((1, 3), np.float32))
    layer(np.ones((1, 2), np.float32))
    layer.backward(np.ones((1, 3), np.float32))
    with pytest.raises(RuntimeError, match="serves one backward"):
        layer.backward(np.ones((1, 3), np.float32))


def test_gradients_accumulate_until_zeroed(rng):
    layer, x = nn.Linear(2, 3, rng=0), rng.integers(-4, 5, (4, 2)).astype(np.float32)
    dy = np.ones((4, 3), np.float32)
    for times in (1, 2, 3):
        layer(x)
        layer.backward(dy)
        assert_array_equal(layer.weight.grad, times * dy.T @ x)
        assert_array_equal(layer.bias.grad, np.full(3, 4 * times))
    layer.zero_grad()
    assert layer.weight.grad is None and layer.bias.grad is None


def test_a_parameter_is_contiguous_and_writable():
    values = np.arange(6.0).reshape(2, 3)
    values.flags.writeable = False
    parameter = nn.Parameter(values)
    parameter.data += 1
    assert_array_equal(values, np.arange(6.0).reshape(2, 3))
    parameter.data = np.asfortranarray(np.ones((2, 3), np.float32))
    assert parameter.data.flags.c_contiguous and parameter.dtype == np.float32
    assert repr(parameter) == "Parameter(shape=(2, 3), dtype=float32)"
    with pytest.raises(TypeError, match=r"data must be float32 or float64, got int64"):
        nn.Parameter(np.arange(3))


def test_a_users_module_needs_no_registration(rng):
    class Scale(nn.Pointwise):
        buffer_names = ("calls",)

        def __init__(self):
            self.factor = nn.Parameter(np.full(1, 2.0))
            self.calls = np.zeros((), np.int64)

        def forward(self, input):
            self.calls += 1
            self._save(input)
            return self.factor.data * input

        def backward(self, grad_output, need_input_grad=True):
            (input,) = self._take_saved()
            self.factor.accumulate((grad_output * input).sum(keepdims=True).reshape(1))
            return self.factor.data * grad_output if need_input_grad else None

    model = nn.Sequential(Scale(), nn.Residual(Scale()))
    assert list(model.state_dict()) == ["0.factor", "0.calls", "1.body.factor", "1.body.calls"]
    x = rng.integers(-4, 5, (2, 2)).astype(np.float64)
    assert_array_equal(model(x), 6 * x)
    assert_array_equal(model.backward(x), 6 * x)
    assert model.output_size(x.shape) == x.shape
    assert_array_equal(model[0].factor.grad, [3 * (x * x).sum()])


def test_a_module_says_what_it_lacks():
    module = nn.Module()
    for call, name in (
        (lambda: module(1), "forward"),
        (lambda: module.backward(np.ones(1)), "backward"),
        (lambda: module.output_size((1,)), "output_size"),
    ):
        with pytest.raises(NotImplementedError, match=f"Module .*{name}"):
            call()


def test_copies_and_pickles_are_independent(model):
    x = np.random.default_rng(0).random((2, 1, 5, 5), np.float32)
    expected = model.eval()(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_array_equal(other(x), expected)
        other[0].weight.data += 1
    assert_array_equal(model(x), expected)


def test_generators_can_be_saved(model):
    generators = dict(model.named_generators())
    assert list(generators) == ["5.rng"]
    state = generators["5.rng"].bit_generator.state
    x = np.ones((2, 18), np.float32)
    first = model[5](x)
    generators["5.rng"].bit_generator.state = state
    assert_array_equal(model[5](x), first)


def test_repr_is_torchs(model):
    assert (
        repr(model)
        == """\
Sequential(
  (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
  (1): BatchNorm2d(2, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (2): ReLU()
  (3): Residual(
    (body): Sequential(
      (0): Conv2d(2, 2, kernel_size=(1, 1), stride=(1, 1))
    )
    (shortcut): Conv2d(2, 2, kernel_size=(1, 1), stride=(1, 1), bias=False)
  )
  (4): Flatten(start_dim=1, end_dim=-1)
  (5): Dropout(p=0.5)
  (6): Linear(in_features=18, out_features=3, bias=True)
)"""
    )
    layer = nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=2, layout="NHWC")
    assert repr(layer) == (
        "Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1), padding='same', dilation=(2, 2), groups=2, layout='NHWC')"
    )
    pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    assert repr(pool) == "MaxPool2d(kernel_size=(3, 3), stride=(2, 2), padding=1, ceil_mode=True)"
