"""The paths that are compared: how each runs a case. Peers are imported only by the worker that runs them."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastconv.bench.case import CONVOLUTIONS, Case, first
from fastconv.bench.layers import LAYERS
from fastconv.bench.networks import onnx_call
from fastconv.bench.training import NETWORK_CASES, PREPARE, InferenceCase, TrainingCase
from fastconv.kernels import algorithms
from fastconv.kernels.plan import ConvProblem

AnyCase = Case | TrainingCase | InferenceCase


class Prepared(NamedTuple):
    """A call to time, and the array that its result stands for, in the case's layout."""

    call: Callable[[], Any]
    array: Callable[[Any], np.ndarray]


class Contender(NamedTuple):
    """A path: the packages it needs, how it runs one operation, and what it cannot do."""

    packages: tuple[str, ...]
    operation: Callable[[Case, SimpleNamespace, int], Prepared]  # of a case's arrays, on so many threads
    why_not: Callable[[AnyCase], str] = lambda case: ""  # empty where it can run the case
    keeps_memory: bool = False  # between calls, so that a call's own cannot be told
    by_default: bool = True  # whether it runs where no paths are given


def _numpy_calls(case: Case, a: SimpleNamespace, functions: Any, **options: str) -> Prepared:
    """Functions on NumPy arrays, under the names that the references use; ``options`` of convolutions."""
    moves, layout = case.window, {"layout": case.layout}
    window, options = (*moves, case.problem.groups), layout | options
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: functions.conv2d(a.x, a.w, a.b, *window, **options),
        "input_gradient": lambda: functions.conv2d_input(a.x.shape, a.w, a.dy, *window, **options),
        "filter_gradient": lambda: functions.conv2d_weight(a.x, a.w.shape, a.dy, *window, **options),
        "max_pool": lambda: functions.max_pool2d_with_positions(a.x, case.kernel_size, *moves, **layout),
        "max_pool_gradient": lambda: functions.max_pool2d_grad(
            a.x.shape, a.positions, a.dy, case.kernel_size, *moves, **layout),
    }
    return Prepared(calls[case.op], first)


def case_from_json(fields: dict[str, Any]) -> AnyCase:
    """The case that was sent to a worker."""
    if fields["op"] in NETWORK_CASES:
        return NETWORK_CASES[fields["op"]](**{name: value for name, value in fields.items() if name != "op"})
    return Case(**{**fields, "problem": ConvProblem.parse(fields["problem"])})


def _jit(case: Case, a: SimpleNamespace, threads: int, **options: str) -> Prepared:
    from fastconv import functional, grad

    if case.op in LAYERS:
        return Prepared(LAYERS[case.op].jit(case, a), first)
    return _numpy_calls(case, a, SimpleNamespace(
        conv2d=functional.conv2d, conv2d_input=grad.conv2d_input, conv2d_weight=grad.conv2d_weight,
        max_pool2d_with_positions=functional.max_pool2d_with_positions, max_pool2d_grad=grad.max_pool2d), **options)


def _im2col(case: Case, a: SimpleNamespace, threads: int) -> Prepared:
    from fastconv.reference import im2col

    return _numpy_calls(case, a, im2col)


def _naive(case: Case, a: SimpleNamespace, threads: int) -> Prepared:
    from fastconv.reference import naive

    if case.op in LAYERS:
        return Prepared(LAYERS[case.op].naive(case, a), first)
    return _numpy_calls(case, a, naive)


def _torch(case: Case, a: SimpleNamespace, threads: int) -> Prepared:
    """PyTorch eager, without autograd. NHWC is its channels-last memory format."""
    import torch

    torch.set_num_threads(threads)
    nhwc = case.layout == "NHWC"

    def tensor(array: np.ndarray) -> Any:
        found = torch.from_numpy(array)
        return found.permute(0, 3, 1, 2) if nhwc and found.ndim == 4 else found

    def array(result: Any) -> np.ndarray:
        found: Any = first(result)
        images = found.ndim == 4 and case.op != "filter_gradient"
        return (found.permute(0, 2, 3, 1) if nhwc and images else found).contiguous().numpy()

    t = SimpleNamespace(**{name: tensor(value) for name, value in vars(a).items()})
    if case.op in LAYERS:
        return Prepared(LAYERS[case.op].torch(torch, case, t), array)
    x, dy, w, b = t.x, t.dy, torch.from_numpy(a.w), t.b
    if nhwc:
        w = w.to(memory_format=torch.channels_last)
    stride, padding, dilation = case.window
    size, groups, aten = case.kernel_size, case.problem.groups, torch.ops.aten

    def gradient(wanted: int) -> Callable[[], Any]:
        mask = [place == wanted for place in range(3)]
        return lambda: aten.convolution_backward(
            dy, x, w, None, stride, padding, dilation, False, (0, 0), groups, mask)[wanted]

    def pool() -> Any:
        return aten.max_pool2d_with_indices(x, size, stride, padding, dilation)

    calls: dict[str, Callable[[], Callable[[], Any]]] = {
        "forward": lambda: lambda: torch.nn.functional.conv2d(x, w, b, stride, padding, dilation, groups),
        "input_gradient": lambda: gradient(0),
        "filter_gradient": lambda: gradient(1),
        "max_pool": lambda: pool,
        "max_pool_gradient": lambda: _torch_pool_gradient(aten, dy, x, size, case.window, pool()[1]),
    }
    return Prepared(calls[case.op](), array)


def _torch_pool_gradient(aten: Any, dy: Any, x: Any, size: Any, window: Any, indices: Any) -> Callable[[], Any]:
    return lambda: aten.max_pool2d_with_indices_backward(dy, x, size, *window, False, indices)


