"""The dilated-convolution benchmark: table, gates (which must be able to fail), rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from benchmarks import tune
from benchmarks._dilated_conv import gates, providers
from benchmarks._dilated_conv.workloads import (
    BEST,
    BY_NAME,
    CPU,
    OTHER,
    WORKLOADS,
    Workload,
    inputs_of,
    live_taps,
)
from benchmarks._gate import WrongResult
from benchmarks._targets import Mean, Target, contributions, judge


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
def test_row_holds_together(workload: Workload) -> None:
    assert workload.providers[:2] == ("segfast", "torch")  # ours first: ratios are against it
    assert set(workload.providers) <= providers.PROVIDERS.keys()
    assert (workload.device == "cuda") == workload.name.startswith("cuda-")
    assert workload.groups in (1, workload.channels)
    assert workload.kind != "conv" or len(workload.rates) == 1
    for promise in (*workload.targets, *workload.means):
        assert promise.threads in workload.threads
        if getattr(promise, "of", "time") in ("copy", "product"):
            continue
        assert set(promise.peer.split("|")) <= set(workload.providers)


def test_the_promised_rows_are_there() -> None:
    assert len(BY_NAME) == len(WORKLOADS)
    means: dict[Mean, int] = {}
    for row in WORKLOADS:
        assert row.name.startswith(("small", "cuda")) or Target("torch", 2, 0.95) in row.targets
        for mean in row.means:
            means[mean] = means.get(mean, 0) + 1
    promised = {(mean.name, mean.peer, mean.ratio) for mean in means}
    assert promised == {
        ("depthwise forward, rate >= 7", "torch", 8.0),
        ("depthwise train, rate >= 7", "torch", 10.0),
        ("ASPP forward", "torch", 1.4),
        ("ASPP forward, PyTorch's best route", BEST, 1.1),
    }
    assert all(mean.rows == count for mean, count in means.items())
    rates = {row.rates for row in CPU if row.kind == "pyramid"}
    assert {(6, 12, 18), (12, 24, 36), (6, 12, 18, 24)} <= rates


def test_the_promises_on_a_gpu_are_there() -> None:
    """Against every way of PyTorch's; shares of the machine where a call takes 50 us or more."""
    targets = {row.name: set(row.targets) for row in WORKLOADS if row.device == "cuda"}
    for peer in ("torch", OTHER, "cudnn-benchmark", "cudnn-benchmark-other-layout", "cudnn-plans"):
        assert Target(peer, 1, 3.0) in targets["cuda-aspp33r6-12-18-forward"]
        assert Target(peer, 1, 2.0) in targets["cuda-aspp65r12-24-36-forward"]
        assert Target(peer, 1, 1.4) in targets["cuda-aspp33r6-12-18-forward-batch8"]
        assert Target(peer, 1, 1.3) in targets["cuda-aspp33r6-12-18-train-batch8"]
    assert Target("", 1, 0.6, "product") in targets["cuda-aspp65r12-24-36-forward"]
    assert Target("torch", 1, 5.0) in targets["cuda-context-forward"]
    for found in targets.values():
        assert any(t.peer == "torch" and t.ratio >= 0.95 for t in found)
    for layout in ("nchw", "nhwc"):
        row = BY_NAME[f"cuda-wide-2048x33r12-depthwise-{layout}-forward"]
        assert Target("", 1, 0.75, "copy") in row.targets
        assert row.bytes_moved is not None
        assert row.bytes_moved / 4.3e12 > 50e-6


def test_shares_of_the_machine_are_judged() -> None:
    row = {"name": "segfast", "served_by": "triton", "gflop_per_s": 500.0, "gb_per_s": 8.0}
    targets = Target("", 1, 0.6, "product"), Target("", 1, 0.75, "copy")
    judged = judge(targets, 1, [row], copy_gb_s=10.0, product_gflop_s=1000.0)
    assert [(each["measured"], each["met"]) for each in judged] == [(0.5, False), (0.8, True)]


