"""Max-unpooling benchmark: every provider gives PyTorch's bits before anything is timed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks._common import Job
from benchmarks._gate import WrongResult
from benchmarks._max_unpool.workloads import Workload
from segfast.ops import unpack_indices


def tensors(workload: Workload, result: Any) -> list[Tensor]:
    """All tensors of a result; packed indices as PyTorch's."""
    flat = list(torch.utils._pytree.tree_leaves(result))
    size = workload.maps[0][2:]
    return [unpack_indices(t, size, *workload.pool) if t.dtype == torch.uint8 else t for t in flat]


def run_gates(workload: Workload, jobs: dict[str, Job]) -> list[dict[str, Any]]:
    """Raises WrongResult unless every job's result equals the one of "torch" in every bit."""
    expected = tensors(workload, jobs["torch"]())
    passed = []
    for name, job in jobs.items():
        if name == "torch":
            continue
        found = tensors(workload, job())
        wrong = len(found) != len(expected) or not all(
            torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())
            for a, b in zip(found, expected, strict=True)
        )
        if wrong:
            raise WrongResult(f"{workload.name}: {name} differs from torch; nothing was timed")
        passed.append({"name": f"{name} equals torch, {workload.name}", "max_abs": 0.0, "limit": 0})
    return passed
