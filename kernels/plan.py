"""The problem, every size of one convolution and its text form; and the plan, all that a driver needs to run it."""

import dataclasses
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_FIELD = re.compile(r"([a-z])(\d+(?:x\d+)*)")
_REQUIRED = "nchwkrs"
_FORM = "n<batch>c<in>h<rows>w<cols>k<out>r<kernel rows>s<kernel cols>[u<stride>][p<padding>][d<dilation>][g<groups>]"


@dataclass(frozen=True)
class ConvProblem:
    """One convolution: N x C x H x W input, K x C/G x R x S filters, N x K x P x Q output."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: tuple = (1, 1)
    padding: tuple = ((0, 0), (0, 0))  # (top, bottom), (left, right)
    dilation: tuple = (1, 1)
    groups: int = 1

    @functools.cached_property
    def p(self):
        return self._extent(self.h, self.r, 0)

    @functools.cached_property
    def q(self):
        return self._extent(self.w, self.s, 1)

    def _extent(self, size, taps, axis):
        return (size + sum(self.padding[axis]) - self.dilation[axis] * (taps - 1) - 1) // self.stride[axis] + 1

    def input_shape(self, layout="NCHW"):
        return _ordered(layout, self.n, self.c, self.h, self.w)

    def output_shape(self, layout="NCHW"):
        return _ordered(layout, self.n, self.k, self.p, self.q)

    @property
    def weight_shape(self):
        return (self.k, self.c // self.groups, self.r, self.s)

    @property
    def multiply_adds(self):
        """Useful multiply-adds; those on padding count as work."""
        return self.n * self.p * self.q * self.k * (self.c // self.groups) * self.r * self.s

    @property
    def tensor_elements(self):
        """Elements of input, filters and output."""
        return (self.n * (self.c * self.h * self.w + self.k * self.p * self.q)
                + self.k * (self.c // self.groups) * self.r * self.s)

    @classmethod
    def parse(cls, text):
        """From a problem string such as ``n2c3h8w8k4r3s3u2p1``; numbers of u, p, d may be ``AxB``."""
        fields, end = {}, 0
        for match in _FIELD.finditer(text):
            if match.start() != end or match[1] in fields or match[1] not in _REQUIRED + "updg":
                break
            fields[match[1]], end = [int(v) for v in match[2].split("x")], match.end()
        missing = [f for f in _REQUIRED if f not in fields]
        if end != len(text) or missing or not text:
            complete = end == len(text) and text
            what = f"lacks {', '.join(missing)}" if complete else f"stops making sense at {text[end:]!r}"
            raise ValueError(f"problem {text!r} {what}; the form is {_FORM}")
        for name, values in fields.items():
            if len(values) > (2 if name in "upd" else 1) or (min(values) < 1 and name != "p" and name != "n"):
                raise ValueError(f"problem {text!r}: bad value for {name!r}; the form is {_FORM}")
        two = {f: tuple(fields.get(f, [d])) * (2 // len(fields.get(f, [d]))) for f, d in zip("upd", (1, 0, 1))}
        problem = cls(**{f: fields[f][0] for f in _REQUIRED}, stride=two["u"], dilation=two["d"],
                      padding=tuple((v, v) for v in two["p"]), groups=fields.get("g", [1])[0])
        if problem.c % problem.groups or problem.k % problem.groups:
            raise ValueError(f"problem {text!r}: groups {problem.groups} must divide c {problem.c} and k {problem.k}")
        if problem.p < 1 or problem.q < 1:
            raise ValueError(f"problem {text!r}: the kernel is larger than the padded input")
        return problem

    def __str__(self):
        text = f"n{self.n}c{self.c}h{self.h}w{self.w}k{self.k}r{self.r}s{self.s}"
        for letter, values, default in (("u", self.stride, (1, 1)), ("p", self.padding, ((0, 0), (0, 0))),
                                        ("d", self.dilation, (1, 1))):
            if values != default:
                text += letter + _short(values)
        return text + (f"g{self.groups}" if self.groups != 1 else "")


def _ordered(layout, n, c, h, w):
    return (n, c, h, w) if layout == "NCHW" else (n, h, w, c)


def _short(values):
    values = tuple((v[0] if v[0] == v[1] else f"{v[0]}+{v[1]}") if isinstance(v, tuple) else v for v in values)
    return str(values[0]) if values[0] == values[1] else f"{values[0]}x{values[1]}"


def read_problems(path):
    """``{name: ConvProblem}`` from a file of ``NAME PROBLEM`` lines; # starts a comment."""
    problems = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            if len(words) != 2 or words[0] in problems:
                raise ValueError(f"a line is NAME PROBLEM, each name once, got {' '.join(words)!r}")
            problems[words[0]] = ConvProblem.parse(words[1])
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return problems


@dataclass(frozen=True)
class Plan:
    """Every size and choice for one problem, computed once."""

    geometry: np.ndarray  # records of int64
    table: np.ndarray  # (a_offset, b_offset) in bytes for each reduction step
    lists: np.ndarray  # filter taps, or micro-kernel calls, as the driver says
    tiles: tuple  # compiled micro-kernels, kept alive: the geometry holds their addresses
    shared_elements: int  # of scratch, for all workers together
    worker_elements: int  # and for each one
    tasks: int  # independent ones

    def scratch_elements(self, workers):
        """Elements of the one scratch array."""
        return self.shared_elements + workers * self.worker_elements

    @property
    def rectifies(self):
        """Whether :meth:`keeping` may add a ReLU."""
        return "rectified_points" in self.geometry.dtype.names and bool(self.geometry["rectified_points"].all())

    def keeping(self, relu=False):
        """The same plan for filters that the scratch holds already, and with a ReLU of the results."""
        geometry = self.geometry.copy()
        if "kept" in geometry.dtype.names:
            geometry["kept"] = 1
        if relu:
            geometry["from_points"] = geometry["rectified_points"]
        return dataclasses.replace(self, geometry=geometry)

    def arguments(self, scratch, workers):
        """What a driver takes after its arrays."""
        return (self.geometry, self.table, self.lists, scratch, self.shared_elements, self.worker_elements, workers)
