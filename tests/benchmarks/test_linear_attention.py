"""The linear-attention benchmark's table, its gates (which must be able to fail), and its rows."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import _common, _measure, report
from benchmarks._gate import WrongResult
from benchmarks._linear_attention import gates, providers
from benchmarks._linear_attention.workloads import (
    BY_NAME,
    NETWORKS,
    OPERATIONS,
    WORKLOADS,
    Workload,
    inputs_of,
)
from benchmarks._targets import Mean, Target, contributions, judge

PLAIN = ("segfast", "torch", "torch-matmul")


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
def test_row_holds_together(workload: Workload) -> None:
    assert workload.operation in OPERATIONS
    assert workload.name.endswith(workload.operation)
    assert workload.feature_map in ("softplus", "taylor")
    assert workload.providers[:2] == ("segfast", "torch")  # ours first: ratios are against it
    assert set(workload.providers) <= providers.PROVIDERS.keys()
    assert (workload.device == "cuda") == workload.name.startswith("cuda-")
    assert "flash-bla" not in workload.providers or workload.device == "cuda"
    if "sdpa" in workload.providers:  # quadratic
        assert workload.positions <= (4096 if workload.device == "cpu" else 16384)
    for target in workload.targets:
        assert target.threads in workload.threads
        assert target.of == "copy" or target.peer in workload.providers
        assert "memory" not in target.of or workload.memory
    for mean in workload.means:
        assert mean.threads in workload.threads
        assert mean.peer in workload.providers


def test_names_are_unique_and_the_allocator_is_changed_last() -> None:
    assert len(BY_NAME) == len(WORKLOADS)
    modes = [row.allocator for row in WORKLOADS]
    assert modes == sorted(modes)


def test_the_promised_rows_are_there() -> None:
    """Four shapes, float32, two threads, batch 1; what was promised of all, and of each."""
    shapes = {
        "manet1": ("softplus", 32, 256, 128),
        "manet2": ("softplus", 64, 512, 64),
        "maresu1": ("taylor", 8, 64, 256),
        "maresu2": ("taylor", 16, 128, 128),
    }
    for name, (feature_map, d, e, side) in shapes.items():
        for operation, eager in (("forward", 4.0), ("train", 3.5)):
            row = BY_NAME[f"{name}-{operation}"]
            assert (row.batch, row.features, row.channels) == (1, d, e)
            assert (row.feature_map, row.height, row.width) == (feature_map, side, side)
            assert (row.allocator, row.dtype, row.threads) == ("warm", torch.float32, (2,))
            assert set(row.means) == {
                Mean(operation, "torch", 2, eager, 4),
                Mean(operation, "torch-compile", 2, 3.0, 4),
            }
            each = {Target("torch", 2, 2.0), Target("torch-compile", 2, 2.0)}
            if operation == "train":
                each.add(Target("torch", 2, 3.0, "extra memory"))
            assert set(row.targets) == each
    assert sum(bool(row.means) for row in WORKLOADS) == 8
    for network, (_, levels) in NETWORKS.items():
        for level, (d, e, _) in enumerate(levels, 1):
            for operation in OPERATIONS:
                assert BY_NAME[f"{network}{level}-batch4-{operation}"].batch == 4
                row = BY_NAME[f"cuda-{network}{level}-{operation}"]
                assert (row.batch, row.features, row.channels) == (4, d, e)
                assert row.dtype == torch.bfloat16


def test_bytes() -> None:
    row = Workload("a", "forward", "softplus", 2, 4, 8, 3, 5)  # N = 15
    assert row.bytes_moved == 4 * 2 * 15 * (4 + 4 + 8 + 8)
    assert row.result_bytes == 4 * 2 * 15 * 8
    train = dataclasses.replace(row, operation="train", dtype=torch.bfloat16)
    gradients = 4 + 4 + 8
    assert train.bytes_moved == 2 * 2 * 15 * ((16 + 8) + (16 + 8 + gradients))
    assert train.result_bytes == 2 * 2 * 15 * (8 + gradients)
    weights = sum(x.numel() for x in inputs_of(BY_NAME["small-manet-block-train"]).tensors[1:])
    block = BY_NAME["small-manet-block-train"]
    maps = 2 * 32 * 24 * 20
    assert block.bytes_moved == 4 * (8 * maps + 3 * weights)
    assert block.result_bytes == 4 * (2 * maps + weights)


# ----------------------------------------------------------------------------------------- gates


def tiny(operation: str, feature_map: str, dtype: torch.dtype = torch.float32) -> Workload:
    return Workload("tiny", operation, feature_map, 2, 8, 16, 9, 7, dtype=dtype)


def job(name: str, workload: Workload) -> Any:
    functions = providers.PROVIDERS[name].functions
    return providers.once(functions, workload, inputs_of(workload))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("feature_map", ["softplus", "taylor"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_everybody_passes(operation: str, feature_map: str, dtype: torch.dtype) -> None:
    workload = tiny(operation, feature_map, dtype)
    names = (*PLAIN, "sdpa")
    passed = gates.run_gates(workload, {name: job(name, workload) for name in names})
    enforced = {each["name"].split()[0] for each in passed if each["limit"] is not None}
    assert enforced == set(PLAIN)  # peers in half precision by their float32 selves
    for each in passed:
        assert each["limit"] is None or each["max_abs"] <= each["limit"]


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("feature_map", ["softplus", "taylor"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_everybody_can_fail(operation: str, feature_map: str, name: str) -> None:
    """The last number of the last tensor off by a thousandth of the largest."""
    workload = tiny(operation, feature_map)

    def wrong() -> list[torch.Tensor]:
        found = [x.contiguous().clone() for x in gates.tensors(job(name, workload)())]
        found[-1].view(-1)[-1] += 1e-3 * found[-1].abs().max()
        return found

    with pytest.raises(WrongResult, match=rf"{name} against float64, tiny.*nothing was timed"):
        gates.run_gates(workload, {name: wrong})


def test_another_function_does_not_pass_for_this_one() -> None:
    workload = tiny("forward", "softplus")
    with pytest.raises(WrongResult):
        gates.run_gates(workload, {"torch": job("torch", tiny("forward", "taylor"))})
    with pytest.raises(WrongResult):
        gates.run_gates(workload, {"torch-matmul": job("sdpa", workload)})


# ------------------------------------------------------------------------------------------ rows


class Fixture:
    """As much of pytest-benchmark's fixture as is used."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.stats: Any = None

    def pedantic(self, job: Any, setup: Any, rounds: int, **_: Any) -> None:
        data = []
        for _ in range(rounds):
            setup()
            data.append(_common.timed(job))
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=data))


