"""Dense CRF against pydensecrf and a PyTorch brute force: time, peak memory, who served.

    pytest benchmarks/dense_crf.py --benchmark-json=dense_crf.json       # all, 7 minutes
    pytest benchmarks/dense_crf.py -k small                              # seconds
    pytest benchmarks/dense_crf.py -k cuda                               # on a GPU
    python -m benchmarks.report dense_crf.json                           # table and plot

Each test is one workload at one thread count. Correctness comes first: a provider that disagrees
with the float64 oracle, or with pydensecrf, fails the test before anything is timed. Then all
providers run interleaved; pytest-benchmark's own columns are segfast's, the peers and ratios are
printed below them and kept in ``extra_info``. pydensecrf is optional: its absence is said.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from benchmarks import _common, _measure, report
from benchmarks._dense_crf import providers
from benchmarks._dense_crf.gates import gates
from benchmarks._dense_crf.workloads import BY_NAME, WORKLOADS, Workload, at, inputs_of
from benchmarks._targets import judge

pytest.importorskip("pytest_benchmark", reason="pip install 'segfast[bench]'")
pytest.importorskip("skimage", reason="the photographs: pip install 'segfast[bench]'")

SECONDS = {"cpu": 8.0, "cuda": 3.0}  # of timing per row; at least three rounds
PART_ROUNDS = 3  # rounds at one iteration, from which set-up and iteration are told apart
NOTES = "GB/s counts belief and logits only; Gpair/s counts all N^2 pairs, skipped ones too."
ROWS = [
    pytest.param(
        workload,
        threads,
        id=f"{workload.name}-{threads}t",
        marks=pytest.mark.skipif(
            workload.device == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"
        ),
    )
    for workload in WORKLOADS
    for threads in workload.threads
]


def prepare(workload: str, provider: str) -> _common.Job:
    """The job of one provider, inputs ready (asked for by `benchmarks._memory`)."""
    return _prepare(BY_NAME[workload], provider)


def prepare_tiny(workload: str, provider: str) -> _common.Job:
    """The same on a tiny image: loads what the provider needs before its memory is measured."""
    return _prepare(replace(BY_NAME[workload], size=(24, 32, 5), picture="noise"), provider)


def _prepare(workload: Workload, provider: str) -> _common.Job:
    return providers.prepare(provider, workload, inputs_of(workload))


@pytest.mark.parametrize(("workload", "threads"), ROWS, indirect=["threads"])
def test_dense_crf(
    workload: Workload, threads: int, benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = gates(workload.name)
    inputs = inputs_of(workload)
    missing = {name: why for name in workload.providers if (why := providers.absent(name))}
    names = [name for name in workload.providers if name not in missing]
    jobs = {name: providers.prepare(name, workload, inputs) for name in names}
    once = {name: providers.prepare(name, at(workload, 1), inputs) for name in names}

    with _common.allocator(workload.allocator) as allocator:
        samples = _common.interleaved_benchmark(benchmark, jobs, SECONDS[workload.device])
        if not samples:  # --benchmark-disable: the gates and one run each were all
            return
        is_filter = "filter" in workload.name
        parts = {} if is_filter else _common.interleaved(once, PART_ROUNDS)
        copy = _common.copy_bandwidth(threads, workload.device)

    rows = []
    for name in names:
        row = _row(workload, samples[name], parts.get(name), samples[names[0]])
        if workload.device == "cuda":
            row["device_ms"] = _common.device_ms(jobs[name])
        memory = _memory(workload, name, threads if name == names[0] else max(workload.threads))
        served_by = providers.PROVIDERS[name].served_by(workload.device)
        row |= {"name": name, "served_by": served_by}
        row |= {"peak_mb": memory["mb"], "peak_how": memory["how"]}
        rows.append(row)

    ours = rows[0]
    benchmark.extra_info.update(
        operator="dense_crf",
        workload=workload.name,
        labels=workload.labels,
        height=workload.height,
        width=workload.width,
        size=f"{workload.width}x{workload.height}x{workload.labels}",
        iterations=None if is_filter else workload.iterations,
        model=asdict(workload.model),
        threads=threads,
        allocator=allocator,
        load_average=_common.load_average(),
        copy_gb_s=copy,
        gates=passed,
        gpu=_common.gpu(workload.device),
        absent=missing,
        providers=rows,
        targets=judge(workload.targets, threads, rows),
        notes=NOTES,
        **{key: ours[key] for key in ("ms", "pixels_per_s", "gb_per_s", "peak_mb", "served_by")},
        ratio={row["name"]: row["ratio"] for row in rows[1:]},
        **_common.facts(),
    )
    with capsys.disabled():
        print("\n\n" + report.summary(benchmark.extra_info))


@functools.cache
def _memory(workload: Workload, provider: str, threads: int) -> dict[str, Any]:
    if not workload.memory:
        return {"mb": None, "how": "not measured for this workload"}
    if workload.device == "cuda":
        return _common.device_memory(_prepare(workload, provider))
    return _common.peak_memory("dense_crf", workload.name, provider, threads)


def _row(
    workload: Workload, seconds: list[float], part: list[float] | None, ours: list[float]
) -> dict[str, Any]:
    """Times, rates and parts of one provider. Lists hold seconds per round."""
    row = _measure.times(seconds, ours)
    median = row["ms"] / 1e3
    row |= {
        "pixels_per_s": workload.pixels / median,
        "gb_per_s": None,
        "gpairs_per_s": None,
        "setup_ms": None,
        "iteration_ms": None,
    }
    if part is not None and workload.iterations > 1:  # time = set-up + iterations * iteration
        first = _common.quantiles(part)[1]
        step = (median - first) / (workload.iterations - 1)
        row |= {"setup_ms": max(0.0, 1e3 * (first - step)), "iteration_ms": 1e3 * step}
    if "segfast" in workload.providers:
        # Compulsory traffic: logits and belief read, belief written, in every iteration. What the
        # lattice itself moves comes on top, so this is a lower bound.
        moved = 3 * 4 * workload.labels * workload.pixels * workload.iterations
        row["gb_per_s"] = moved / median / 1e9
    else:  # the arithmetic of all pairs decides: pairs summed over, skipped ones counted as done
        passes = 1 if part is None else workload.iterations + 1  # one more for the normalisation
        row["gpairs_per_s"] = passes * workload.pixels**2 / median / 1e9
    return row
