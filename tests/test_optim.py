"""Optimisers and schedules against torch, their state to the last bit, and their errors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fastconv
from fastconv import nn, optim
from tests.tolerance import assert_close

STEPS = 7
RULES = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.05}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}),
]
SHAPES = [(3, 4), (5,)]


def parameters(dtype=np.float64, seed: int = 0) -> list[nn.Parameter]:
    rng = np.random.default_rng(seed)
    return [nn.Parameter(rng.uniform(-1, 1, shape).astype(dtype)) for shape in SHAPES]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    rng = np.random.default_rng(100 + step)
    for parameter in params:
        parameter.grad = rng.uniform(-1, 1, parameter.shape).astype(parameter.dtype)


@pytest.mark.parametrize("name, options", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rules_are_torchs(name, options, dtype):
    torch = pytest.importorskip("torch")
    params = parameters(dtype)
    twins = [torch.nn.Parameter(torch.tensor(parameter.data)) for parameter in params]
    optimizer, twin = getattr(optim, name)(params, **options), getattr(torch.optim, name)(twins, **options)
    for step in range(STEPS):
        set_gradients(params, step)
        for parameter, theirs in zip(params, twins):
            theirs.grad = torch.tensor(parameter.grad)
        optimizer.step()
        twin.step()
    # An update has about ten roundings, each relative to a value that no step of these can bring above 8.
    for parameter, theirs in zip(params, twins):
        assert_close(parameter.data, theirs.detach().numpy(), 10 * STEPS, np.full(1, 8, dtype))


def test_gradient_descent_is_w_minus_lr_dw():
    parameter = nn.Parameter(np.array([1.0, 2.0]))
    parameter.grad = np.array([4.0, -8.0])
    optim.SGD([parameter], lr=0.25).step()
    assert_array_equal(parameter.data, [0.0, 4.0])


@pytest.mark.parametrize("name, options", RULES)
def test_the_same_bits_for_any_number_of_threads(name, options, rng):
    size = 3 * (1 << 14) + 5
    start, gradients = (rng.standard_normal(size).astype(np.float32), rng.standard_normal((3, size)).astype(np.float32))
    results = []
    for count in (1, 2):
        parameter = nn.Parameter(start.copy())
        optimizer = getattr(optim, name)([parameter], **options)
        with fastconv.threads(count):
            for parameter.grad in gradients:
                optimizer.step()
        results.append(parameter.data)
    assert_array_equal(*results)


@pytest.mark.parametrize("name, options", RULES)
def test_state_restores_to_the_last_bit(name, options):
    params = parameters(np.float32)
    optimizer = getattr(optim, name)(params, **options)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    state = optimizer.state_dict()
    copies = [nn.Parameter(parameter.data.copy()) for parameter in params]
    other = getattr(optim, name)(copies, lr=0.5)
    other.load_state_dict({key: value.copy() for key, value in state.items()})
    assert all(isinstance(value, np.ndarray) for value in state.values())
    for step in range(3, 6):
        for group, one in ((params, optimizer), (copies, other)):
            set_gradients(group, step)
            one.step()
    for parameter, copy in zip(params, copies):
        assert_array_equal(parameter.data, copy.data)
    assert list(other.state_dict()) == list(optimizer.state_dict())


def test_a_state_is_a_copy_and_names_what_it_holds():
    params = parameters()
    optimizer = optim.Adam(params)
    set_gradients(params[:1], 0)
    optimizer.step()
    state = optimizer.state_dict()
    settings = [f"groups.0.{name}" for name in ("lr", "betas", "eps", "weight_decay")]
    assert list(state) == [*settings, "0.exp_avg", "0.exp_avg_sq", "0.step"]
    before = state["0.exp_avg"].copy()
    optimizer.step()
    assert_array_equal(state["0.exp_avg"], before)


def test_parameters_without_gradient_stay():
    params = parameters()
    before = [parameter.data.copy() for parameter in params]
    set_gradients(params[:1], 0)
    optimizer = optim.SGD(params, lr=1)
    optimizer.step()
    assert (params[0].data != before[0]).all()
    assert_array_equal(params[1].data, before[1])
    optimizer.zero_grad()
    assert params[0].grad is None


def test_a_strided_gradient_is_read_right():
    parameter = nn.Parameter(np.zeros((2, 3)))
    parameter.grad = np.arange(6.0).reshape(3, 2).T
    optim.SGD([parameter], lr=1).step()
    assert_array_equal(parameter.data, -np.arange(6.0).reshape(3, 2).T)


def test_groups_have_settings_of_their_own():
    weight, bias = parameters()
    optimizer = optim.SGD([{"params": [weight], "weight_decay": 0.5}, {"params": [bias], "lr": 2.0}], lr=1.0)
    weight.data[...], weight.grad = 4, np.ones(weight.shape)
    bias.data[...], bias.grad = 4, np.ones(bias.shape)
    optimizer.step()
    assert_array_equal(weight.data, np.full(weight.shape, 1.0))
    assert_array_equal(bias.data, np.full(bias.shape, 2.0))
    assert optimizer.lr == 1.0
    optimizer.lr = 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_the_weights_of_a_model_change_in_place():
    layer = nn.Linear(2, 1, rng=0)
    weight = layer.weight.data
    layer.weight.grad = np.ones_like(weight)
    before = weight.copy()
    optim.AdamW(layer.parameters()).step()
    assert layer.weight.data is weight
    assert (weight != before).all()


def step_wrong_shape():
    parameter = parameters()[0]
    parameter.grad = np.zeros(2)
    optim.SGD([parameter]).step()


def load(change):
    optimizer = optim.Adam(params := parameters())
    set_gradients(params, 0)
    optimizer.step()
    state = optimizer.state_dict()
    change(state)
    optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: optim.SGD([]), "params must be parameters, or dicts with an entry 'params'"),
        (lambda: optim.SGD([np.zeros(3)]), "params must be parameters, or dicts"),
        (lambda: optim.SGD([*(p := parameters()), p[0]]), "params must name each parameter once"),
        (lambda: optim.SGD(parameters(), lr=-1), "lr must be a non-negative number, got -1"),
        (lambda: optim.SGD(parameters(), lr=float("nan")), "lr must be a non-negative number, got nan"),
        (lambda: optim.SGD(parameters(), nesterov=True), "nesterov needs a momentum above 0 and no dampening"),
        (
            lambda: optim.Adam(parameters(), betas=(0.9, 1.0)),
            r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)",
        ),
        (
            lambda: optim.SGD([{"params": parameters(), "rate": 1}]),
            "a parameter group may set lr, momentum, .*, got rate",
        ),
        (step_wrong_shape, r"grad must have shape \(3, 4\) as its parameter, got \(2,\)"),
        (lambda: load(lambda state: state.pop("groups.0.lr")), r"does not fit this Adam: missing \['groups.0.lr'\]"),
        (lambda: load(lambda state: state.pop("1.step")), r"missing \['1.step'\], unexpected \[\]"),
        (lambda: load(lambda state: state.update({"groups.0.lr": np.array(-1.0)})), "lr must be a non-negative number"),
        (lambda: load(lambda state: state.update({"9.step": 0})), r"unexpected \['9.step'\]"),
        (lambda: load(lambda state: state.update({"0.exp_avg": np.zeros(2)})), r"0.exp_avg must have shape \(3, 4\)"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


SCHEDULES = [
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("CosineAnnealingLR", {"T_max": 8, "eta_min": 0.01}),
    ("OneCycleLR", {"max_lr": 0.4, "total_steps": 12}),
    ("OneCycleLR", {"max_lr": 0.4, "total_steps": 12, "pct_start": 0.5, "div_factor": 10, "final_div_factor": 100}),
]


@pytest.mark.parametrize("name, options", SCHEDULES)
def test_schedules_are_torchs(name, options):
    torch = pytest.importorskip("torch")
    from torch.optim import lr_scheduler

    optimizer = optim.SGD(parameters(), lr=0.2)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    schedule = getattr(optim, name)(optimizer, **options)
    twin = getattr(lr_scheduler, name)(theirs, **options, **{"cycle_momentum": False} if "max_lr" in options else {})
    for _ in range(11):
        assert_close(np.array(schedule.get_last_lr()), np.array(twin.get_last_lr()), 12, np.ones(1))
        theirs.step()
        schedule.step()
        twin.step()


@pytest.mark.parametrize("name, options", SCHEDULES)
def test_schedules_continue_from_their_state(name, options):
    first = optim.SGD(parameters(), lr=0.2)
    schedule = getattr(optim, name)(first, **options)
    for _ in range(5):
        schedule.step()
    second = optim.SGD(parameters(), lr=0.9)
    other = getattr(optim, name)(second, **options)
    other.load_state_dict(schedule.state_dict())
    for _ in range(3):
        assert schedule.get_last_lr() == other.get_last_lr() == [second.lr]
        schedule.step()
        other.step()


def test_a_cycle_of_few_steps_and_its_end():
    schedule = optim.OneCycleLR(optim.SGD(parameters()), max_lr=1.0, total_steps=2)
    assert schedule.get_last_lr() == [1.0]
    schedule.step()
    assert_close(np.array(schedule.get_last_lr()), np.array([1 / 25e4]), 4, np.ones(1))
    schedule.step()
    with pytest.raises(ValueError, match="this schedule has 2 steps, got step 3"):
        schedule.step()
    for call, message in (
        (lambda o: optim.OneCycleLR(o, 1, 5, pct_start=2), "pct_start must be a share from 0 to 1"),
        (lambda o: optim.StepLR(o, 0), "step_size must be a positive integer, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call(optim.SGD(parameters()))
