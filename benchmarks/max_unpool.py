"""Max-pooling with packed indices and max-unpooling against PyTorch: time, memory, who served.

    pytest benchmarks/max_unpool.py --benchmark-json=max_unpool.json     # all, about five minutes
    pytest benchmarks/max_unpool.py -k small                             # seconds
    pytest benchmarks/max_unpool.py -k cuda                              # on a GPU
    python -m benchmarks.report max_unpool.json                          # table and plot

Each test is one workload at one thread count. Correctness comes first: a provider whose result
differs from PyTorch's in one bit fails the test before anything is timed. Then all run interleaved.
Rows named after a layout are SegNet's first pool (64x360x480, float32) with the allocator kept
warm; "level" rows all its pools, one by one; "segnet" rows the whole pyramid, as users meet it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import _common, _measure
from benchmarks._max_unpool import gates, providers, workloads
from benchmarks._max_unpool.workloads import BY_NAME, WORKLOADS, Workload

pytest.importorskip("pytest_benchmark", reason="pip install 'segfast[bench]'")

NOTES = (
    "GB/s counts what must be moved: each map once, and the packed indices. Peak MB of the segnet "
    "rows holds all results."
)


SUITE = _measure.suite("max_unpool", NOTES, workloads, providers, gates)


def prepare(workload: str, provider: str) -> _common.Job:
    """The job of one provider, inputs ready (asked for by `benchmarks._memory`)."""
    return SUITE.prepare(provider, BY_NAME[workload])


def prepare_tiny(workload: str, provider: str) -> _common.Job:
    """The same on tiny maps: loads what the provider needs before its memory is measured."""
    tiny = replace(BY_NAME[workload], maps=((1, 2, 8, 8),))
    return SUITE.prepare(provider, tiny)


@_measure.each(WORKLOADS)
def test_max_unpool(
    workload: Workload, threads: int, benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _measure.measure(SUITE, workload, threads, benchmark, capsys, pool=workload.pool)
