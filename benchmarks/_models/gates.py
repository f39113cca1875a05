"""Benchmark of whole networks: ours is as near to the truth as PyTorch's before anything is timed.

    |ours - truth| <= 2 |torch's - truth| + FLOOR |truth|

of the scores, and in training of all gradients together; the truth is PyTorch's in float64.
Normalisation over few pixels enlarges rounding, in both alike.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks._common import Job
from benchmarks._gate import WrongResult, gate
from benchmarks._models import providers
from benchmarks._models.workloads import Workload, inputs_of

FLOOR = 1e-6  # ten roundings of float32
MOST = 0.05  # of PyTorch's own error (TF32 rounds to 1e-3): more means another network


def run_gates(workload: Workload, jobs: dict[str, Job]) -> list[dict[str, Any]]:
    """Raises WrongResult where ours are further from the truth than twice PyTorch's."""
    if set(jobs) != {"segfast", "torch"}:
        raise WrongResult(f"{workload.name}: nothing to compare with in {sorted(jobs)}")
    truth = _parts(providers.exact(workload, inputs_of(workload))())
    found = {name: _parts(jobs[name]()) for name in ("torch", "segfast")}
    passed = []
    for what, expected in truth.items():
        errors = {}
        for name, parts in found.items():
            label = f"{what} of {name}, {workload.name}, against float64, over its norm"
            if parts[what].shape != expected.shape:
                raise WrongResult(f"{label}: shapes differ; nothing was timed")
            errors[name] = (parts[what].double() - expected).norm() / expected.norm()
            limit = MOST if name == "torch" else 2 * float(errors["torch"]) + FLOOR
            passed.append(gate(label, errors[name], 0.0, limit))
    return passed


def _parts(result: Any) -> dict[str, torch.Tensor]:
    scores, *gradients = result
    parts = {"scores": scores.detach().flatten()}
    if gradients:
        parts["gradients"] = torch.cat([g.flatten() for g in gradients])
    return parts
