"""The max-unpooling benchmark's table, its gates (which must be able to fail), and its rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from benchmarks import _measure
from benchmarks._gate import WrongResult
from benchmarks._max_unpool import gates, providers
from benchmarks._max_unpool.workloads import (
    BY_NAME,
    OPERATIONS,
    RATIOS,
    WORKLOADS,
    Workload,
    inputs_of,
    pyramid,
)
from benchmarks._targets import Target, judge

TINY = ((2, 3, 9, 12), (2, 4, 4, 6))


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
def test_row_holds_together(workload: Workload) -> None:
    assert workload.operation in OPERATIONS
    assert workload.layout in ("nchw", "nhwc")
    assert workload.providers[:2] == ("segfast", "torch")  # ours first: ratios are against it
    assert set(workload.providers) <= providers.PROVIDERS.keys()
    assert len(workload.maps) == 1 or workload.operation in ("forward", "train")
    assert (workload.device == "cuda") == workload.name.startswith("cuda-")
    for target in workload.targets:
        assert target.threads in workload.threads
        assert target.of == "copy" or target.peer in workload.providers
        assert target.of != "memory" or workload.memory


def test_the_promises_on_a_gpu_are_there() -> None:
    """Of SegNet's batch, where a call takes 50 us or more."""
    ratios = {"pool": 1.6, "unpool": 2.2, "pool-backward": 1.7, "unpool-backward": 1.7}
    for layout in ("nchw", "nhwc"):
        for operation, ratio in ratios.items():
            row = BY_NAME[f"cuda-{layout}-{operation}"]
            assert row.targets == (Target("torch", 1, ratio), Target("", 1, 0.8, "copy"))
            assert (row.maps, row.dtype) == (((12, 64, 360, 480),), torch.bfloat16)
            assert row.bytes_moved is not None
            assert row.bytes_moved / 4.3e12 > 50e-6


def test_names_are_unique_and_the_allocator_is_changed_last() -> None:
    assert len(BY_NAME) == len(WORKLOADS)
    modes = [row.allocator for row in WORKLOADS]
    assert modes == sorted(modes)


def test_the_promised_rows_are_there() -> None:
    """Ratios on two threads, 64x360x480; 60 % of copy; no level below 0.95."""
    assert RATIOS["nchw"] == {
        "pool": 12, "unpool": 2, "pool-backward": 2.5, "unpool-backward": 1.7,
    }  # fmt: skip
    assert RATIOS["nhwc"] == {
        "pool": 1, "unpool": 1.4, "pool-backward": 2, "unpool-backward": 8,
    }  # fmt: skip
    for layout, ratios in RATIOS.items():
        for operation, ratio in ratios.items():
            row = BY_NAME[f"{layout}-{operation}"]
            assert row.maps == ((1, 64, 360, 480),)
            assert (row.allocator, row.dtype) == ("warm", torch.float32)
            assert set(row.targets) == {Target("torch", 2, ratio), Target("", 2, 0.6, "copy")}
            for level in range(1, 6):
                row = BY_NAME[f"level{level}-{layout}-{operation}"]
                assert row.maps == pyramid(1)[level - 1 : level]
                assert row.targets == (Target("torch", 2, 0.95),)
        for batch in (1, 12):
            for operation in ("forward", "train"):
                row = BY_NAME[f"segnet{batch}-{layout}-{operation}"]
                assert row.memory
                assert row.maps == tuple((batch, *shape[1:]) for shape in pyramid(1))


