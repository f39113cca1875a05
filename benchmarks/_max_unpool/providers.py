"""Max-unpooling benchmark: who computes, and the operations that everybody is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config  # not imported by torch itself
import torch.nn.functional as F
from torch import Tensor

import segfast
from benchmarks._common import Job
from benchmarks._max_unpool.workloads import Workload
from benchmarks._measure import Provider, repeated
from segfast import ops

Maps = list[Tensor]


@dataclass(frozen=True)
class Functions:
    """A pool with indices and the unpooling that takes them."""

    pool: Callable[..., tuple[Tensor, Tensor]]  # x, kernel, stride, padding
    unpool: Callable[..., Tensor]  # y, indices, kernel, stride, padding, output_size


def _torch_pool(x: Tensor, *pool: Any) -> tuple[Tensor, Tensor]:
    return F.max_pool2d(x, *pool, return_indices=True)


SEGFAST = Functions(ops.max_pool2d_packed, ops.max_unpool2d)
TORCH = Functions(_torch_pool, F.max_unpool2d)


# Each builds a function of the maps, which torch.compile may compile.
def _pool(functions: Functions, pool: tuple[int, int, int]) -> Callable[..., Any]:
    return lambda x: functions.pool(x, *pool)


def _unpool(
    functions: Functions, pool: tuple[int, int, int], size: Sequence[int]
) -> Callable[..., Tensor]:
    return lambda y, indices: functions.unpool(y, indices, *pool, output_size=size)


def _pyramid(functions: Functions, pool: tuple[int, int, int], scaled: bool) -> Callable[..., Maps]:
    """Encoder, then decoder. `scaled`: the maps are made first, and need not be kept."""

    def run(*maps: Tensor) -> Maps:
        undo = []
        for x in maps:
            undo.append((*functions.pool(x * 1.5 if scaled else x, *pool), x.shape[-2:]))
        return [functions.unpool(y, indices, *pool, output_size=size)
                for y, indices, size in reversed(undo)]  # fmt: skip

    return run


def _job(functions: Functions, compile_: bool, workload: Workload, maps: Maps) -> Job:
    """One operation on its inputs; gradients are of sum(output * map)."""
    pool, operation = workload.pool, workload.operation
    finish = (lambda f: torch.compile(f, dynamic=False)) if compile_ else (lambda f: f)
    if operation in ("forward", "train"):
        run = finish(_pyramid(functions, pool, operation == "train"))
        if operation == "forward":
            return lambda: run(*maps)
        weights = list(reversed(maps))

        def train() -> Any:
            leaves = [x.detach().requires_grad_() for x in maps]
            return torch.autograd.grad(run(*leaves), leaves, weights)

        return train
    (x,) = maps
    size = x.shape[-2:]
    pooling, unpooling = finish(_pool(functions, pool)), finish(_unpool(functions, pool, size))
    y, indices = functions.pool(x, *pool)
    if operation == "pool":
        return lambda: pooling(x)
    if operation == "unpool":
        return lambda: unpooling(y, indices)
    backward = operation == "pool-backward"
    leaf = (x if backward else y).detach().requires_grad_()
    with torch._functorch.config.patch(donated_buffer=False):  # compiled graphs can be kept, too
        output = pooling(leaf)[0] if backward else unpooling(leaf, indices)
    weight = y.cos() if backward else x
    return lambda: torch.autograd.grad(output, leaf, weight, retain_graph=True)


def prepare(name: str, workload: Workload, maps: Maps) -> Job:
    """`workload.repeat` times the operation; returns the last result."""
    provider = PROVIDERS[name]
    return repeated(_job(provider.functions, provider.compiled, workload, maps), workload)


def _segfast_serves(workload: Workload) -> str:
    return str(segfast.info()["served_by"]["max_unpool"][workload.device])


PROVIDERS = {
    "segfast": Provider(SEGFAST, _segfast_serves),
    "torch": Provider(TORCH, lambda workload: f"torch {torch.__version__}"),
    "torch-compile": Provider(TORCH, lambda workload: f"inductor, torch {torch.__version__}", True),
}
