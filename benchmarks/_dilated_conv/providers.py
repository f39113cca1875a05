"""Dilated-convolution benchmark: who computes, and the operations everybody is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import segfast
from benchmarks._common import Job
from benchmarks._dilated_conv import cudnn_plans
from benchmarks._dilated_conv.workloads import Inputs, Workload
from benchmarks._measure import Provider, repeated
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops._dilated_conv_kernels import choose, problem
from segfast.ops._dilated_conv_plan import DIRECTIONS

Weights = Sequence[Tensor]
Conv = Callable[[Tensor, Tensor, int, int], Tensor]  # x, weight, rate, groups


@dataclass(frozen=True)
class Functions:
    """conv(x, weight, rate, groups); pyramid and context(x, weights, rates)."""

    conv: Conv
    pyramid: Callable[[Tensor, Weights, Sequence[int]], Tensor]
    context: Callable[[Tensor, Weights, Sequence[int]], Tensor]
    other_layout: bool = False  # computed in channels_last, for maps that come in NCHW
    setting: Callable[[], AbstractContextManager[None]] = nullcontext  # while it computes


def made_of(conv: Conv, **more: Any) -> Functions:
    """Convolutions one by one."""

    def pyramid(x: Tensor, weights: Weights, rates: Sequence[int]) -> Tensor:
        return torch.cat([conv(x, w, r, 1) for w, r in zip(weights, rates, strict=True)], 1)

    def context(x: Tensor, weights: Weights, rates: Sequence[int]) -> Tensor:
        for weight, rate in zip(weights[:-1], rates, strict=False):
            x = conv(x, weight, rate, 1).relu()
        return conv(x, weights[-1], rates[-1], 1)

    return Functions(conv, pyramid, context, **more)


def _torch_conv(x: Tensor, weight: Tensor, rate: int, groups: int) -> Tensor:
    return F.conv2d(x, weight, None, 1, padding(weight, rate), rate, groups)


def padding(weight: Tensor, rate: int) -> int:
    """That keeps the size of a map."""
    return rate * (weight.shape[-1] // 2)


@contextmanager
def benchmark_mode() -> Iterator[None]:
    """PyTorch times several of cuDNN's plans and keeps the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


TORCH = made_of(_torch_conv)
OTHER = made_of(_torch_conv, other_layout=True)
CUDNN = made_of(_torch_conv, setting=benchmark_mode)
CUDNN_OTHER = made_of(_torch_conv, setting=benchmark_mode, other_layout=True)
PLANS = made_of(cudnn_plans.conv)
SEGFAST = Functions(
    lambda x, weight, rate, groups: segfast.ops.dilated_conv2d(
        x, weight, None, 1, padding(weight, rate), rate, groups
    ),
    lambda x, weights, rates: segfast.ops.atrous_pyramid2d(x, weights, None, rates),
    lambda x, weights, rates: segfast.ops.context_module2d(x, weights, None, rates),
)
WINOGRAD = replace(SEGFAST, setting=segfast.allow_winograd)


def function(functions: Functions, workload: Workload) -> Callable[..., Tensor]:
    """f(x, *weights) -> y"""
    rates, groups = workload.rates, workload.groups

    def compute(x: Tensor, *weights: Tensor) -> Tensor:
        if workload.kind == "conv":
            return functions.conv(x, weights[0], rates[0], groups)
        branches = functions.pyramid if workload.kind == "pyramid" else functions.context
        return branches(x, weights, rates)

    if not functions.other_layout:
        return compute

    def convert(x: Tensor, *weights: Tensor) -> Tensor:
        y = compute(x.contiguous(memory_format=torch.channels_last), *weights)
        return y.contiguous(memory_format=workload.memory_format)

    return convert


def once(functions: Functions, workload: Workload, inputs: Inputs, compiled: bool = False) -> Job:
    """One call: the result, or the gradients of the map and all weights."""
    run = function(functions, workload)
    if compiled:
        torch._dynamo.reset()  # one function, many shapes: it would give up after a few
        run = torch.compile(run, dynamic=False)

    def forward() -> Any:
        with functions.setting():
            return run(inputs.x, *inputs.weights)

    def train() -> Any:
        leaves = [t.detach().requires_grad_() for t in (inputs.x, *inputs.weights)]
        with functions.setting():
            return torch.autograd.grad(run(*leaves), leaves, inputs.grad)

    return train if workload.train else forward


def prepare(name: str, workload: Workload, inputs: Inputs) -> Job:
    """`workload.repeat` times the operation; returns the last result."""
    provider = PROVIDERS[name]
    return repeated(once(provider.functions, workload, inputs, provider.compiled), workload)


def _segfast_serves(workload: Workload) -> str:
    """The kernels of every convolution and direction, each named once."""
    x = torch.empty(
        (workload.batch, workload.channels, workload.side, workload.side),
        dtype=workload.dtype,
        device=workload.device,
    ).contiguous(memory_format=workload.memory_format)
    kernel = workload.kernel, workload.kernel
    shape = (workload.outputs, workload.channels // workload.groups, *kernel)
    found = []
    for rate in workload.rates:
        geometry = Geometry.same((workload.side, workload.side), kernel, rate)
        asked = problem(x, shape, geometry, workload.groups)
        for direction in DIRECTIONS if workload.train else DIRECTIONS[:1]:
            found.append(choose(direction, asked).kernel)
    return ", ".join(sorted(set(found), key=lambda kernel: kernel == "torch"))


def _winograd_serves(workload: Workload) -> str:
    with segfast.allow_winograd():
        return _segfast_serves(workload)


def _torch_serves(what: str) -> Callable[[Workload], str]:
    return lambda workload: f"torch {torch.__version__}{what}"


PROVIDERS = {
    "segfast": Provider(SEGFAST, _segfast_serves),
    "segfast-winograd": Provider(WINOGRAD, _winograd_serves),
    "torch": Provider(TORCH, _torch_serves("")),
    "torch-other-layout": Provider(OTHER, _torch_serves(", converting to channels_last and back")),
    "torch-compile": Provider(TORCH, _torch_serves(", inductor"), compiled=True),
    "cudnn-benchmark": Provider(CUDNN, _torch_serves(", cuDNN's benchmark mode")),
    "cudnn-benchmark-other-layout": Provider(
        CUDNN_OTHER, _torch_serves(", cuDNN's benchmark mode, converting to channels_last and back")
    ),
    "cudnn-plans": Provider(
        PLANS, lambda _: "the fastest of cuDNN's plans", needs="cudnn", foreign=True
    ),
}