def test_pyramid_holds_505_mb_of_indices() -> None:
    windows = sum(n * c * (h // 2) * (w // 2) for n, c, h, w in pyramid(12))
    assert round(windows * 8 / 1e6) == 505
    assert round(windows / 4 / 1e6) == 16


def test_bytes_moved() -> None:
    one = dataclasses.replace(BY_NAME["nchw-pool"], maps=((2, 3, 8, 10),))
    assert one.bytes_moved == 480 * 4 + 120 * 4 + 120 // 4
    half = dataclasses.replace(one, dtype=torch.bfloat16, pool=(3, 2, 1))
    assert half.bytes_moved == 480 * 2 + 120 * 2 + 120 // 2
    assert dataclasses.replace(one, operation="forward").bytes_moved == 2 * one.bytes_moved
    assert dataclasses.replace(one, operation="train").bytes_moved is None


# ----------------------------------------------------------------------------------------- gates


def tiny(operation: str, layout: str = "nchw") -> Workload:
    several = operation in ("forward", "train")
    return Workload("tiny", operation, TINY if several else TINY[:1], layout)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_passes_its_gate(operation: str, layout: str) -> None:
    workload = tiny(operation, layout)
    maps = inputs_of(workload)
    (passed,) = gates.run_gates(
        workload,
        {
            name: providers._job(providers.PROVIDERS[name].functions, False, workload, maps)
            for name in workload.providers
        },
    )
    assert passed["name"].startswith("segfast equals torch")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_can_fail_its_gate(operation: str) -> None:
    """One value off by one ulp, or one index by one."""
    workload = tiny(operation)
    maps = inputs_of(workload)
    right = providers._job(providers.TORCH, False, workload, maps)

    def wrong() -> Any:
        flat = [t.clone() for t in gates.tensors(workload, right())]
        last = flat[-1].view(-1)
        last[-1] = last[-1] + 1 if last.dtype == torch.int64 else torch.nextafter(
            last[-1], torch.tensor(torch.inf))  # fmt: skip
        return flat

    with pytest.raises(WrongResult, match=r"tiny: segfast differs.*nothing was timed"):
        gates.run_gates(workload, {"segfast": wrong, "torch": right})


def test_small_maps_are_repeated_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    workload = dataclasses.replace(tiny("pool"), maps=((1, 64, 100, 125),))
    assert workload.repeat == 5

    def pool(*arguments: Any) -> Any:
        calls.append(1)
        return providers.TORCH.pool(*arguments)

    counted = providers.Provider(dataclasses.replace(providers.TORCH, pool=pool), str)
    monkeypatch.setitem(providers.PROVIDERS, "torch", counted)
    job = providers.prepare("torch", workload, inputs_of(workload))
    calls.clear()
    job()
    assert len(calls) == 5


# ------------------------------------------------------------------------------------------ rows


def test_row_arithmetic() -> None:
    workload = dataclasses.replace(tiny("pool"), maps=((1, 64, 100, 125),))  # 5 calls a round
    row = _measure.figures(workload, [0.4, 0.4, 0.4], [0.1, 0.1, 0.1])
    assert row["ms"] == pytest.approx(80)
    assert row["ratio"] == pytest.approx(4)
    assert row["gb_per_s"] == pytest.approx(workload.bytes_moved / 0.08 / 1e9)


@pytest.mark.parametrize(("gb_per_s", "met"), [(30.0, True), (29.0, False)])
def test_share_of_copy_is_judged(gb_per_s: float, met: bool) -> None:
    ours = {"name": "segfast", "ratio": 1.0, "gb_per_s": gb_per_s, "served_by": "max_unpool_cpu"}
    (judged,) = judge([Target("", 2, 0.6, "copy")], 2, [ours], 50.0)
    assert judged["met"] is met
    assert judged["measured"] == pytest.approx(gb_per_s / 50)
    (unknown,) = judge([Target("", 2, 0.6, "copy")], 2, [ours], None)
    assert unknown["met"] is None
    slow = {**ours, "served_by": "PyTorch reference (kernels/max_unpool/reference.py)"}
    assert judge([Target("", 2, 0.1, "copy")], 2, [slow], 50.0)[0]["met"] is False


def test_from_the_benchmark_to_the_report(bench: Any) -> None:
    rows, text, _ = bench("max_unpool", "small-nchw-forward or small-nhwc-train")
    for row in ("nchw-forward", "nhwc-train"):
        assert f"| small-{row} (2x8x45x60 and 1 more, warm allocator)" in text
    assert "set-up" not in text  # a column of the dense CRF's
    assert "packed indices" in text  # the benchmark's own note
    assert len(rows) == 2
    for row in rows:
        assert row["operator"] == "max_unpool"
        assert [p["name"] for p in row["providers"]] == ["segfast", "torch"]
        assert row["gates"]


def test_memory_measurements_find_their_job() -> None:
    """What `benchmarks._memory` asks for, tiny first."""
    pytest.importorskip("pytest_benchmark")
    from benchmarks import max_unpool

    job = max_unpool.prepare_tiny("segnet12-nhwc-train", "segfast")
    assert [g.shape for g in job()] == [(1, 2, 8, 8)]
