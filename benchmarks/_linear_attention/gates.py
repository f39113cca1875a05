"""Linear-attention benchmark: everybody is as good as plain PyTorch before anything is timed.

    max |result - oracle| <= factor max |reference - oracle|
                             + u max |oracle| + 2 u_32 sqrt(N) max sum |a_i b_i|

as in `segfast.testing.assert_as_good_as`, for the result or for every gradient; oracle is the
reference in float64, reference the same in the dtype of the row (sums in float32), and a_i b_i are
the summands of an element.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import Job
from benchmarks._gate import gate
from benchmarks._linear_attention import providers
from benchmarks._linear_attention.workloads import Inputs, Workload, inputs_of
from segfast.kernels.linear_attention.magnitudes import magnitudes

OURS = 2.0
# Peers sum in other orders and need not be good, only the same function.
PEERS = 16.0


def tensors(result: Any) -> list[Tensor]:
    """The result, or all gradients, in float64."""
    return [x.detach().double() for x in torch.utils._pytree.tree_leaves(result)]


def _magnitudes(workload: Workload, inputs: Inputs) -> list[float]:
    """max sum |a_i b_i| of the result, or of every gradient."""
    tensors = [x.double() for x in inputs.tensors]
    grad = inputs.grad.double().flatten(2).abs()
    if not workload.block:
        sizes = magnitudes(*tensors, grad, workload.feature_map, providers.EPS)
        return [float(x.max()) for x in (sizes[1:] if workload.train else sizes[:1])]
    x, w_q, b_q, w_k, b_k, w_v, b_v, gamma = tensors
    x = x.flatten(2)
    q, k, v = w_q @ x + b_q[:, None], w_k @ x + b_k[:, None], w_v.abs() @ x.abs()
    v += b_v.abs()[:, None]
    o, *gradients = magnitudes(q, k, v, gamma.abs() * grad, workload.feature_map, providers.EPS)
    if not workload.train:
        return [float((x.abs() + gamma.abs() * o).max())]
    weights = zip(gradients, (w_q, w_k, w_v), strict=True)
    found = [grad + sum(w.abs().mT @ g for g, w in weights)]
    for g in gradients:
        found += [(g @ x.abs().mT).sum(0), g.sum((0, 2))]
    return [float(each.max()) for each in (*found, (grad * o).sum())]


@functools.lru_cache(maxsize=1)
def _truth(workload: Workload) -> tuple[list[Tensor], list[float], list[float]]:
    """The oracle, how far off the reference is in the row's dtype, and the floor below that."""
    inputs = inputs_of(workload)
    truth = tensors(providers.once(providers.EXACT, workload, inputs.to(torch.float64))())
    plain = tensors(providers.once(providers.EXACT, workload, inputs)())
    off = [float((a - b).abs().max()) for a, b in zip(plain, truth, strict=True)]
    unit = torch.finfo(workload.dtype).eps / 2
    sums = torch.finfo(torch.float32).eps * math.sqrt(workload.positions)
    sizes = zip(truth, _magnitudes(workload, inputs), strict=True)
    floor = [unit * float(each.abs().max()) + sums * size for each, size in sizes]
    return truth, off, floor


def _half(workload: Workload) -> bool:
    return workload.dtype.itemsize < 4


def _check(workload: Workload, name: str, job: Job) -> list[dict[str, Any]]:
    found = tensors(job())
    ours = name == "segfast"
    passed = []
    each = zip(found, *_truth(workload), strict=True)
    for i, (result, expected, off, floor) in enumerate(each):
        what = f"gradient {i}" if workload.train else "result"
        # The dtype of the sums is the peers' own: in half precision that may cost them all digits.
        limit = (OURS if ours else PEERS) * off + floor
        label = f"{name} against float64, {workload.name}, {what}"
        if _half(workload) and not ours and not providers.PROVIDERS[name].foreign:
            worst = float((result - expected).abs().max())
            error = worst if math.isfinite(worst) else None  # JSON knows no infinity
            passed.append({"name": f"{label}: recorded only", "max_abs": error, "limit": None})
        else:
            passed.append(gate(label, result, expected, limit))
    return passed


def run_gates(workload: Workload, jobs: dict[str, Job]) -> list[dict[str, Any]]:
    """Raises WrongResult where a job is worse than the limit.

    Published code in half precision sums there and is far off on large maps, which is recorded;
    that it is the same function is checked in float32.
    """
    passed = []
    for name, job in jobs.items():
        if name == "sdpa":
            job()
            passed.append({"name": "sdpa runs (another function)", "max_abs": None, "limit": None})
            continue
        passed += _check(workload, name, job)
    if _half(workload):
        single = replace(workload, dtype=torch.float32)
        plain = [n for n in jobs if n in ("torch", "torch-matmul")]
        inputs = inputs_of(single)
        for name in plain:
            functions = providers.PROVIDERS[name].functions
            passed += _check(single, name, providers.once(functions, single, inputs))
    return passed