def _onnxruntime(case: Case, a: SimpleNamespace, threads: int) -> Prepared:
    """One node with the filters as constants."""
    import onnx
    from onnx import helper, numpy_helper

    stride, padding, dilation = case.window
    attributes: dict[str, Any] = {"strides": stride, "pads": padding * 2, "dilations": dilation,
                                  "kernel_shape": case.kernel_size}
    if case.op == "forward":
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=case.problem.groups, **attributes)
        constants = [numpy_helper.from_array(a.w, "w"), numpy_helper.from_array(a.b, "b")]
    else:
        node = helper.make_node("MaxPool", ["x"], ["y", "indices"], **attributes)
        constants = []
    kinds = {"x": onnx.TensorProto.FLOAT, "y": onnx.TensorProto.FLOAT, "indices": onnx.TensorProto.INT64}
    graph = helper.make_graph(
        [node], case.op, [helper.make_tensor_value_info("x", kinds["x"], a.x.shape)],
        [helper.make_tensor_value_info(name, kinds[name], a.dy.shape) for name in node.output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Prepared(*onnx_call(model, a.x, node.output, threads))


def _jax(case: Case, a: SimpleNamespace, threads: int) -> Prepared:
    """XLA-compiled convolution and its transposes; filters are (R, S, C, K) in its own channels-last order."""
    os.environ["NPROC"] = str(threads)  # the size of its thread pool
    import jax

    jax.config.update("jax_enable_x64", case.dtype == "float64")
    stride, padding, dilation = case.window
    order = (case.layout, "OIHW" if case.layout == "NCHW" else "HWIO", case.layout)

    def filters(w: Any) -> Any:
        return w if case.layout == "NCHW" else w.transpose(2, 3, 1, 0)

    def conv(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, w, stride, [(p, p) for p in padding], rhs_dilation=dilation, dimension_numbers=order,
            feature_group_count=case.problem.groups)

    bias = a.b[:, None, None] if case.layout == "NCHW" else a.b
    compute: dict[str, Callable[[Any, Any, Any], Any]] = {
        "forward": lambda x, w, dy: conv(x, w) + bias,
        "input_gradient": lambda x, w, dy: jax.linear_transpose(lambda x: conv(x, w), x)(dy)[0],
        "filter_gradient": lambda x, w, dy: jax.linear_transpose(lambda w: conv(x, w), w)(dy)[0],
    }
    compiled, operands = jax.jit(compute[case.op]), [jax.device_put(value) for value in (a.x, filters(a.w), a.dy)]

    def array(result: Any) -> np.ndarray:
        found = np.asarray(result)
        if case.op == "filter_gradient" and case.layout == "NHWC":
            found = found.transpose(3, 2, 0, 1)
        return np.ascontiguousarray(found)

    return Prepared(lambda: compiled(*operands).block_until_ready(), array)


def _why_not_jax(case: AnyCase) -> str:
    return "" if isinstance(case, Case) and case.op in CONVOLUTIONS else "it is compared on convolutions only"


def _why_not_by(algorithm: str, case: AnyCase) -> str:
    if not isinstance(case, Case) or case.op not in CONVOLUTIONS:
        return "it is compared on convolutions only"
    try:
        algorithms.choose(case.op, case.problem, case.layout, np.dtype(case.dtype), algorithm)
    except ValueError as reason:
        return str(reason)
    return ""


def _why_not_im2col(case: AnyCase) -> str:
    return "it has no matrix form" if case.op in LAYERS else ""


def _why_not_naive(case: AnyCase) -> str:
    return "it would take minutes" if case.op in NETWORK_CASES else ""


def _why_not_torch_compile(case: AnyCase) -> str:
    if case.op != InferenceCase.op:
        return "it is compared on inference only"
    compiler = os.environ.get("CXX", "g++")
    return "" if shutil.which(compiler) else f"it needs a C++ compiler, and there is no {compiler}"


def _why_not_onnxruntime(case: AnyCase) -> str:
    if case.op not in ("forward", "max_pool", InferenceCase.op):
        return "it is compared on convolutions and max-pools forward, and on inference"
    if case.layout != "NCHW":
        return "it takes NCHW only"
    return "" if case.dtype == "float32" else "it takes float32 only"


CONTENDERS = {
    "jit": Contender((), _jit),
    "im2col": Contender((), _im2col, _why_not_im2col),
    "naive": Contender((), _naive, _why_not_naive),
    "torch": Contender(("torch",), _torch),
    "torch_compile": Contender(("torch",), _torch, _why_not_torch_compile),
    "onnxruntime": Contender(("onnxruntime", "onnx"), _onnxruntime, _why_not_onnxruntime, keeps_memory=True),
    "jax": Contender(("jax",), _jax, _why_not_jax),
    **{f"jit_{algorithm}": Contender(
        (), partial(_jit, algorithm=algorithm), partial(_why_not_by, algorithm), by_default=False)
       for algorithm in ("direct", "winograd")},  # our path by one family of algorithms alone
}


def prepare(path: str, case: AnyCase, arrays: SimpleNamespace, threads: int) -> Prepared:
    """How ``path`` runs a case: one operation, or a whole network."""
    if isinstance(case, Case):
        return CONTENDERS[path].operation(case, arrays, threads)
    return Prepared(*PREPARE[case.op][path](case, arrays, threads))


def installed() -> list[str]:
    """The paths whose packages are here, found without importing them, but those that must be asked for."""
    return [path for path, contender in CONTENDERS.items()
            if contender.by_default and all(map(importlib.util.find_spec, contender.packages))]
