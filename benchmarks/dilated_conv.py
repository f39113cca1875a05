"""Dilated convolutions, ASPP and the context module against PyTorch: time, memory, who served.

    pytest benchmarks/dilated_conv.py --benchmark-json=dilated_conv.json     # all, 15 minutes
    pytest benchmarks/dilated_conv.py -k small                               # seconds
    pytest benchmarks/dilated_conv.py -k cuda                                # on a GPU
    python -m benchmarks.report dilated_conv.json                            # table and plot

Each test is one workload at one thread count. Correctness comes first: a provider that is further
from float64 than PyTorch's arithmetic explains fails the test before anything is timed. Then all
run interleaved. "aspp" rows are the dilated branches of DeepLab's module at once, 2048 to 256
channels each; "layer4" rows single convolutions of ResNet's last stage, "segfast-winograd" the same
with segfast.allow_winograd; "depthwise" rows those of separable networks, in both memory formats;
"context" the dilated context module of 21 classes; "batch8" rows the same for eight images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import _common, _measure
from benchmarks._dilated_conv import gates, providers, workloads
from benchmarks._dilated_conv.workloads import BY_NAME, WORKLOADS, Workload

pytest.importorskip("pytest_benchmark", reason="pip install 'segfast[bench]'")

NOTES = (
    "GFLOP/s counts products with inputs, none with padding, whoever computes, as a share of "
    "PyTorch's product of large matrices in the same process. torch-other-layout converts to "
    "channels_last and back; on a GPU cudnn-benchmark is PyTorch in cuDNN's benchmark mode, and "
    "cudnn-plans the fastest of all plans of cuDNN's frontend, each convolution by itself. Rows "
    "that PyTorch serves (torch) count for no promise above 1."
)


SUITE = _measure.suite("dilated_conv", NOTES, workloads, providers, gates)


def prepare(workload: str, provider: str) -> _common.Job:
    """The job of one provider, inputs ready (asked for by `benchmarks._memory`)."""
    return SUITE.prepare(provider, BY_NAME[workload])


def prepare_tiny(workload: str, provider: str) -> _common.Job:
    """The same on tiny maps: loads what the provider needs before its memory is measured."""
    row = BY_NAME[workload]
    few = 8 if row.groups == 1 else row.groups
    return SUITE.prepare(provider, replace(row, batch=1, channels=few, outputs=few, side=8))


@_measure.each(WORKLOADS)
def test_dilated_conv(
    workload: Workload, threads: int, benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _measure.measure(SUITE, workload, threads, benchmark, capsys, kind=workload.kind)
