"""Dilated-convolution benchmark: the fastest of all plans that cuDNN's frontend makes.

PyTorch takes the first that cuDNN's heuristic names, or, in benchmark mode, the fastest of a few.
Here every plan of every heuristic is built and timed once for each shape, layout and dtype; those
that cannot run are left out.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

INPUTS = {
    "conv_fprop": ("image", "weight"),
    "conv_dgrad": ("loss", "filter"),
    "conv_wgrad": ("image", "loss"),
}
DTYPES = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BFLOAT16"}
CALLS = 20  # in one timing of a plan
Run = Callable[[Tensor, Tensor, Tensor], None]  # two inputs, the result


class Facts(NamedTuple):
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> Facts:
        return cls(tuple(x.shape), x.stride(), x.dtype, x.device)

    def tensor(self) -> Tensor:
        return torch.empty_strided(
            self.shape, self.stride, dtype=self.dtype, device=self.device
        ).zero_()


def conv(x: Tensor, weight: Tensor, rate: int, groups: int) -> Tensor:
    """A 3x3 convolution that keeps the size of x; cuDNN tells the groups from the channels."""
    return _Conv.apply(x, weight, rate)


class _Conv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rate: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rate = rate
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        shape = (x.shape[0], weight.shape[0], *x.shape[2:])
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
        return _run("conv_fprop", x, weight, y, rate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        grad = grad.contiguous(memory_format=layout)
        grad_x = _run("conv_dgrad", grad, weight, torch.empty_like(x), ctx.rate)
        return grad_x, _run("conv_wgrad", x, grad, torch.empty_like(weight), ctx.rate), None


def _run(operation: str, a: Tensor, b: Tensor, result: Tensor, rate: int) -> Tensor:
    fastest(operation, Facts.of(a), Facts.of(b), Facts.of(result), rate)(a, b, result)
    return result


@functools.cache
def fastest(operation: str, a: Facts, b: Facts, result: Facts, rate: int) -> Run:
    """The plan; raises RuntimeError where none can run."""
    tensors = a.tensor(), b.tensor(), result.tensor()
    found = {}
    for run in plans(operation, a, b, result, rate):
        try:
            found[_seconds(run, tensors)] = run
        except RuntimeError:  # not supported here after all
            continue
    if not found:
        raise RuntimeError(f"cuDNN has no plan for {operation} of {a}, {b} at rate {rate}")
    return found[min(found)]


def plans(operation: str, a: Facts, b: Facts, result: Facts, rate: int) -> list[Run]:
    import cudnn

    dtype, single = getattr(cudnn.data_type, DTYPES[a.dtype]), cudnn.data_type.FLOAT
    handle = cudnn.create_handle()
    graph = cudnn.pygraph(
        handle=handle,
        io_data_type=dtype,
        intermediate_data_type=single,
        compute_data_type=single,
    )
    inputs = [
        graph.tensor(dim=list(f.shape), stride=list(f.stride), data_type=dtype) for f in (a, b)
    ]
    names = dict(zip(INPUTS[operation], inputs, strict=True))
    pair = [rate, rate]
    output = getattr(graph, operation)(**names, padding=pair, stride=[1, 1], dilation=pair)
    output.set_output(True).set_dim(list(result.shape)).set_stride(list(result.stride))
    graph.validate()
    graph.build_operation_graph()
    modes = cudnn.heur_mode
    graph.create_execution_plans([modes.A, modes.B, modes.FALLBACK])
    graph.check_support()
    graph.build_plans(cudnn.build_plan_policy.ALL)

    def plan(index: int) -> Run:
        size = graph.get_workspace_size_plan_at_index(index)
        workspace = torch.empty(max(1, size), dtype=torch.uint8, device=a.device)

        def run(x: Tensor, y: Tensor, z: Tensor) -> None:
            given = dict(zip((*inputs, output), (x, y, z), strict=True))
            graph.execute_plan_at_index(given, workspace, index, handle=handle)

        return run

    return [plan(index) for index in range(graph.get_execution_plan_count())]


def _seconds(run: Run, tensors: tuple[Tensor, Tensor, Tensor]) -> float:
    wait = torch.cuda.synchronize if tensors[0].is_cuda else lambda: None
    run(*tensors)
    wait()
    begin = time.perf_counter()
    for _ in range(CALLS):
        run(*tensors)
    wait()
    return time.perf_counter() - begin
