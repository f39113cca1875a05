"""Dilated-convolution benchmark: everybody is as good as PyTorch before anything is timed.

    max |result - oracle| <= 2 max |PyTorch - oracle| + u max |oracle| + 2 u_32 sqrt(K) M

as in `segfast.testing.assert_as_good_as`, for the result or for every gradient: the oracle is
PyTorch in float64, K how many products an element sums, M the largest sum of their magnitudes.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import Job
from benchmarks._dilated_conv import providers
from benchmarks._dilated_conv.workloads import Workload, inputs_of
from benchmarks._gate import gate


def _tensors(result: Any) -> list[Tensor]:
    return [t.detach().double() for t in torch.utils._pytree.tree_leaves(result)]


@functools.lru_cache(maxsize=1)
def _truth(workload: Workload) -> tuple[list[Tensor], list[float]]:
    """The oracle, and how far off one may be."""
    inputs = inputs_of(workload)
    truth = _tensors(providers.once(providers.TORCH, workload, inputs.map(Tensor.double))())
    plain = _tensors(providers.once(providers.TORCH, workload, inputs)())
    sizes = inputs.map(lambda t: t.float().abs())
    magnitudes = _tensors(providers.once(providers.TORCH, workload, sizes)())
    unit = torch.finfo(workload.dtype).eps / 2
    taps = workload.kernel**2
    reach = taps * workload.channels // workload.groups
    maps = workload.batch * workload.side**2
    terms = [taps * workload.outputs * len(workload.rates), *[maps] * len(workload.rates)]
    limits = []
    for i, (exact, theirs, size) in enumerate(zip(truth, plain, magnitudes, strict=True)):
        count = terms[i] if workload.train else reach
        floor = torch.finfo(torch.float32).eps * math.sqrt(count) * float(size.abs().max())
        floor += unit * float(exact.abs().max())
        limits.append(2 * float((theirs - exact).abs().max()) + floor)
    return truth, limits


def run_gates(workload: Workload, jobs: dict[str, Job]) -> list[dict[str, Any]]:
    """Raises WrongResult where a job is worse than the limit."""
    passed = []
    for name, job in jobs.items():
        for i, (found, truth, limit) in enumerate(
            zip(_tensors(job()), *_truth(workload), strict=True)
        ):
            what = f"gradient {i}" if workload.train else "result"
            passed.append(gate(f"{name}, {workload.name}, {what}", found, truth, limit))
    return passed
