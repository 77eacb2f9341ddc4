"""Optimisers and learning-rate schedules: torch.optim's names and update rules, updates in place.

    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = optim.CosineAnnealingLR(optimizer, T_max=steps)
    ...
    optimizer.step(); schedule.step(); optimizer.zero_grad()

State dicts are flat dicts of arrays, and restore an optimiser or a schedule to the last bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastconv import check
from fastconv.kernels import optim as kernels
from fastconv.kernels.jit import Kernel
from fastconv.nn.module import Parameter

Group = dict[str, Any]
MICROSECONDS = 3e-4  # an element's update takes about that on one core


class Optimizer:
    """Base of the optimisers.

    ``params`` are parameters, or dicts ``{"params": parameters, "lr": ...}`` whose other entries override the
    defaults for that group. ``param_groups`` holds the settings in use, which schedules change.
    """

    def __init__(self, params: Iterable[Parameter] | Iterable[Group], **defaults: Any) -> None:
        given: list[Any] = list(params)
        if given and all(isinstance(entry, Parameter) for entry in given):
            given = [{"params": given}]
        if not given or not all(isinstance(entry, dict) and "params" in entry for entry in given):
            raise ValueError("params must be parameters, or dicts with an entry 'params', and at least one of them")
        self.param_groups = [{**defaults, **group, "params": list(group["params"])} for group in given]
        for group in self.param_groups:
            unknown = group.keys() - defaults.keys() - {"params"}
            if unknown:
                raise ValueError(f"a parameter group may set {', '.join(defaults)}, got {', '.join(sorted(unknown))}")
            self._check_settings(group)
        parameters = [parameter for parameter, _ in _parameters(self.param_groups)]
        if len({id(parameter) for parameter in parameters}) < len(parameters):
            raise ValueError("params must name each parameter once")
        self._state: list[dict[str, np.ndarray]] = [{} for _ in parameters]

    @staticmethod
    def _check_settings(group: Group) -> None:
        """Refuse settings that make no sense."""
        for name, value in group.items():
            if name == "betas":
                if not (isinstance(value, tuple | list) and len(value) == 2 and all(0 <= beta < 1 for beta in value)):
                    raise ValueError(f"betas must be two numbers in [0, 1), got {check.shown(value)}")
            elif name != "params" and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a non-negative number, got {check.shown(value)}")

    def _new_state(self, parameter: Parameter, group: Group) -> dict[str, np.ndarray]:
        """The arrays kept between steps, as they are before the first."""
        return {}

    def _update(self, w: np.ndarray, dw: np.ndarray, state: dict[str, np.ndarray], group: Group) -> None:
        """Change the flat array ``w`` by its gradient ``dw``."""
        raise NotImplementedError

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for (parameter, group), state in zip(_parameters(self.param_groups), self._state):
            if parameter.grad is None:
                continue
            grad = check.array("grad", parameter.grad, dtype=parameter.dtype)
            check.shape("grad", grad, parameter.shape, "as its parameter")
            if not state:
                state.update(self._new_state(parameter, group))
            self._update(parameter.data.reshape(-1), grad.reshape(-1), state, group)

    @property
    def lr(self) -> float:
        """The learning rate of the first group; setting it sets that of every group."""
        return self.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.param_groups:
            group["lr"] = value

    def zero_grad(self) -> None:
        """Forget every gradient: ``.grad`` becomes None."""
        for parameter, _ in _parameters(self.param_groups):
            parameter.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """Arrays named "groups.<group>.<setting>" and "<parameter>.<name>"; copies."""
        settings = {key: np.array(group[name]) for key, group, name in _settings(self.param_groups)}
        arrays = {f"{i}.{name}": value.copy() for i, state in enumerate(self._state) for name, value in state.items()}
        return settings | arrays

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Take over settings and state, as torch does. ValueError, nothing changed, for what does not fit."""
        groups = self._groups_from(state_dict)
        states = [self._new_state(parameter, group) for parameter, group in _parameters(groups)]
        for i, state in enumerate(states):
            if not any(f"{i}.{name}" in state_dict for name in state):
                state.clear()  # this parameter has not been stepped yet
        places = {f"{i}.{name}": array for i, state in enumerate(states) for name, array in state.items()}
        expected = [*(key for key, _, _ in _settings(groups)), *places]
        missing = [key for key in expected if key not in state_dict]
        unexpected = [key for key in state_dict if key not in expected]
        if missing or unexpected:
            raise ValueError(
                f"the state dict does not fit this {type(self).__name__}: missing {missing}, unexpected {unexpected}"
            )
        for key, place in places.items():
            value = np.asarray(state_dict[key])
            check.shape(key, value, place.shape)
            place[...] = value
        self.param_groups, self._state = groups, states

    def _groups_from(self, state_dict: Mapping[str, ArrayLike]) -> list[Group]:
        """The groups with the settings of a state dict, as far as it has them."""
        groups = [dict(group) for group in self.param_groups]
        for key, group, name in list(_settings(groups)):
            if key in state_dict:
                value = np.asarray(state_dict[key]).tolist()
                group[name] = tuple(value) if isinstance(value, list) else value
        for group in groups:
            self._check_settings(group)
        return groups


def _parameters(groups: Iterable[Group]) -> Iterator[tuple[Parameter, Group]]:
    return ((parameter, group) for group in groups for parameter in group["params"])


def _settings(groups: Iterable[Group]) -> Iterator[tuple[str, Group, str]]:
    """(key in a state dict, group, name) of every setting."""
    for number, group in enumerate(groups):
        yield from ((f"groups.{number}.{name}", group, name) for name in group if name != "params")


def _launch(kernel: Kernel, w: np.ndarray, *args: Any) -> None:
    kernel.twin(w.size * MICROSECONDS)(w, *args)


