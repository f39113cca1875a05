"""Benchmark of whole networks: both compute the same before anything is timed.

    |ours - torch's| <= LIMIT |torch's|

of the scores, and in training of all gradients together: normalisation over few pixels enlarges
the rounding of single ones.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks._common import Job
from benchmarks._gate import WrongResult, gate
from benchmarks._models.workloads import Workload

# Of norms, in float32; on a GPU, PyTorch's convolutions round to TF32 (10 bits).
LIMITS = {"cpu": 1e-3, "cuda": 3e-2}


def run_gates(workload: Workload, jobs: dict[str, Job]) -> list[dict[str, Any]]:
    """Raises WrongResult where ours differ from PyTorch's."""
    if set(jobs) != {"segfast", "torch"}:
        raise WrongResult(f"{workload.name}: nothing to compare with in {sorted(jobs)}")
    truth = _parts(jobs["torch"]())
    found = _parts(jobs["segfast"]())
    passed = []
    for what, expected in truth.items():
        size = expected.norm()
        label = f"{what} against torch's, {workload.name}, over its norm"
        if not size > 0:
            raise WrongResult(f"{label}: nothing but zeros; nothing was timed")
        if found[what].shape != expected.shape:
            raise WrongResult(f"{label}: shapes differ; nothing was timed")
        error = (found[what] - expected).norm() / size
        passed.append(gate(label, error, 0.0, LIMITS[workload.device]))
    return passed


def _parts(result: Any) -> dict[str, torch.Tensor]:
    scores, *gradients = result
    parts = {"scores": scores.detach().flatten()}
    if gradients:
        parts["gradients"] = torch.cat([g.flatten() for g in gradients])
    return parts
