"""What is verified: every operation at the sizes of a convolution problem, and how exact its result must be.

A convolution takes the problem as it is, a pool its image and window, the others its sizes. Arguments are made
in float64 and NCHW, of values that float32 holds. What sums integers must be exact.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastconv import functional, grad
from fastconv.kernels.plan import ConvProblem
from fastconv.reference import naive

Arguments = dict[str, Any]
Results = tuple[np.ndarray, ...]


class Limit(NamedTuple):
    """A result may be off by 2 eps (terms + 1) scale, as fastconv.reference.tolerance.bound has it."""

    terms: int
    scale: float


EXACT = Limit(0, 0.0)
WINDOW = 2  # rows and columns of the pool of a convolution
CLASS_WEIGHTS = (0.5, 2.0)  # least and greatest


class Sample:
    """Arrays for one problem: integers x, w, b and dy, and real z (x's shape), all (N, C, H, W) or as torch's."""

    def __init__(self, problem: ConvProblem, seed: int = 0) -> None:
        self.problem = problem
        self._rng = np.random.default_rng(seed)
        self.x = self.integers(problem.input_shape())
        self.w = self.integers(problem.weight_shape)
        self.b = self.integers((problem.k,))
        self.dy = self.integers(problem.output_shape())
        self.z = self.reals(problem.input_shape())

    def integers(self, shape: tuple[int, ...]) -> np.ndarray:
        """From -4 to 4: sums of fewer than a million products are exact in float32."""
        return self._rng.integers(-4, 5, shape).astype(np.float64)

    def reals(self, shape: tuple[int, ...]) -> np.ndarray:
        """Normally distributed, as wide as the logits of a trained network."""
        return as_float32(self._rng.normal(scale=3, size=shape))

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        """From ``low`` to ``high``."""
        return as_float32(self._rng.uniform(low, high, shape))

    @property
    def window(self) -> Arguments:
        """How the kernel moves."""
        problem = self.problem
        return {"stride": problem.stride, "padding": _even(problem), "dilation": problem.dilation}

    @property
    def pool(self) -> Arguments:
        """The window of a pool; where it strides it also rounds its output's size up."""
        problem = self.problem
        return {"kernel_size": (problem.r, problem.s), "stride": problem.stride, "padding": _even(problem),
                "ceil_mode": problem.stride != (1, 1)}

    @cached_property
    def positions(self) -> np.ndarray:
        """Where the maxima of the pool stand in their windows."""
        return naive.max_pool2d_with_positions(self.x, **self.pool, dilation=self.problem.dilation)[1]

    @cached_property
    def labels(self) -> np.ndarray:
        """A class for each row of :attr:`logits`; the first is to be ignored."""
        labels = self._rng.integers(0, self.logits.shape[1], len(self.logits))
        labels[0] = -100
        return labels

    @cached_property
    def logits(self) -> np.ndarray:
        """(N*H + 1, K)."""
        return self.reals((self.problem.n * self.problem.h + 1, self.problem.k))


class Operation(NamedTuple):
    """A function of ``module``, what to give to it and to its namesake in the naive reference, and the limits.

    ``limits`` holds one for each result, as far as the results are known.
    """

    module: ModuleType
    name: str
    arguments: Callable[[Sample], Arguments]
    limits: Callable[[Arguments, Results], tuple[Limit, ...]]
    fits: Callable[[ConvProblem], bool] = lambda problem: problem.n > 0
    direction: str = ""  # of the convolution that it runs

    @property
    def label(self) -> str:
        """As a user writes it."""
        return f"grad.{self.name}" if self.module is grad else self.name

    def kernel(self, **arguments: Any) -> Results:
        """What is under test; looked up at every call."""
        return results(getattr(self.module, self.name)(**arguments))

    def takes(self, argument: str) -> bool:
        """Whether the function under test has such an argument."""
        return argument in inspect.signature(getattr(self.module, self.name)).parameters

    def reference(self, **arguments: Any) -> Results:
        """The plain-loop result; gradients end in _grad there where both have one name."""
        names = (f"{self.name}_grad", self.name) if self.module is grad else (self.name,)
        return results(next(getattr(naive, name) for name in names if hasattr(naive, name))(**arguments))


def results(found: Any) -> Results:
    """One or several results as a tuple of arrays."""
    return tuple(map(np.asarray, found if isinstance(found, tuple) else (found,)))


def as_float32(array: np.ndarray) -> np.ndarray:
    """Rounded to float32, in float64."""
    return array.astype(np.float32).astype(np.float64)


def _even(problem: ConvProblem) -> tuple[int, int]:
    """Problem strings know only even padding."""
    return problem.padding[0][0], problem.padding[1][0]


def _largest(*arrays: np.ndarray) -> float:
    return float(np.prod([np.abs(array).max(initial=0) for array in arrays]))


def _exact(arguments: Arguments, found: Results) -> tuple[Limit, ...]:
    return (EXACT,) * len(found)


def _last_bits(arguments: Arguments, found: Results) -> tuple[Limit, ...]:
    """Each element is computed by itself, with a few roundings."""
    return tuple(Limit(1, _largest(result)) for result in found)


# Convolution, its transpose, and the matrix product


def _conv(s: Sample) -> Arguments:
    return {"input": s.x, "weight": s.w, "bias": s.b, **s.window, "groups": s.problem.groups}


def _can_pool_output(problem: ConvProblem) -> bool:
    """There is a window."""
    return problem.n > 0 and min(problem.p, problem.q) >= WINDOW


def _conv_pool(s: Sample) -> Arguments:
    return {**_conv(s), "kernel_size": WINDOW, "relu": True}


def _conv_pool_weight(s: Sample) -> Arguments:
    positions = naive.conv2d_max_pool2d(**_conv_pool(s))[1]
    return {"input": s.x, "weight_size": s.w.shape, "positions": positions,
            "grad_output": s.integers(positions.shape), **s.window, "groups": s.problem.groups, "kernel_size": WINDOW}


def _conv_input(s: Sample) -> Arguments:
    return {"input_size": s.x.shape, "weight": s.w, "grad_output": s.dy, **s.window, "groups": s.problem.groups}


def _conv_weight(s: Sample) -> Arguments:
    return {"input": s.x, "weight_size": s.w.shape, "grad_output": s.dy, **s.window, "groups": s.problem.groups}


def _transposed(s: Sample) -> Arguments:
    """The padding that gives the output the size of the problem's input."""
    p = s.problem
    sizes = zip((p.h, p.w), (p.p, p.q), (p.r, p.s), p.stride, _even(p), p.dilation)
    extra = tuple(h - ((o - 1) * u - 2 * pad + d * (r - 1) + 1) for h, o, r, u, pad, d in sizes)
    return {**s.window, "output_padding": extra, "groups": p.groups}


def _conv_transpose(s: Sample) -> Arguments:
    return {"input": s.dy, "weight": s.w, "bias": s.integers((s.problem.c,)), **_transposed(s)}


def _conv_transpose_input(s: Sample) -> Arguments:
    return {"input_size": s.dy.shape, "weight": s.w, "grad_output": s.x, **_transposed(s)}


def _conv_transpose_weight(s: Sample) -> Arguments:
    return {"input": s.dy, "weight_size": s.w.shape, "grad_output": s.x, **_transposed(s)}


def _linear(s: Sample) -> Arguments:
    rows = s.x.reshape(s.problem.n, -1)
    return {"input": rows, "weight": s.integers((s.problem.k, rows.shape[1])), "bias": s.b}


def _linear_gradient(*names: str) -> Callable[[Sample], Arguments]:
    def arguments(s: Sample) -> Arguments:
        forward = _linear(s)
        return {name: forward[name] if name in forward else s.integers((s.problem.n, s.problem.k)) for name in names}

    return arguments


# Pools


def _can_pool(problem: ConvProblem) -> bool:
    """A pool's padding is at most half its window, and no window lies wholly in it."""
    reach = (problem.dilation[axis] * (taps - 1) + 1 for axis, taps in enumerate((problem.r, problem.s)))
    inside = all(size >= span for size, span in zip((problem.h, problem.w), reach))
    return problem.n > 0 and inside and all(
        2 * pad <= taps for pad, taps in zip(_even(problem), (problem.r, problem.s)))


def _max_pool(s: Sample) -> Arguments:
    return {"input": s.x, **s.pool, "dilation": s.problem.dilation}


def _max_pool_indices(s: Sample) -> Arguments:
    return {**_max_pool(s), "return_indices": True}


def _max_pool_gradient(s: Sample) -> Arguments:
    dy = s.integers(s.positions.shape)
    return {"input_size": s.x.shape, "positions": s.positions, "grad_output": dy, **s.pool,
            "dilation": s.problem.dilation}


def _max_pool_bias(s: Sample) -> Arguments:
    positions = naive.max_pool2d_with_positions(s.x, **s.pool)[1]
    nobody = positions.dtype.type(np.prod(s.pool["kernel_size"]))
    positions[..., ::2] = nobody  # as ReLU in the same pass marks what is not positive
    return {"positions": positions, "grad_output": s.integers(positions.shape), "kernel_size": s.pool["kernel_size"]}


def _max_unpool(s: Sample) -> Arguments:
    window = {name: value for name, value in s.pool.items() if name != "ceil_mode"}
    maxima, indices = naive.max_pool2d(s.x, **window, return_indices=True)
    return {"input": maxima, "indices": indices, **window, "output_size": s.x.shape[2:]}


def _max_unpool_gradient(s: Sample) -> Arguments:
    return {"indices": _max_unpool(s)["indices"], "grad_output": s.x}


def _avg_pool(s: Sample) -> Arguments:
    return {"input": s.x, **s.pool}


def _avg_pool_gradient(s: Sample) -> Arguments:
    shape = naive.avg_pool2d(s.x, **s.pool).shape
    return {"input_size": s.x.shape, "grad_output": s.integers(shape), **s.pool}


def _adaptive_size(p: ConvProblem) -> tuple[int, int]:
    return min(p.p, p.h), min(p.q, p.w)


def _adaptive_pool(s: Sample) -> Arguments:
    return {"input": s.x, "output_size": _adaptive_size(s.problem)}


def _adaptive_pool_gradient(s: Sample) -> Arguments:
    shape = (s.problem.n, s.problem.c, *_adaptive_size(s.problem))
    return {"input_size": s.x.shape, "grad_output": s.integers(shape)}


def _mean(arguments: Arguments, found: Results) -> tuple[Limit, ...]:
    """Sums of integers are exact; the division and the few shares of a gradient that meet are not."""
    rows, columns = arguments.get("kernel_size", (1, 1))
    given = arguments["input" if "input" in arguments else "grad_output"]
    return (Limit(rows * columns + 3, _largest(given)),)


# Activations


def _z(s: Sample) -> Arguments:
    return {"input": s.z}


def _z_channels(s: Sample) -> Arguments:
    return {"input": s.z, "dim": 1}


def _from_input(s: Sample) -> Arguments:
    return {"input": s.z, "grad_output": s.reals(s.z.shape)}


def _from_output(function: Callable[..., np.ndarray], **options: Any) -> Callable[[Sample], Arguments]:
    return lambda s: {"output": as_float32(function(s.z, **options)), "grad_output": s.reals(s.z.shape), **options}


def _derivative(arguments: Arguments, found: Results) -> tuple[Limit, ...]:
    """dy times one minus something near one."""
    return (Limit(2, _largest(arguments["grad_output"])),)


def _along_channels(arguments: Arguments, found: Results) -> tuple[Limit, ...]:
    scale = max(1.0, _largest(arguments.get("grad_output", found[0])))
    return (Limit(found[0].shape[1], scale),)


# Batch norm


def _can_normalise(problem: ConvProblem) -> bool:
    """A variance needs two values a channel."""
    return problem.n * problem.h * problem.w > 1


def _statistics(s: Sample) -> Arguments:
    channels = (s.problem.c,)
    return {"running_mean": s.reals(channels), "running_var": s.uniform(0.5, 2, channels)}


def _scale_shift(s: Sample) -> Arguments:
    channels = (s.problem.c,)
    return {"weight": s.uniform(0.5, 2, channels), "bias": s.reals(channels)}


def _batch_norm(s: Sample) -> Arguments:
    return {"input": s.z, **_statistics(s), **_scale_shift(s)}


def _batch_norm_training(s: Sample) -> Arguments:
    return {"input": s.z, **_scale_shift(s), **_statistics(s)}


def _batch_norm_gradient(s: Sample) -> Arguments:
    _, mean, inverse_std = naive.batch_norm_training(s.z)
    return {"input": s.z, "weight": _scale_shift(s)["weight"], "mean": as_float32(mean),
            "inverse_std": as_float32(inverse_std), "grad_output": s.reals(s.z.shape)}


def _normalised(arguments: Arguments, found: Results) -> tuple[Limit, ...]:
    """Output, mean and 1/std: the statistics are sums over all pixels of a channel."""
    x = arguments["input"]
    terms, largest = x.size // x.shape[1], _largest(x)
    inverse_std = _largest(found[2]) if len(found) > 1 else _largest(1 / np.sqrt(arguments["running_var"]))
    output = Limit(terms, max(largest * inverse_std, 1.0) * _largest(arguments["weight"]) + _largest(arguments["bias"]))
    return output, Limit(terms, largest), Limit(terms, inverse_std * max(1.0, largest * inverse_std) ** 2)


def _normalised_gradient(arguments: Arguments, found: Results) -> tuple[Limit, ...]:
    """dx, dweight and dbias."""
    x, dy = arguments["input"], _largest(arguments["grad_output"])
    terms, inverse_std = x.size // x.shape[1], _largest(arguments["inverse_std"])
    xhat = max(1.0, 2 * _largest(x) * inverse_std)
    return (Limit(terms, dy * inverse_std * _largest(arguments["weight"]) * xhat * xhat), Limit(terms, dy * xhat),
            Limit(terms, dy))


# Losses


def _classes(s: Sample) -> Arguments:
    weight = s.uniform(*CLASS_WEIGHTS, (s.problem.k,))
    return {"input": s.logits, "target": s.labels, "weight": weight, "label_smoothing": 0.1}


def _log_probabilities(s: Sample) -> Arguments:
    return {"input": as_float32(naive.log_softmax(s.logits)), "target": s.labels}


def _probabilities(s: Sample) -> Arguments:
    return {"input": s.uniform(0.05, 0.95, s.x.shape), "target": s.uniform(0, 1, s.x.shape)}


def _binary_logits(s: Sample) -> Arguments:
    return {"input": s.z, "target": s.uniform(0, 1, s.x.shape)}


def _values(s: Sample) -> Arguments:
    return {"input": s.z, "target": s.reals(s.z.shape)}


def _loss(function: Callable[..., np.ndarray]) -> Callable[[Arguments, Results], tuple[Limit, ...]]:
    """A mean summed in float64, of losses that each sum over one row at most."""

    def limits(arguments: Arguments, found: Results) -> tuple[Limit, ...]:
        largest = max(_largest(function(**arguments, reduction="none")), _largest(arguments["input"]))
        return (Limit(arguments["input"].shape[1] + 3, largest),)

    return limits


def _loss_gradient(arguments: Arguments, found: Results) -> tuple[Limit, ...]:
    return (Limit(3, _largest(found[0])),)


def _class_gradient(arguments: Arguments, found: Results) -> tuple[Limit, ...]:
    """A difference of probabilities, times at most the largest class weight over the sum of all rows' weights."""
    rows, classes = arguments["input"].shape
    return (Limit(classes + 3, CLASS_WEIGHTS[1] / CLASS_WEIGHTS[0] / rows),)


OPERATIONS = (
    Operation(functional, "conv2d", _conv, _exact, lambda problem: True, "forward"),
    Operation(functional, "convolve2d", _conv, _exact, direction="forward"),
    Operation(grad, "conv2d_input", _conv_input, _exact, lambda problem: True, "input_gradient"),
    Operation(grad, "conv2d_weight", _conv_weight, _exact, lambda problem: True, "filter_gradient"),
    Operation(functional, "conv2d_max_pool2d", _conv_pool, _exact, _can_pool_output, "forward"),
    Operation(grad, "conv2d_max_pool2d_weight", _conv_pool_weight, _exact, _can_pool_output, "filter_gradient"),
    Operation(grad, "conv2d_bias", lambda s: {"grad_output": s.dy}, _exact),
    Operation(functional, "conv_transpose2d", _conv_transpose, _exact, direction="input_gradient"),
    Operation(grad, "conv_transpose2d_input", _conv_transpose_input, _exact, direction="forward"),
    Operation(grad, "conv_transpose2d_weight", _conv_transpose_weight, _exact, direction="filter_gradient"),
    Operation(functional, "linear", _linear, _exact),
    Operation(grad, "linear_input", _linear_gradient("weight", "grad_output"), _exact),
    Operation(grad, "linear_weight", _linear_gradient("input", "grad_output"), _exact),
    Operation(grad, "linear_bias", _linear_gradient("grad_output"), _exact),
    Operation(functional, "max_pool2d", _max_pool_indices, _exact, _can_pool),
    Operation(functional, "max_pool2d_with_positions", _max_pool, _exact, _can_pool),
    Operation(grad, "max_pool2d", _max_pool_gradient, _exact, _can_pool),
    Operation(grad, "max_pool2d_bias", _max_pool_bias, _exact, _can_pool),
    Operation(functional, "max_unpool2d", _max_unpool, _exact, _can_pool),
    Operation(grad, "max_unpool2d", _max_unpool_gradient, _exact, _can_pool),
    Operation(functional, "avg_pool2d", _avg_pool, _mean, _can_pool),
    Operation(grad, "avg_pool2d", _avg_pool_gradient, _mean, _can_pool),
    Operation(functional, "adaptive_avg_pool2d", _adaptive_pool, _mean),
    Operation(grad, "adaptive_avg_pool2d", _adaptive_pool_gradient, _mean),
    Operation(functional, "relu", _z, _exact),
    Operation(grad, "relu", _from_output(naive.relu), _exact),
    Operation(functional, "leaky_relu", _z, _last_bits),
    Operation(grad, "leaky_relu", _from_input, _last_bits),
    Operation(functional, "tanh", _z, _last_bits),
    Operation(grad, "tanh", _from_output(naive.tanh), _derivative),
    Operation(functional, "sigmoid", _z, _last_bits),
    Operation(grad, "sigmoid", _from_output(naive.sigmoid), _derivative),
    Operation(functional, "softmax", _z_channels, _along_channels),
    Operation(grad, "softmax", _from_output(naive.softmax, dim=1), _along_channels),
    Operation(functional, "log_softmax", _z_channels, _along_channels),
    Operation(grad, "log_softmax", _from_output(naive.log_softmax, dim=1), _along_channels),
    Operation(functional, "batch_norm", _batch_norm, _normalised),
    Operation(functional, "batch_norm_training", _batch_norm_training, _normalised, _can_normalise),
    Operation(grad, "batch_norm", _batch_norm_gradient, _normalised_gradient, _can_normalise),
    Operation(grad, "batch_norm_eval", _batch_norm_gradient, _normalised_gradient, _can_normalise),
    Operation(functional, "cross_entropy", _classes, _loss(naive.cross_entropy)),
    Operation(functional, "cross_entropy_with_gradient", _classes, lambda arguments, found: (
        *_loss(naive.cross_entropy)(arguments, found), *_class_gradient(arguments, found))),
    Operation(grad, "cross_entropy", _classes, _class_gradient),
    Operation(functional, "nll_loss", _log_probabilities, _loss(naive.nll_loss)),
    Operation(grad, "nll_loss", _log_probabilities, _class_gradient),
    Operation(functional, "binary_cross_entropy", _probabilities, _loss(naive.binary_cross_entropy)),
    Operation(grad, "binary_cross_entropy", _probabilities, _loss_gradient),
    Operation(functional, "binary_cross_entropy_with_logits", _binary_logits,
              _loss(naive.binary_cross_entropy_with_logits)),
    Operation(grad, "binary_cross_entropy_with_logits", _binary_logits, _loss_gradient),
    Operation(functional, "mse_loss", _values, _loss(naive.mse_loss)),
    Operation(grad, "mse_loss", _values, _loss_gradient),
)