def test_only_products_with_inputs_count() -> None:
    brute = sum(
        0 <= p + t * 12 < 33 and 0 <= q + u * 12 < 33
        for p in range(33) for q in range(33) for t in (-1, 0, 1) for u in (-1, 0, 1)
    )  # fmt: skip
    assert live_taps(33, 12) == brute
    row = BY_NAME["aspp33r6-12-18-forward"]
    assert row.flops == 2 * 2048 * 256 * sum(live_taps(33, r) for r in (6, 12, 18))
    assert BY_NAME["aspp33r6-12-18-train"].flops == 3 * row.flops
    depthwise = BY_NAME["512x33r12-depthwise-nchw-forward"]
    assert depthwise.flops == 2 * 512 * brute
    assert depthwise.bytes_moved == 2 * 4 * 512 * 33 * 33


def test_the_faster_of_two_peers_and_who_keeps_a_promise() -> None:
    rows: list[dict[str, Any]] = [
        {"name": "segfast", "ratio": 1.0, "served_by": "dense"},
        {"name": "torch", "ratio": 3.0, "served_by": "torch"},
        {"name": "torch-other-layout", "ratio": 1.2, "served_by": "torch"},
    ]
    target, never = Target(BEST, 2, 1.1), Target("torch", 2, 0.95)
    assert [each["measured"] for each in judge((target, never), 2, rows)] == [1.2, 3.0]
    assert judge((target,), 2, rows[:2])[0]["measured"] is None
    assert contributions((Mean("a", BEST, 2, 1.1, 1),), 2, rows)[0]["measured"] == 1.2
    rows[0]["served_by"] = "torch"
    assert [each["met"] for each in judge((target, never), 2, rows)] == [False, True]


# ----------------------------------------------------------------------------------------- gates


def job(name: str, workload: Workload) -> Any:
    return providers.prepare(name, workload, inputs_of(workload))


TINY = [row for row in CPU if row.name.startswith("small")]


@pytest.mark.parametrize("workload", TINY, ids=lambda w: w.name)
def test_everybody_passes(workload: Workload) -> None:
    names = [n for n in workload.providers if n != "torch-compile"]
    assert gates.run_gates(workload, {name: job(name, workload) for name in names})


@pytest.mark.parametrize("workload", TINY, ids=lambda w: w.name)
def test_what_is_wrong_is_not_timed(workload: Workload) -> None:
    right = job("torch", workload)

    def wrong() -> Any:
        result = right()
        tensor = result[-1] if workload.train else result
        tensor[0, 0, 1, 1] += 1e-2 * tensor.abs().max()
        return result

    with pytest.raises(WrongResult, match=workload.name):
        gates.run_gates(workload, {"segfast": wrong})


def test_served_by_names_every_kernel_once(any_processor: None, compiled_kernels: None) -> None:
    serves = providers.PROVIDERS["segfast"].served_by
    assert serves(BY_NAME["512x33r12-depthwise-nhwc-train"]) == "direct"
    assert serves(BY_NAME["aspp33r6-12-18-train"]) == "dense"
    assert serves(BY_NAME["layer4-65r2-nhwc-forward"]) == "torch"
    mixed = dataclasses.replace(BY_NAME["layer4-65r2-nchw-train"])
    assert serves(mixed) == "dense, torch"


def test_from_the_benchmark_to_the_report(bench: Any) -> None:
    rows, text, _ = bench(
        "dilated_conv", "small-depthwise-nchw-forward or small-depthwise-nhwc-train"
    )
    assert len(rows) == 2
    assert all(row["gates"] and row["product_gflop_s"] > 0 for row in rows)
    assert "% of a product)" in text


def test_memory_measurements_find_their_job() -> None:
    pytest.importorskip("pytest_benchmark")
    from benchmarks import dilated_conv

    gradients = dilated_conv.prepare_tiny("aspp33r6-12-18-train", "segfast")()
    assert [tuple(g.shape) for g in gradients] == [(1, 8, 8, 8)] + [(8, 8, 3, 3)] * 3


def test_tune_judges_the_plan(capsys: pytest.CaptureFixture[str], compiled_kernels: None) -> None:
    before = torch.get_num_threads()
    try:
        code = tune.main(["--threads", "1", "--seconds", "0.02", "-k", "24-24x20"])
    finally:
        torch.set_num_threads(before)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6  # two layouts, three directions
    assert all("torch" in line and "direct" in line for line in lines)
    assert code == int(any(line.endswith("!") for line in lines))
