"""Convolution layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from fastconv import check, convolution, functional, grad, init
from fastconv.analysis import Pair, Size
from fastconv.check import Layout
from fastconv.kernels.plan import ConvProblem
from fastconv.nn.module import Module, Parameter, arguments


class _Conv(Module):
    """What a convolution and its transpose share: arguments, parameters and their first values."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair,
        dilation: int | Pair,
        groups: int,
        layout: Layout,
    ) -> None:
        self.in_channels = check.integer("in_channels", in_channels, 1)
        self.out_channels = check.integer("out_channels", out_channels, 1)
        self.kernel_size = check.pair("kernel_size", kernel_size, 1)
        self.stride = check.pair("stride", stride, 1)
        self.dilation = check.pair("dilation", dilation, 1)
        self.groups = check.integer("groups", groups, 1)
        self.layout = check.layout(layout)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name} must be divisible by groups ({groups}), got {channels}")

    def _make_parameters(self, weight_size: Size, bias: bool, dtype: DTypeLike, rng: init.Rng) -> None:
        self.weight = Parameter(np.empty(weight_size, dtype))
        self.bias = Parameter(np.empty(self.out_channels, dtype)) if bias else None
        self.reset_parameters(rng)

    def reset_parameters(self, rng: init.Rng = None) -> None:
        """Draw torch's default first values again."""
        init.layer_default_(self.weight.data, self._bias_data(), rng=rng)

    def _bias_data(self) -> np.ndarray | None:
        return self.bias.data if self.bias is not None else None

    def _accumulate_bias(self, grad_output: np.ndarray, grad_bias: np.ndarray | None = None) -> None:
        """``grad_bias`` where it is known."""
        if self.bias is not None:
            if grad_bias is None:
                grad_bias = grad.conv2d_bias(grad_output, layout=self.layout)
            self.bias.accumulate(grad_bias)

    def _repr_arguments(self, **values: Any) -> str:
        return arguments(
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
            **values,
            dilation=(self.dilation, (1, 1)),
            groups=(self.groups, 1),
            bias=(self.bias is not None, True),
            layout=(self.layout, "NCHW"),
        )


class Conv2d(_Conv):
    """Convolution (cross-correlation) layer: (N, C, H, W) to (N, K, P, Q), or with channels last.

    Arguments are those of torch.nn.Conv2d; ``padding`` may also be ((top, bottom), (left, right)). ``rng``
    draws the parameters, of type ``dtype``: ``weight`` (K, C/G, R, S) in both layouts, and ``bias`` (K,).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: Any = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        layout: Layout = "NCHW",
        dtype: DTypeLike = np.float32,
        rng: init.Rng = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups, layout)
        convolution.padding_pairs(padding, self.kernel_size, self.stride, self.dilation)
        self.padding = padding
        self._make_parameters((out_channels, in_channels // groups, *self.kernel_size), bias, dtype, rng)

    def _geometry(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "layout": self.layout,
        }

    def forward(self, input: np.ndarray) -> np.ndarray:
        self._save(input)
        return functional.conv2d(input, self.weight.data, self._bias_data(), **self._geometry())

    def backward(
        self, grad_output: np.ndarray, need_input_grad: bool = True, grad_bias: np.ndarray | None = None
    ) -> np.ndarray | None:
        (input,) = self._take_saved()
        geometry = self._geometry()
        self.weight.accumulate(grad.conv2d_weight(input, self.weight.shape, grad_output, **geometry))
        self._accumulate_bias(grad_output, grad_bias)
        if not need_input_grad:
            return None
        return grad.conv2d_input(input.shape, self.weight.data, grad_output, **geometry)

    def _problem(self, input_size: Size) -> ConvProblem:
        size = convolution.size4("input_size", input_size)
        return convolution.problem(size, self.weight.shape, *self._geometry().values())

    def output_size(self, input_size: Size) -> Size:
        return self._problem(input_size).output_shape(self.layout)

    def multiply_adds(self, input_size: Size) -> int:
        return self._problem(input_size).multiply_adds

    def window(self) -> tuple[Pair, Pair]:
        rows, columns = (d * (size - 1) + 1 for d, size in zip(self.dilation, self.kernel_size))
        return (rows, columns), self.stride

    def extra_repr(self) -> str:
        return self._repr_arguments(padding=(self.padding, 0, (0, 0)))


class ConvTranspose2d(_Conv):
    """Transposed convolution: a convolution's input gradient as a forward pass, (N, C, H, W) to (N, K, P, Q).

    P = (H - 1)u - 2p + d(R - 1) + output_padding + 1. Arguments are those of torch.nn.ConvTranspose2d;
    ``weight`` is (C, K/G, R, S), ``bias`` (K,).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        output_padding: int | Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Pair = 1,
        *,
        layout: Layout = "NCHW",
        dtype: DTypeLike = np.float32,
        rng: init.Rng = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups, layout)
        self.padding = check.pair("padding", padding, 0)
        self.output_padding = check.pair("output_padding", output_padding, 0)
        self._make_parameters((in_channels, out_channels // groups, *self.kernel_size), bias, dtype, rng)

    def _geometry(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "groups": self.groups,
            "dilation": self.dilation,
            "layout": self.layout,
        }

    def forward(self, input: np.ndarray) -> np.ndarray:
        self._save(input)
        return functional.conv_transpose2d(input, self.weight.data, self._bias_data(), **self._geometry())

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        (input,) = self._take_saved()
        geometry = self._geometry()
        self.weight.accumulate(grad.conv_transpose2d_weight(input, self.weight.shape, grad_output, **geometry))
        self._accumulate_bias(grad_output)
        if not need_input_grad:
            return None
        return grad.conv_transpose2d_input(input.shape, self.weight.data, grad_output, **geometry)

    def _problem(self, input_size: Size) -> ConvProblem:
        """The convolution whose input gradient this is."""
        return convolution.transposed_problem(
            convolution.size4("input_size", input_size), self.weight.shape, **self._geometry()
        )

    def output_size(self, input_size: Size) -> Size:
        return self._problem(input_size).input_shape(self.layout)

    def multiply_adds(self, input_size: Size) -> int:
        return self._problem(input_size).multiply_adds

    def extra_repr(self) -> str:
        return self._repr_arguments(padding=(self.padding, (0, 0)), output_padding=(self.output_padding, (0, 0)))
