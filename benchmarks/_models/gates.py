"""Benchmark of whole networks: the same network in both, before anything is timed.

    |ours - truth| <= EXACT |truth|                                      in float64
    |ours - truth| <= 2 |torch's - truth| + FLOOR |truth|                scores in float32
    |ours - truth| <= max(2 |torch's - truth| + FLOOR |truth|, MOST |truth|)    gradients in float32

The truth is PyTorch's in float64. Where two values of a window nearly tie, rounding to float32
sends its gradient elsewhere, in either by chance: hence MOST.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks._common import Job
from benchmarks._gate import WrongResult, gate
from benchmarks._models import providers
from benchmarks._models.workloads import Workload, inputs_of

EXACT = 1e-9  # what the tests ask of networks against the published code
FLOOR = 1e-6  # ten roundings of float32
MOST = 0.05  # of PyTorch's scores (TF32 rounds to 1e-3), too: more means another network


def run_gates(workload: Workload, jobs: dict[str, Job]) -> list[dict[str, Any]]:
    """Raises WrongResult where ours are further from the truth than twice PyTorch's."""
    if set(jobs) != {"segfast", "torch"}:
        raise WrongResult(f"{workload.name}: nothing to compare with in {sorted(jobs)}")
    x = inputs_of(workload)
    truth, exact = (_parts(providers.exact(name, workload, x)()) for name in ("torch", "segfast"))
    passed = [
        gate(f"{what} of segfast in float64, {workload.name}, over its norm",
             _distance(exact[what], truth[what], workload), 0.0, EXACT)
        for what in truth
    ]  # fmt: skip
    found = {name: _parts(jobs[name]()) for name in ("torch", "segfast")}
    for what, expected in truth.items():
        error = {name: _distance(found[name][what], expected, workload) for name in found}
        label = f"{what} of {{}}, {workload.name}, against float64, over its norm"
        limit = 2 * float(error["torch"]) + FLOOR
        if what == "scores":
            passed.append(gate(label.format("torch"), error["torch"], 0.0, MOST))
        else:
            limit = max(limit, MOST)
        passed.append(gate(label.format("segfast"), error["segfast"], 0.0, limit))
    return passed


def _distance(found: torch.Tensor, truth: torch.Tensor, workload: Workload) -> torch.Tensor:
    if found.shape != truth.shape:
        raise WrongResult(f"{workload.name}: shapes differ; nothing was timed")
    return (found.double() - truth).norm() / truth.norm()


def _parts(result: Any) -> dict[str, torch.Tensor]:
    scores, *gradients = result
    parts = {"scores": scores.detach().flatten()}
    if gradients:
        parts["gradients"] = torch.cat([g.flatten() for g in gradients])
    return parts
