"""Parameters and the base of every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from fastconv import analysis, check
from fastconv.analysis import Pair, Size


class Parameter:
    """A trained array and its gradient.

    ``grad`` is None until a backward pass, then an array of the shape and dtype of ``data``.
    """

    __slots__ = ("_data", "grad")

    def __init__(self, data: ArrayLike) -> None:
        self.data = data
        self.grad: np.ndarray | None = None

    @property
    def data(self) -> np.ndarray:
        """The values: contiguous and writable, so that an optimiser can change them in place."""
        return self._data

    @data.setter
    def data(self, values: ArrayLike) -> None:
        array = check.array("data", values)
        read_only = isinstance(values, np.ndarray) and not values.flags.writeable
        self._data = array.copy() if read_only else array

    @property
    def shape(self) -> Size:
        return self.data.shape

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    def accumulate(self, grad: np.ndarray) -> None:
        """Add a new gradient array, which becomes ``.grad`` itself where there is none yet."""
        if self.grad is None:
            self.grad = grad
        else:
            self.grad += grad

    def __repr__(self) -> str:
        return f"Parameter(shape={self.shape}, dtype={self.dtype})"


class IncompatibleKeys(NamedTuple):
    """What a state dict and a model do not share."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """A layer, or a model made of layers.

    Its attributes say what it is made of: a :class:`Parameter` is trained, a :class:`Module` is a child, and
    the arrays named in ``buffer_names`` belong to the state without being trained. A subclass defines
    ``forward`` and ``backward``, and for :mod:`fastconv.analysis` also ``output_size``.

    ``forward`` keeps what ``backward`` needs while ``saving`` is true, and each forward serves one backward.
    ``train()`` and ``eval()`` switch saving on and off.
    """

    buffer_names: ClassVar[tuple[str, ...]] = ()
    training: bool = True
    saving: bool = True
    _saved: tuple[Any, ...] | None = None

    def __call__(self, *args: Any) -> Any:
        return self.forward(*args)

    def forward(self, *args: Any) -> Any:
        """The output of the layer for an input."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        """The gradient with respect to the input, given the one with respect to the output.

        Gradients of parameters are added to their ``.grad``. ``need_input_grad=False``, for the first layer
        of a model, saves computing the input gradient: None is returned.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define backward")

    # What backward needs

    def _save(self, *values: Any) -> None:
        if self.saving:
            self._saved = values

    def _take_saved(self) -> tuple[Any, ...]:
        """What the last forward kept; given away, so that its memory returns to the pool early."""
        if self._saved is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward needs a forward call before it: each forward in training "
                "mode, or after save_for_backward(), serves one backward"
            )
        saved, self._saved = self._saved, None
        return saved

    def train(self, mode: bool = True) -> Self:
        """Training mode for this module and all in it, or evaluation mode."""
        for module in self.modules():
            module.training = bool(mode)
        return self.save_for_backward(mode)

    def eval(self) -> Self:
        """Evaluation mode: running statistics, no dropout, nothing saved for a backward pass."""
        return self.train(False)

    def save_for_backward(self, mode: bool = True) -> Self:
        """Save or not whatever the mode: for a frozen batch norm, or input gradients in evaluation."""
        for module in self.modules():
            module.saving = bool(mode)
            if not mode:
                module._saved = None
        return self

    # What it is made of

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the modules right inside this one."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(dotted name, module) of this module, named ``prefix``, and all inside it."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(_join(prefix, name))

    def modules(self) -> Iterator[Module]:
        """This module and all inside it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter) of this module and all inside it."""
        for prefix, module in self.named_modules():
            yield from (
                (_join(prefix, name), value) for name, value in vars(module).items() if isinstance(value, Parameter)
            )

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter of this module and all inside it."""
        return (parameter for _, parameter in self.named_parameters())

    def named_generators(self) -> Iterator[tuple[str, np.random.Generator]]:
        """(dotted name, generator) of all layers that draw random numbers: a part of a checkpoint."""
        for prefix, module in self.named_modules():
            yield from (
                (_join(prefix, name), value)
                for name, value in vars(module).items()
                if isinstance(value, np.random.Generator)
            )

    def zero_grad(self) -> None:
        """Forget every gradient: ``.grad`` becomes None."""
        for parameter in self.parameters():
            parameter.grad = None

    # Its state

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters and buffers under torch's names; the arrays themselves, as torch's: copy to keep."""
        state = {}
        for prefix, module in self.named_modules():
            own = {name: value.data for name, value in vars(module).items() if isinstance(value, Parameter)}
            own |= {name: getattr(module, name) for name in module.buffer_names}
            state.update({_join(prefix, name): value for name, value in own.items() if value is not None})
        return state

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike], strict: bool = True) -> IncompatibleKeys:
        """Copy values in, converted to each parameter's dtype; nothing is changed unless all of it fits.

        Raises ValueError naming missing and unexpected keys (only with ``strict``) and every wrong shape, and
        TypeError for a value that is not made of real numbers.
        """
        own = self.state_dict()
        missing = [name for name in own if name not in state_dict]
        unexpected = [name for name in state_dict if name not in own]
        given = {name: _numbers(name, state_dict[name]) for name in own if name in state_dict}
        problems = [
            f"{name} must have shape {own[name].shape}, got {value.shape}"
            for name, value in given.items()
            if value.shape != own[name].shape
        ]
        if strict and missing:
            problems.append(f"missing keys: {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected keys: {', '.join(unexpected)}")
        if problems:
            raise ValueError(f"the state dict does not fit this {type(self).__name__}: {'; '.join(problems)}")
        for name, value in given.items():
            own[name][...] = value
        return IncompatibleKeys(missing, unexpected)

    # What fastconv.analysis asks for

    def output_size(self, input_size: Size) -> Size:
        """Shape of the output, batch included, for an input of this shape."""
        if self.paths():
            return analysis.output_size(self, input_size)
        raise NotImplementedError(f"{type(self).__name__} does not say its output size: define output_size")

    def multiply_adds(self, input_size: Size) -> int:
        """Multiplications, each with an addition, of the convolutions and matrix products in one forward."""
        if self.paths():
            return analysis.multiply_adds(self, input_size)
        if any(self.parameters()):
            raise NotImplementedError(f"{type(self).__name__} does not say its multiply-adds: define multiply_adds")
        return 0

    def window(self) -> tuple[Pair, Pair] | None:
        """(extent, stride), in rows and columns, of what one output sees; None for all, or unknown."""
        return None

    def paths(self) -> Sequence[Sequence[tuple[str, Module]]]:
        """The chains of named children the input goes through side by side; none for a layer."""
        return ()

    # How it looks

    def extra_repr(self) -> str:
        """The constructor's arguments, for ``repr``."""
        return ""

    def __repr__(self) -> str:
        name, extra = type(self).__name__, self.extra_repr()
        lines = [f"({child_name}): {child!r}".replace("\n", "\n  ") for child_name, child in self.named_children()]
        if not lines:
            return f"{name}({extra})"
        return f"{name}({extra}\n  " + "\n  ".join(lines) + "\n)"


class Pointwise(Module):
    """A layer whose output has its input's shape and sees one pixel."""

    def output_size(self, input_size: Size) -> Size:
        return input_size

    def window(self) -> tuple[Pair, Pair]:
        return (1, 1), (1, 1)


def arguments(*first: str, **values: tuple[Any, ...]) -> str:
    """For ``repr``: what is given first, then ``name=value`` of what is no default: (value, *defaults)."""
    rest = (f"{name}={value!r}" for name, (value, *defaults) in values.items() if value not in defaults)
    return ", ".join((*first, *rest))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _numbers(name: str, value: ArrayLike) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be an array of numbers, got {array.dtype}")
    return array
