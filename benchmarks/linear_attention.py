"""Linear attention and its block against PyTorch: time, memory, who served.

    pytest benchmarks/linear_attention.py --benchmark-json=linear_attention.json   # all, 15 min
    pytest benchmarks/linear_attention.py -k small                                 # seconds
    pytest benchmarks/linear_attention.py -k cuda                                  # on a GPU
    python -m benchmarks.report linear_attention.json                              # table and plot

Each test is one workload at one thread count. Correctness comes first: a provider that is further
from float64 than plain PyTorch's arithmetic explains fails the test before anything is timed. Then
all run interleaved. "manet" rows are softplus, "maresu" rows first-order Taylor, numbered by level;
"block" rows include the projections and the residual; "users" rows leave the allocator as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import _common, _measure
from benchmarks._linear_attention import gates, providers, workloads
from benchmarks._linear_attention.workloads import BY_NAME, WORKLOADS, Workload

pytest.importorskip("pytest_benchmark", reason="pip install 'segfast[bench]'")

NOTES = (
    "Sizes are batch x D/E x height x width. GB/s counts what must be moved (q, k, v, the result "
    "and in training their gradients once each; in the block x once per pass, and the weights), "
    "whoever computes. sdpa is softmax attention, another function. Peak MB of training holds "
    "the result and all gradients; extra memory is what is beyond them."
)


SUITE = _measure.suite("linear_attention", NOTES, workloads, providers, gates)


def prepare(workload: str, provider: str) -> _common.Job:
    """The job of one provider, inputs ready (asked for by `benchmarks._memory`)."""
    return SUITE.prepare(provider, BY_NAME[workload])


def prepare_tiny(workload: str, provider: str) -> _common.Job:
    """The same on tiny maps: loads what the provider needs before its memory is measured."""
    tiny = replace(BY_NAME[workload], batch=1, features=4, channels=8, height=8, width=8)
    return SUITE.prepare(provider, tiny)


@_measure.each(WORKLOADS)
def test_linear_attention(
    workload: Workload, threads: int, benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _measure.measure(
        SUITE, workload, threads, benchmark, capsys,
        feature_map=workload.feature_map, operation=workload.operation,
    )  # fmt: skip