def _broken(*arguments: Any) -> torch.Tensor:
    raise RuntimeError("no make_block_ptr\nin this version")


def _doubled(*arguments: Any) -> torch.Tensor:
    return 2 * providers.einsum(*arguments)


@pytest.mark.parametrize(
    ("attend", "needs", "reason"),
    [
        (_broken, "", "failed here: no make_block_ptr"),
        (_doubled, "", "failed here: flash-bla against float64, tiny, result: max"),
        (_doubled, "no_such_module", "no_such_module is not installed here"),
        (providers.einsum, "", None),
    ],
)
def test_others_kernels_that_fail_are_left_out(
    attend: Any, needs: str, reason: str | None,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Where another project's kernels do not run here or are wrong, the rest is still measured."""
    functions = providers.Functions(attend, providers.convolved(attend))
    foreign = _measure.Provider(functions, str, needs=needs, foreign=True)
    monkeypatch.setitem(providers.PROVIDERS, "flash-bla", foreign)
    names = (*PLAIN, "flash-bla")
    workload = dataclasses.replace(
        tiny("forward", "softplus"), providers=names, allocator="default"
    )
    suite = _measure.Suite(
        "linear_attention",
        "",
        providers.PROVIDERS,
        lambda name, w: providers.prepare(name, w, inputs_of(w)),
        gates.run_gates,
    )
    benchmark = Fixture()
    _measure.measure(suite, workload, 1, benchmark, capsys)
    info = benchmark.extra_info
    assert [row["name"] for row in info["providers"]] == list(PLAIN if reason else names)
    assert info["absent"].get("flash-bla", "").startswith(reason or "")
    assert bool(info["absent"]) == bool(reason)


def measured(peer: float, served_by: str = "linear_attention_cpu.cpp") -> list[dict[str, Any]]:
    ours = {"name": "segfast", "ratio": 1.0, "peak_mb": 41.0, "extra_mb": 3.0}
    theirs = {"name": "torch", "ratio": peer, "peak_mb": 104.0, "extra_mb": 66.0}
    return [ours | {"served_by": served_by}, theirs | {"served_by": "torch 2.13"}]


def test_extra_memory_is_judged() -> None:
    target = Target("torch", 2, 3.0, "extra memory")
    (judged,) = judge([target], 2, measured(4.0))
    assert judged["measured"] == pytest.approx(22)
    assert judged["met"] is True
    rows = measured(4.0)
    rows[0]["extra_mb"] = 0
    assert judge([target], 2, rows)[0]["measured"] == pytest.approx(660)
    rows[0]["extra_mb"] = None
    assert judge([target], 2, rows)[0]["met"] is None


def row(peer: float, mean: Mean, threads: int = 2, **more: Any) -> dict[str, Any]:
    return {"threads": threads, "means": contributions([mean], threads, measured(peer, **more))}


def test_geometric_means() -> None:
    mean = Mean("forward", "torch", 2, 4.0, 3)
    rows = [row(2.0, mean), row(4.0, mean), row(8.0, mean), {"threads": 2}]
    (found,) = report.geometric_means(rows)
    assert found["measured"] == pytest.approx(4.0)
    assert math.isclose(found["at_least"], 4.0)
    assert (found["found"], found["rows"]) == (3, 3)
    (slower,) = report.geometric_means([*rows[:2], row(7.0, mean)])
    assert slower["met"] is False
    (faster,) = report.geometric_means([*rows[:2], row(9.0, mean)])
    assert faster["met"] is True


def test_a_mean_over_some_rows_is_no_mean() -> None:
    mean = Mean("forward", "torch", 2, 4.0, 3)
    absent = Mean("forward", "torch-compile", 2, 4.0, 1)
    partial, nobody = report.geometric_means([row(8.0, mean), row(8.0, absent)])
    assert (partial["measured"], partial["met"], partial["found"]) == (None, None, 1)
    assert (nobody["measured"], nobody["met"], nobody["found"]) == (None, None, 0)
    assert contributions([mean], 1, measured(8.0)) == []  # another number of threads


def test_pytorch_itself_meets_no_mean() -> None:
    mean = Mean("forward", "torch", 2, 1.0, 1)
    (found,) = report.geometric_means([row(8.0, mean, served_by="reference (PyTorch)")])
    assert found["measured"] == pytest.approx(8.0)
    assert found["met"] is False


def test_the_report_prints_means_once_and_not_beside_a_single_row() -> None:
    mean = Mean("forward", "torch", 2, 4.0, 2)
    rows = [{"workload": name, **row(5.0, mean)} for name in "ab"]
    (line,) = report.promises(rows).splitlines()
    assert line.startswith("- geometric mean over 2 of 2 rows, forward, 2 thread(s), time: torch")
    assert line.endswith("needs 5x ours, promised >= 4x: **met**")


@pytest.mark.parametrize("network", ["manet", pytest.param("maresu", marks=pytest.mark.thorough)])
def test_from_the_benchmark_to_the_report(bench: Any, network: str) -> None:
    rows, text, _ = bench("linear_attention", f"small-{network} and train")
    assert len(rows) == 2  # with the block's
    for each in rows:
        assert each["operator"] == "linear_attention"
        assert [p["name"] for p in each["providers"]][:3] == list(PLAIN)
        assert each["gates"]
        assert f"| {each['workload']} (2x8/32x24x20, warm allocator)" in text
    assert "another function, only run" in text


def test_memory_measurements_find_their_job() -> None:
    """What `benchmarks._memory` asks for, tiny first."""
    pytest.importorskip("pytest_benchmark")
    from benchmarks import linear_attention

    job = linear_attention.prepare_tiny("manet1-train", "segfast")
    assert [g.shape for g in job()] == [(1, 4, 64), (1, 4, 64), (1, 8, 64)]
    block = linear_attention.prepare_tiny("maresu1-block-train", "torch")
    assert block()[0].shape == (1, 8, 8, 8)
