"""Whole networks by segfast's operators and by PyTorch's: time, memory, size.

    pytest benchmarks/models.py --benchmark-json=models.json           # all
    pytest benchmarks/models.py -k small                               # seconds
    pytest benchmarks/models.py -k "segnet-paper and not cuda"         # the SegNet paper's table
    pytest benchmarks/models.py -k cuda                                # on a GPU
    python -m benchmarks.report models.json                            # table and plot

Each test is one network, forward or with gradients. Both must compute the same before anything is
timed; then they run interleaved.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import _common, _measure
from benchmarks._models import gates, providers, workloads
from benchmarks._models.workloads import BY_NAME, LEAST, WORKLOADS, Workload
from segfast.models import create_model

pytest.importorskip("pytest_benchmark", reason="pip install 'segfast[bench]'")

NOTES = (
    "Whole networks in float32 with random parameters: forward in evaluation mode without "
    "gradients, train with those of all parameters in training mode (forward and backward), "
    "backward the second half of that alone. "
    '"segnet-paper" rows are the networks whose costs the SegNet paper compares; model_mb, in '
    "the JSON file, is the size of their parameters and statistics."
)

SUITE = _measure.suite("models", NOTES, workloads, providers, gates)


def prepare(workload: str, provider: str) -> _common.Job:
    """The job of one provider, inputs ready (asked for by `benchmarks._memory`)."""
    return SUITE.prepare(provider, BY_NAME[workload])


def prepare_tiny(workload: str, provider: str) -> _common.Job:
    """The same on a tiny image: loads what the provider needs before its memory is measured."""
    row = BY_NAME[workload]
    side = LEAST.get(row.model, 64)
    return SUITE.prepare(provider, replace(row, batch=2, height=side, width=side))


def model_mb(name: str) -> float:
    """Parameters and statistics in float32."""
    with torch.device("meta"):
        state = create_model(name).state_dict()
    return sum(x.numel() * x.element_size() for x in state.values()) / 1e6


@_measure.each(WORKLOADS)
def test_models(
    workload: Workload, threads: int, benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _measure.measure(
        SUITE, workload, threads, benchmark, capsys,
        model=workload.model, operation=workload.operation, model_mb=model_mb(workload.model),
        paper=workload.paper,
    )  # fmt: skip
