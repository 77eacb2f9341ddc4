"""Pooling layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import check, convolution, functional, grad, pooling
from fastconv.analysis import Pair, Size
from fastconv.check import Layout
from fastconv.nn.module import Module, arguments


class _Pool(Module):
    """What sliding pools share: arguments and sizes."""

    dilation: Pair = (1, 1)

    def __init__(
        self, kernel_size: int | Pair, stride: int | Pair | None, padding: Any, ceil_mode: bool, layout: Layout
    ) -> None:
        self.kernel_size = check.pair("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else check.pair("stride", stride, 1)
        self.padding = padding
        self.ceil_mode = bool(ceil_mode)
        self.layout = check.layout(layout)

    def output_size(self, input_size: Size) -> Size:
        size = convolution.size4("input_size", input_size)
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return pooling.max_pool(size, *geometry, self.layout).output_size

    def window(self) -> tuple[Pair, Pair]:
        rows, columns = (d * (size - 1) + 1 for d, size in zip(self.dilation, self.kernel_size))
        return (rows, columns), self.stride

    def extra_repr(self) -> str:
        return arguments(
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
            padding=(self.padding, 0, (0, 0)),
            dilation=(self.dilation, (1, 1)),
            ceil_mode=(self.ceil_mode, False),
            layout=(self.layout, "NCHW"),
        )


class MaxPool2d(_Pool):
    """The largest of each window, (N, C, H, W) to (N, C, P, Q); the gradient goes to where it stood.

    Arguments are those of torch.nn.MaxPool2d; ``padding`` may also be ((top, bottom), (left, right)). Keeps the
    winners' places, one byte an output in windows of up to 255 cells. For indices there is
    :func:`fastconv.functional.max_pool2d`.
    """

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: Any = 0,
        dilation: int | Pair = 1,
        *,
        ceil_mode: bool = False,
        layout: Layout = "NCHW",
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, layout)
        self.dilation = check.pair("dilation", dilation, 1)

    def _geometry(self) -> dict[str, Any]:
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
            "layout": self.layout,
        }

    @property
    def touching(self) -> bool:
        """Whether windows are as far apart as large, from the first pixel on, and none hangs over an edge."""
        alone = self.kernel_size == self.stride and self.dilation == (1, 1) and not self.ceil_mode
        return alone and self.padding in (0, (0, 0), [0, 0])

    def forward(self, input: np.ndarray, relu: bool = False) -> np.ndarray:
        """``relu`` rectifies in the same pass."""
        if not self.saving:
            return functional.max_pool2d(input, relu=relu, **self._geometry())
        output, positions = functional.max_pool2d_with_positions(input, relu=relu, **self._geometry())
        self._save(np.shape(input), positions)
        return output

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        input_size, positions = self._take_saved()
        return grad.max_pool2d(input_size, positions, grad_output, **self._geometry()) if need_input_grad else None

    def backward_with_bias(self, grad_output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gradients of the input and of a bias added to it."""
        input_size, positions = self._take_saved()
        bias = grad.max_pool2d_bias(positions, grad_output, self.kernel_size, layout=self.layout)
        return grad.max_pool2d(input_size, positions, grad_output, **self._geometry()), bias


class AvgPool2d(_Pool):
    """The mean of each window, (N, C, H, W) to (N, C, P, Q). Arguments are those of torch.nn.AvgPool2d."""

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        layout: Layout = "NCHW",
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, layout)
        self.count_include_pad = bool(count_include_pad)
        self.divisor_override = divisor_override

    def _geometry(self) -> dict[str, Any]:
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
            "count_include_pad": self.count_include_pad,
            "divisor_override": self.divisor_override,
            "layout": self.layout,
        }

    def forward(self, input: np.ndarray) -> np.ndarray:
        self._save(np.shape(input))
        return functional.avg_pool2d(input, **self._geometry())

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        (input_size,) = self._take_saved()
        return grad.avg_pool2d(input_size, grad_output, **self._geometry()) if need_input_grad else None


class AdaptiveAvgPool2d(Module):
    """The mean of each cell of a grid over the image: (N, C, H, W) to (N, C, *output_size).

    ``output_size`` is a number, a pair, or None for a side that keeps the input's size.
    """

    def __init__(self, output_size: int | tuple[int | None, int | None], *, layout: Layout = "NCHW") -> None:
        self.target_size = output_size
        self.layout = check.layout(layout)

    def forward(self, input: np.ndarray) -> np.ndarray:
        self._save(np.shape(input))
        return functional.adaptive_avg_pool2d(input, self.target_size, layout=self.layout)

    def backward(self, grad_output: np.ndarray, need_input_grad: bool = True) -> np.ndarray | None:
        (input_size,) = self._take_saved()
        return grad.adaptive_avg_pool2d(input_size, grad_output, layout=self.layout) if need_input_grad else None

    def output_size(self, input_size: Size) -> Size:
        images = pooling.images(convolution.size4("input_size", input_size), self.layout)
        sides = self.target_size if isinstance(self.target_size, tuple | list) else (self.target_size,) * 2
        rows, columns = (now if side is None else side for side, now in zip(sides, (images.h, images.w)))
        return images._replace(h=rows, w=columns).shape(self.layout)

    def extra_repr(self) -> str:
        return arguments(f"output_size={self.target_size}", layout=(self.layout, "NCHW"))
