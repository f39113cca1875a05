"""The benchmark of whole networks: its rows, its gates (which must be able to fail), its report."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from benchmarks._gate import WrongResult
from benchmarks._models import gates, providers
from benchmarks._models.paper import paper_table
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
                row = BY_NAME[f"{prefix}segnet-paper-{model}-{operation}"]
                assert row.memory
                assert row.paper


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gates(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They pass what agrees, no scores off by a hundredth, no gradients off by a twentieth."""
    row = BY_NAME["small-segnet_basic-forward"]
    workload = dataclasses.replace(row, batch=1, operation=operation)
    jobs = {
        name: providers.prepare(name, workload, inputs_of(workload))
        for name in ("segfast", "torch")
    }
    passed = gates.run_gates(workload, jobs)
    assert len(passed) == (3 if operation == "forward" else 5)
    scores, *gradients = jobs["segfast"]()
    wrong = (1.01 * scores, *gradients)
    with pytest.raises(WrongResult, match=r"scores of segfast.*nothing was timed"):
        gates.run_gates(workload, {**jobs, "segfast": lambda: wrong})
    if gradients:
        wrong = (scores, *(1.06 * g for g in gradients))
        with pytest.raises(WrongResult, match=r"gradients of segfast.*nothing was timed"):
            gates.run_gates(workload, {**jobs, "segfast": lambda: wrong})
    zeros = tuple(torch.zeros_like(x) for x in (scores, *gradients))
    with pytest.raises(WrongResult, match=r"scores of torch.*nothing was timed"):
        gates.run_gates(workload, {**jobs, "torch": lambda: zeros})
    with pytest.raises(WrongResult, match="nothing to compare with"):
        gates.run_gates(workload, {"segfast": jobs["segfast"]})

    exact = providers.exact

    def off(name: str, *rest: Any) -> Any:
        parts = exact(name, *rest)()
        return lambda: parts if name == "torch" else tuple(p * (1 + 1e-8) for p in parts)

    monkeypatch.setattr(providers, "exact", off)
    with pytest.raises(WrongResult, match=r"scores of segfast in float64.*nothing was timed"):
        gates.run_gates(workload, jobs)


def test_from_the_benchmark_to_the_report(bench: Any) -> None:
    rows, text, _ = bench("models", "small and segnet_basic")
    assert len(rows) == 2
    for row in rows:
        assert [p["name"] for p in row["providers"]] == ["segfast", "torch"]
        assert row["gates"]
        assert row["model_mb"] == pytest.approx(1_425_056 * 4 / 1e6, rel=0.01)
        assert row["workload"] in text


def test_table_of_the_segnet_paper() -> None:
    """Each figure in its column, by its provider; a dash for what was not measured."""

    def row(operation: str, ms: float, peak_mb: float | None, paper: bool = True) -> Any:
        ours = {"name": "segfast", "ms": ms, "peak_mb": peak_mb}
        theirs = {"name": "torch", "ms": 2 * ms, "peak_mb": None}
        same = {"model": "segnet", "size": "segnet, 1x3x240x320", "model_mb": 117.8}
        return same | {"operation": operation, "paper": paper, "providers": [ours, theirs]}

    rows = [row("forward", 10, 30), row("backward", 20, 40), row("train", 31, 50)]
    assert paper_table(rows).splitlines()[2:] == [
        "| segnet, 1x3x240x320 | segfast | 10 | 20 | 50 | 30 | 117.8 |",
        "|  | torch | 20 | 40 | - | - |  |",
    ]
    assert paper_table(rows[:1]).splitlines()[2].endswith("| 10 | - | - | 30 | 117.8 |")
    assert paper_table([row("forward", 10, 30, paper=False)]) == ""
