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

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import _common, report
from benchmarks._max_unpool import providers
from benchmarks._max_unpool.gates import run_gates
from benchmarks._max_unpool.workloads import BY_NAME, WORKLOADS, Workload, inputs_of
from benchmarks._targets import judge

pytest.importorskip("pytest_benchmark", reason="pip install 'segfast[bench]'")

NOTES = (
    "GB/s counts what must be moved: each map once, and the packed indices. Peak MB of the segnet "
    "rows holds all results."
)
_no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ROWS = [
    pytest.param(w, threads, id=f"{w.name}-{threads}t", marks=_no_gpu if w.device == "cuda" else ())
    for w in WORKLOADS
    for threads in w.threads
]


def prepare(workload: str, provider: str) -> _common.Job:
    """The job of one provider, inputs ready (asked for by `benchmarks._memory`)."""
    return providers.prepare(provider, BY_NAME[workload], inputs_of(BY_NAME[workload]))


def prepare_tiny(workload: str, provider: str) -> _common.Job:
    """The same on tiny maps: loads what the provider needs before its memory is measured."""
    tiny = replace(BY_NAME[workload], maps=((1, 2, 8, 8),))
    return providers.prepare(provider, tiny, inputs_of(tiny))


@pytest.mark.parametrize(("workload", "threads"), ROWS, indirect=["threads"])
def test_max_unpool(
    workload: Workload, threads: int, benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {name: why for name in workload.providers if (why := providers.absent(name))}
    names = [name for name in workload.providers if name not in missing]
    maps = inputs_of(workload)
    jobs = {name: providers.prepare(name, workload, maps) for name in names}
    passed = run_gates(workload, jobs)

    with _common.allocator(workload.allocator) as allocator:
        samples = _common.interleaved_benchmark(benchmark, jobs, workload.seconds)
        if not samples:  # --benchmark-disable: the gates and one run each were all
            return
        copy = _common.copy_bandwidth(threads, workload.device)

    rows = []
    for name in names:
        row = _row(workload, samples[name], samples[names[0]])
        row |= {"name": name, "served_by": providers.PROVIDERS[name].served_by(workload.device)}
        memory = _memory(workload, name, threads)
        rows.append(row | {"peak_mb": memory["mb"], "peak_how": memory["how"]})
    ours = rows[0]
    benchmark.extra_info.update(
        operator="max_unpool",
        workload=workload.name,
        size=workload.size,
        dtype=str(workload.dtype).removeprefix("torch."),
        pool=workload.pool,
        threads=threads,
        allocator=allocator,
        detail=workload.detail,
        notes=NOTES,
        load_average=_common.load_average(),
        copy_gb_s=copy,
        gates=passed,
        absent=missing,
        providers=rows,
        targets=judge(workload.targets, threads, rows, copy),
        **{key: ours[key] for key in ("ms", "gb_per_s", "peak_mb", "served_by")},
        ratio={row["name"]: row["ratio"] for row in rows[1:]},
        **_common.facts(),
    )
    with capsys.disabled():
        print("\n\n" + report.summary(benchmark.extra_info))


@functools.cache
def _memory(workload: Workload, provider: str, threads: int) -> dict[str, Any]:
    if not workload.memory or providers.PROVIDERS[provider].compiled:
        return {"mb": None, "how": "not measured for this row"}
    if workload.device == "cuda":
        job = providers.prepare(provider, workload, inputs_of(workload))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        peak = torch.cuda.max_memory_allocated() - before
        return {"mb": peak / 1e6, "how": "torch.cuda.max_memory_allocated"}
    return _common.peak_memory("max_unpool", workload.name, provider, threads)


def _row(workload: Workload, seconds: list[float], ours: list[float]) -> dict[str, Any]:
    """Times and rates of one provider. Lists hold seconds per round."""
    low, median, high = (s / workload.repeat for s in _common.quantiles(seconds))
    ratio_low, ratio, ratio_high = _common.ratio(seconds, ours)
    moved = workload.bytes_moved
    return {
        "ms": 1e3 * median,
        "ms_q20": 1e3 * low,
        "ms_q80": 1e3 * high,
        "rounds": len(seconds),
        "ratio": ratio,  # this provider's time over ours
        "ratio_q20": ratio_low,
        "ratio_q80": ratio_high,
        "gb_per_s": None if moved is None else moved / median / 1e9,
    }
