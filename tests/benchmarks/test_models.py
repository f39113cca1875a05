"""The benchmark of whole networks: its rows, its gates (which must be able to fail), its report."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from benchmarks._gate import WrongResult
from benchmarks._models import gates, providers
from benchmarks._models.workloads import BY_NAME, OPERATIONS, PAPER, WORKLOADS, inputs_of
from segfast.models import list_models


def test_rows_hold_together() -> None:
    assert len(BY_NAME) == len(WORKLOADS)
    for row in WORKLOADS:
        assert row.model in list_models()
        assert row.operation in OPERATIONS
        assert row.name.endswith(f"{row.model}-{row.operation}")
        assert row.providers == ("segfast", "torch")
        assert (row.device == "cuda") == row.name.startswith("cuda-")
    for prefix in ("", "cuda-"):
        for model in PAPER:
            for operation in OPERATIONS:
                assert BY_NAME[f"{prefix}segnet-paper-{model}-{operation}"].memory


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gates(operation: str) -> None:
    """They pass what agrees, and nothing that is off by a hundredth in one tensor."""
    workload = dataclasses.replace(BY_NAME[f"small-segnet_basic-{operation}"], batch=1)
    jobs = {
        name: providers.prepare(name, workload, inputs_of(workload))
        for name in ("segfast", "torch")
    }
    passed = gates.run_gates(workload, jobs)
    assert len(passed) == (4 if operation == "train" else 2)
    scores, *gradients = jobs["segfast"]()
    wrong = (1.01 * scores, *gradients)
    with pytest.raises(WrongResult, match=r"scores of segfast.*nothing was timed"):
        gates.run_gates(workload, {**jobs, "segfast": lambda: wrong})
    zeros = tuple(torch.zeros_like(x) for x in (scores, *gradients))
    with pytest.raises(WrongResult, match=r"scores of torch.*nothing was timed"):
        gates.run_gates(workload, {**jobs, "torch": lambda: zeros})
    with pytest.raises(WrongResult, match="nothing to compare with"):
        gates.run_gates(workload, {"segfast": jobs["segfast"]})


def test_from_the_benchmark_to_the_report(bench: Any) -> None:
    rows, text, _ = bench("models", "small and segnet_basic")
    assert len(rows) == 2
    for row in rows:
        assert [p["name"] for p in row["providers"]] == ["segfast", "torch"]
        assert row["gates"]
        assert row["model_mb"] == pytest.approx(1_425_056 * 4 / 1e6, rel=0.01)
        assert row["workload"] in text