class SGD(Optimizer):
    """Gradient descent: g = grad + weight_decay w; v = momentum v + (1 - dampening) g; w -= lr v.

    v starts as the first g. With ``nesterov`` the step is g + momentum v. As torch.optim.SGD.
    """

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[Group],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError(f"nesterov needs a momentum above 0 and no dampening, got {momentum} and {dampening}")
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
        )

    def _new_state(self, parameter: Parameter, group: Group) -> dict[str, np.ndarray]:
        if not group["momentum"]:
            return {}
        return {"momentum_buffer": np.zeros_like(parameter.data), "step": np.zeros((), np.int64)}

    def _update(self, w: np.ndarray, dw: np.ndarray, state: dict[str, np.ndarray], group: Group) -> None:
        number = w.dtype.type
        lr, decay, momentum = number(group["lr"]), number(group["weight_decay"]), number(group["momentum"])
        if not momentum:
            _launch(kernels.sgd, w, dw, lr, decay)
            return
        fresh = number(1 - group["dampening"] if state["step"] else 1)
        state["step"] += 1
        velocity, nesterov = state["momentum_buffer"].reshape(-1), bool(group["nesterov"])
        _launch(kernels.sgd_momentum, w, velocity, dw, lr, decay, momentum, fresh, nesterov)


class Adam(Optimizer):
    """Adaptive moments (Kingma and Ba 2015); ``weight_decay`` is added to the gradient. As torch's."""

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _new_state(self, parameter: Parameter, group: Group) -> dict[str, np.ndarray]:
        return {
            "exp_avg": np.zeros_like(parameter.data),
            "exp_avg_sq": np.zeros_like(parameter.data),
            "step": np.zeros((), np.int64),
        }

    def _decay(self, group: Group) -> tuple[float, float]:
        """(decay added to the gradient, factor on the weights)."""
        return group["weight_decay"], 1.0

    def _update(self, w: np.ndarray, dw: np.ndarray, state: dict[str, np.ndarray], group: Group) -> None:
        state["step"] += 1
        steps, (beta1, beta2) = int(state["step"]), group["betas"]
        size = group["lr"] / (1 - beta1**steps)
        correction = 1 / math.sqrt(1 - beta2**steps)
        scalars = (size, *self._decay(group), 1 - beta1, beta2, 1 - beta2, correction, group["eps"])
        moments = (state["exp_avg"].reshape(-1), state["exp_avg_sq"].reshape(-1))
        _launch(kernels.adam, w, *moments, dw, *map(w.dtype.type, scalars))


class AdamW(Adam):
    """Adam whose decay shrinks the weights directly (Loshchilov and Hutter 2019). As torch's."""

    def __init__(
        self,
        params: Iterable[Parameter] | Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def _decay(self, group: Group) -> tuple[float, float]:
        return 0.0, 1 - group["lr"] * group["weight_decay"]


class Schedule(ABC):
    """Base of the schedules: the learning rate as a pure function of the number of steps."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.steps = 0
        self._apply()

    @abstractmethod
    def lr_at(self, step: int, base_lr: float) -> float:
        """The learning rate after ``step`` steps of a group that started with ``base_lr``."""

    def step(self) -> None:
        """Count one step, after the optimiser's, and set the learning rate for the next."""
        self.steps += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The learning rates in use, one a parameter group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def _apply(self) -> None:
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = self.lr_at(self.steps, base_lr)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Steps made and the rates it started from."""
        return {"steps": np.array(self.steps), "base_lrs": np.array(self.base_lrs)}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Continue from such a state."""
        self.steps = int(np.asarray(state_dict["steps"]))
        self.base_lrs = np.asarray(state_dict["base_lrs"]).tolist()
        self._apply()


class StepLR(Schedule):
    """Multiplied by ``gamma`` every ``step_size`` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = check.integer("step_size", step_size, 1)
        self.gamma = gamma
        super().__init__(optimizer)

    def lr_at(self, step: int, base_lr: float) -> float:
        return base_lr * self.gamma ** (step // self.step_size)


class CosineAnnealingLR(Schedule):
    """Half a cosine from the first rate to ``eta_min`` over ``T_max`` steps (Loshchilov and Hutter 2017)."""

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = check.integer("T_max", T_max, 1)
        self.eta_min = eta_min
        super().__init__(optimizer)

    def lr_at(self, step: int, base_lr: float) -> float:
        return _cosine(base_lr, self.eta_min, step / self.T_max)


class OneCycleLR(Schedule):
    """Up from ``max_lr/div_factor`` to ``max_lr``, down to 1/(div_factor final_div_factor) of it, on cosines.

    Smith and Topin 2017; as torch's OneCycleLR with ``cycle_momentum=False``. The rise takes ``pct_start`` of
    ``total_steps``; more steps are refused.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        if not 0 <= pct_start <= 1:
            raise ValueError(f"pct_start must be a share from 0 to 1, got {pct_start}")
        self.max_lr = max_lr
        self.total_steps = check.integer("total_steps", total_steps, 1)
        self.rise = pct_start * total_steps - 1
        self.first_lr = max_lr / div_factor
        self.last_lr = self.first_lr / final_div_factor
        super().__init__(optimizer)

    def lr_at(self, step: int, base_lr: float) -> float:
        if step > self.total_steps:
            raise ValueError(f"this schedule has {self.total_steps} steps, got step {step}")
        if step <= self.rise:
            return _cosine(self.first_lr, self.max_lr, step / self.rise if self.rise else 1.0)
        fall = self.total_steps - 1 - max(self.rise, 0)
        return _cosine(self.max_lr, self.last_lr, (step - max(self.rise, 0)) / fall if fall > 0 else 1.0)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
