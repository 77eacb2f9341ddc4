"""Initial values of parameters, filled in place under torch.nn.init's names.

Each takes a float32 or float64 array, such as ``layer.weight.data``, and ``rng``: a NumPy Generator, a seed,
or None for fresh randomness. The same generator state gives the same values in either dtype, rounded.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from fastconv import check

Rng = np.random.Generator | int | None
Mode = Literal["fan_in", "fan_out"]

_GAINS = {"linear": 1.0, "conv2d": 1.0, "conv_transpose2d": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2)}


def generator(rng: Rng) -> np.random.Generator:
    """The generator itself, a new one from a seed, or a fresh one for None."""
    if isinstance(rng, bool) or not isinstance(rng, np.random.Generator | int | np.integer | None):
        raise TypeError(f"rng must be a numpy.random.Generator, an integer seed or None, got {check.shown(rng)}")
    return np.random.default_rng(rng)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(inputs of one output, outputs of one input) of a weight, by torch's rule for axes 1 and 0."""
    if len(shape) < 2:
        raise ValueError(f"a weight must have at least 2 dimensions to have fans, got shape {shape}")
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor on the standard deviation that suits an activation; ``param`` is leaky ReLU's slope."""
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    return _GAINS[check.one_of("nonlinearity", nonlinearity, (*_GAINS, "leaky_relu"))]


def constant_(array: np.ndarray, value: float) -> np.ndarray:
    """Fill with one value."""
    _writable(array).fill(value)
    return array


def zeros_(array: np.ndarray) -> np.ndarray:
    """Fill with 0."""
    return constant_(array, 0)


def ones_(array: np.ndarray) -> np.ndarray:
    """Fill with 1."""
    return constant_(array, 1)


def uniform_(array: np.ndarray, low: float = 0.0, high: float = 1.0, *, rng: Rng = None) -> np.ndarray:
    """Fill from the uniform distribution on [low, high)."""
    _writable(array)[...] = generator(rng).uniform(low, high, array.shape)
    return array


def normal_(array: np.ndarray, mean: float = 0.0, std: float = 1.0, *, rng: Rng = None) -> np.ndarray:
    """Fill from the normal distribution."""
    _writable(array)[...] = generator(rng).normal(mean, std, array.shape)
    return array


def xavier_uniform_(array: np.ndarray, gain: float = 1.0, *, rng: Rng = None) -> np.ndarray:
    """Uniform with variance gain^2 * 2/(fan_in + fan_out) (Glorot and Bengio 2010)."""
    bound = math.sqrt(3) * _xavier_std(array, gain)
    return uniform_(array, -bound, bound, rng=rng)


def xavier_normal_(array: np.ndarray, gain: float = 1.0, *, rng: Rng = None) -> np.ndarray:
    """Normal with variance gain^2 * 2/(fan_in + fan_out) (Glorot and Bengio 2010)."""
    return normal_(array, 0, _xavier_std(array, gain), rng=rng)


def kaiming_uniform_(
    array: np.ndarray, a: float = 0.0, mode: Mode = "fan_in", nonlinearity: str = "leaky_relu", *, rng: Rng = None
) -> np.ndarray:
    """Uniform with variance gain^2/fan (He et al. 2015); ``a`` is leaky ReLU's slope, 0 for ReLU."""
    bound = math.sqrt(3) * _kaiming_std(array, a, mode, nonlinearity)
    return uniform_(array, -bound, bound, rng=rng)


def kaiming_normal_(
    array: np.ndarray, a: float = 0.0, mode: Mode = "fan_in", nonlinearity: str = "leaky_relu", *, rng: Rng = None
) -> np.ndarray:
    """Normal with variance gain^2/fan (He et al. 2015); ``a`` is leaky ReLU's slope, 0 for ReLU."""
    return normal_(array, 0, _kaiming_std(array, a, mode, nonlinearity), rng=rng)


def he_(array: np.ndarray, *, rng: Rng = None) -> np.ndarray:
    """Normal with variance 2/fan_in, for layers before a ReLU: activations keep their scale."""
    return kaiming_normal_(array, nonlinearity="relu", rng=rng)


def xavier_(array: np.ndarray, *, rng: Rng = None) -> np.ndarray:
    """Normal with variance 1/fan_in, for layers before tanh, sigmoid or softmax.

    The form of many textbooks; torch's (:func:`xavier_normal_`) averages fan_in and fan_out.
    """
    return kaiming_normal_(array, nonlinearity="linear", rng=rng)


def layer_default_(weight: np.ndarray, bias: np.ndarray | None, *, rng: Rng = None) -> None:
    """What a layer of torch.nn starts with: weight and bias uniform on +-1/sqrt(fan_in)."""
    rng = generator(rng)
    kaiming_uniform_(weight, a=math.sqrt(5), rng=rng)
    if bias is not None:
        bound = 1 / math.sqrt(max(1, fans(weight.shape)[0]))
        uniform_(bias, -bound, bound, rng=rng)


def _xavier_std(array: np.ndarray, gain: float) -> float:
    return gain * math.sqrt(2 / max(1, sum(fans(array.shape))))


def _kaiming_std(array: np.ndarray, a: float, mode: Mode, nonlinearity: str) -> float:
    fan = fans(array.shape)[("fan_in", "fan_out").index(check.one_of("mode", mode, ("fan_in", "fan_out")))]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(1, fan))


def _writable(array: np.ndarray) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.dtype not in check.FLOATS:
        described = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(
            f"an array to fill must be a float32 or float64 NumPy array (layer.weight.data, say), got {described}"
        )
    return array
