"""The dense CRF benchmark's table, its gates (which must be able to fail), and its rows."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks._dense_crf import gates, providers
from benchmarks._dense_crf.providers import PROVIDERS, BruteForce, Provider, absent
from benchmarks._dense_crf.workloads import (
    BY_NAME,
    CRF_RNN,
    DEEPLAB_V2,
    WORKLOADS,
    Inputs,
    Model,
    Workload,
    at,
    crop,
    inputs_of,
)
from benchmarks._gate import WrongResult
from benchmarks._targets import Target, judge
from segfast.kernels.dense_crf import reference

TABLE = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)


@pytest.fixture
def tiny() -> tuple[Workload, Inputs]:
    """The smallest workload with every provider, on noise: needs no scikit-image."""
    names = tuple(name for name in PROVIDERS if "filter" not in name and absent(name) is None)
    workload = Workload("tiny", "noise", (24, 32, 4), names, iterations=2)
    return workload, inputs_of(workload)


# ------------------------------------------------------------------------------------- the table


@TABLE
def test_row_holds_together(workload: Workload) -> None:
    assert set(workload.providers) <= PROVIDERS.keys()
    assert workload.providers[0].startswith("segfast")  # ours first: ratios are against it
    assert workload.name.startswith("cuda") == (workload.device == "cuda")  # picked by name
    assert len(workload.providers) > 1 or workload.device == "cuda"  # of which no peer knows
    assert workload.allocator in ("default", "warm")
    for target in workload.targets:
        assert target.threads in workload.threads
        if target.of == "ms":
            assert workload.device == "cuda"  # CPUs differ too much
            continue
        assert target.peer in workload.providers[1:]
        assert target.of in ("time", "memory")
        assert target.of == "time" or workload.memory


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(WORKLOADS)


def test_the_allocator_is_changed_last() -> None:
    modes = [row.allocator for row in WORKLOADS]
    assert modes == sorted(modes)  # "default" before "warm": the change leaves traces


def test_the_promised_rows_are_there() -> None:
    """The sizes, models and ratios this project states as its targets."""
    main = Model(3.0, 3.0, 10.0, 80.0, 13.0, "symmetric")
    assert Model() == main
    for name, size in (("voc", (375, 500, 21)), ("street", (1024, 2048, 19))):
        row = BY_NAME[name]
        assert (row.size, row.model, row.iterations, row.threads) == (size, main, 10, (1, 2))
        assert {"segfast", "segfast-lattice-spatial", "pydensecrf"} <= set(row.providers)
    targets = {(w.name, t) for w in WORKLOADS for t in w.targets}
    assert targets >= {
        ("voc", Target("pydensecrf", 1, 3.5)),
        ("voc", Target("pydensecrf", 2, 6.0)),
        ("street", Target("pydensecrf", 2, 4.0)),
        ("street", Target("pydensecrf", 2, 2.0, "memory")),
        ("noise", Target("pydensecrf", 1, 1.0)),
        ("exact", Target("torch-brute-force", 1, 20.0)),
        ("train", Target("segfast", 1, 1 / 3)),
        ("train-exact-64", Target("torch-gradient", 2, 1.0)),
        ("train-exact-128", Target("torch-gradient", 2, 1.0)),
        ("cuda-voc", Target("", 1, 3.0, "ms")),
        ("cuda-filter", Target("", 1, 6.0, "ms")),
        ("cuda-filter-all-pairs", Target("", 1, 15.0, "ms")),
    }
    assert BY_NAME["cuda-filter-all-pairs"].tolerance == 0
    assert BY_NAME["exact"].size == (128, 128, 21)
    assert BY_NAME["deeplab-v2"].model == DEEPLAB_V2
    assert (DEEPLAB_V2.bilateral_sigma, DEEPLAB_V2.color_sigma, DEEPLAB_V2.bilateral_weight) == (
        67.0, 3.0, 4.0,
    )  # fmt: skip
    assert (CRF_RNN.bilateral_sigma, CRF_RNN.color_sigma, CRF_RNN.bilateral_weight) == (
        160.0, 3.0, 5.0,
    )  # fmt: skip


def test_noise_has_more_vertices_than_pixels() -> None:
    row = dataclasses.replace(BY_NAME["noise"], size=(48, 64, 3))
    image = inputs_of(row).image.double()
    features = reference.image_features(image, row.model.bilateral_sigma, row.model.color_sigma)
    assert reference.Lattice(features).num_vertices > row.pixels


def test_model_names_are_those_of_the_operator() -> None:
    import inspect

    import segfast

    names = inspect.signature(segfast.ops.mean_field).parameters
    assert {f.name for f in dataclasses.fields(Model)} <= set(names)


# ----------------------------------------------------------------------------------------- gates


def test_gate_passes_what_agrees() -> None:
    passed = gates.gate("a", torch.tensor([1.0, 2.0]), [1.0, 2.0 + 5e-6], limit=1e-5)
    assert passed["max_abs"] == pytest.approx(5e-6, rel=0.1)
    assert passed["limit"] == 1e-5


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        ([1.0, 2.1], "0.1 > 1e-05"),
        ([1.0, float("nan")], "nan"),
        ([1.0, float("inf")], "inf"),
        ([[1.0, 2.0]], "shapes"),
        ([1.0, 2.0, 3.0], "shapes"),
    ],
)
def test_gate_fails_what_does_not(actual: list[float], message: str) -> None:
    with pytest.raises(WrongResult, match=r"name: .*nothing was timed") as error:
        gates.gate("name", actual, [1.0, 2.0], limit=1e-5)
    assert message in str(error.value)


def spoilt(provider: Provider, by: float) -> Provider:
    """The same provider, one value of its result off."""

    def prepare(workload: Workload, inputs: Inputs) -> Callable[[], Any]:
        def job() -> torch.Tensor:
            result = torch.as_tensor(provider.prepare(workload, inputs)()).clone()
            result[-1, -1] += by
            return result

        return job

    return dataclasses.replace(provider, prepare=prepare)


def test_all_providers_pass_their_gates(tiny: tuple[Workload, Inputs]) -> None:
    passed = gates.run_gates(*tiny)
    gated = {gate["name"].split()[0] for gate in passed}
    assert gated >= set(tiny[0].providers) - {"pydensecrf", "segfast-compat"}
    if absent("pydensecrf") is None:
        assert {g["name"].split()[0] for g in passed if "pydensecrf" in g["name"]} >= {
            "segfast-lattice-spatial",
            "segfast-compat",
        }


@pytest.mark.parametrize("name", [name for name in PROVIDERS if "filter" not in name])
def test_every_provider_can_fail_its_gate(
    name: str, tiny: tuple[Workload, Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    workload, inputs = tiny
    together = ("segfast-compat", "pydensecrf")  # gated against each other
    if why := absent("pydensecrf" if name in together else name):
        pytest.skip(why)
    names = together if name in together else (name,)
    tiny = dataclasses.replace(workload, providers=names), inputs
    monkeypatch.setitem(PROVIDERS, name, spoilt(PROVIDERS[name], 1e-3))
    with pytest.raises(WrongResult, match=rf"{name}.*nothing was timed"):
        gates.run_gates(*tiny)


@pytest.mark.parametrize("name", [name for name in PROVIDERS if "filter" in name])
def test_every_filter_can_fail_its_gate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Workload("filters", "noise", (24, 32, 4), BY_NAME["filter"].providers)
    inputs = inputs_of(row)
    assert len(gates.run_gates(row, inputs)) == 3
    monkeypatch.setitem(PROVIDERS, name, spoilt(PROVIDERS[name], 0.1))
    with pytest.raises(WrongResult, match=rf"{name}.*nothing was timed"):
        gates.run_gates(row, inputs)


def test_nothing_is_timed_behind_a_closed_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("pytest_benchmark", "skimage"):
        pytest.importorskip(module)
    from benchmarks import dense_crf

    def closed(name: str) -> list[dict[str, Any]]:
        raise WrongResult(f"{name}: wrong; nothing was timed")

    class Untouched:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"benchmark.{name} was used")

    monkeypatch.setattr(dense_crf, "gates", closed)
    with pytest.raises(WrongResult, match="small: wrong"):
        dense_crf.test_dense_crf(BY_NAME["small"], 1, Untouched(), capsys)


# ------------------------------------------------------------------------------------- providers


@pytest.mark.parametrize("options", [{}, {"tuned": True}, {"tuned": True, "kept": True}])
def test_brute_force_against_the_oracle(
    options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tiles, the last one short; exponents down to -500, where float32 is denormal."""
    monkeypatch.setitem(providers.BRUTE_FORCE_TILE, "cpu", 7 * 101)
    generator = torch.Generator().manual_seed(0)
    features = 12 * torch.rand(5, 101, generator=generator)
    values = torch.rand(3, 101, generator=generator)
    expected = reference.gaussian_filter(values.double(), features.double())
    actual = BruteForce(features, **options)(values)
    # |f|^2 / 2 is up to 90 after centring: its rounding is the relative error of K
    torch.testing.assert_close(actual.double(), expected, rtol=90 * 7 * 2**-24, atol=1e-6)


def test_absence_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert absent("pydensecrf") == "pydensecrf is not installed here (pip install pydensecrf2)"


def test_without_pydensecrf_the_oracle_still_gates(
    tiny: tuple[Workload, Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "absent", lambda name: "gone" if name == "pydensecrf" else None)
    names = [gate["name"] for gate in gates.run_gates(*tiny)]
    assert any(name.startswith("segfast-lattice-spatial against float64") for name in names)
    assert not any("pydensecrf" in name for name in names)


def test_crop_is_from_the_middle(tiny: tuple[Workload, Inputs]) -> None:
    inputs = tiny[1]
    small = crop(inputs, 4, 6)
    assert torch.equal(small.image, inputs.image[:, 10:14, 13:19])
    assert torch.equal(small.logits, inputs.logits[:, 10:14, 13:19])
    whole = crop(inputs, 100, 100)
    assert torch.equal(whole.image, inputs.image)


# ------------------------------------------------------------------------------------------ rows


@pytest.fixture
def dense_crf() -> Any:
    for module in ("pytest_benchmark", "skimage"):
        pytest.importorskip(module)
    from benchmarks import dense_crf

    return dense_crf


def test_row_arithmetic(dense_crf: Any) -> None:
    row = dense_crf._row(BY_NAME["voc"], [0.4, 0.4, 0.4], [0.13, 0.13, 0.13], [0.1, 0.1, 0.1])
    assert row["ms"] == pytest.approx(400)
    assert row["ratio"] == pytest.approx(4.0)
    assert row["iteration_ms"] == pytest.approx(30)  # (400 - 130) / 9
    assert row["setup_ms"] == pytest.approx(100)
    assert row["pixels_per_s"] == pytest.approx(187500 / 0.4)
    assert row["gb_per_s"] == pytest.approx(3 * 4 * 21 * 187500 * 10 / 0.4 / 1e9)
    row = dense_crf._row(BY_NAME["filter"], [2.0], None, [1.0])
    assert row["gpairs_per_s"] == pytest.approx(16384**2 / 2.0 / 1e9)
    assert row["gb_per_s"] is row["setup_ms"] is None


@pytest.mark.parametrize(
    ("served_by", "ratio", "met"),
    [
        ("lattice_cpu.cpp (avx512)", 3.6, True),
        ("lattice_cpu.cpp (avx512)", 3.4, False),
        ("PyTorch reference (kernels/dense_crf/reference.py)", 99.0, False),
    ],
)
def test_a_promise_is_kept_by_our_kernels_only(served_by: str, ratio: float, met: bool) -> None:
    ours = {"name": "segfast", "ratio": 1.0, "peak_mb": 50.0, "served_by": served_by}
    peer = {"name": "pydensecrf", "ratio": ratio, "peak_mb": 90.0, "served_by": "pydensecrf"}
    (judged,) = judge(BY_NAME["voc"].targets, 1, [ours, peer])
    assert judged["met"] is met
    assert judged["measured"] == ratio
    (unknown,) = judge(BY_NAME["voc"].targets, 1, [ours])  # the peer is not installed
    assert unknown["met"] is None


def test_memory_promise() -> None:
    ours = {"name": "segfast", "ratio": 1.0, "peak_mb": 500.0, "served_by": "lattice_cpu.cpp"}
    peer = {"name": "pydensecrf", "ratio": 5.0, "peak_mb": 1400.0, "served_by": "pydensecrf"}
    judged = {t["of"]: t for t in judge(BY_NAME["street"].targets, 2, [ours, peer])}
    assert judged["memory"]["measured"] == pytest.approx(2.8)
    assert judged["memory"]["met"] is True


def test_promise_of_milliseconds() -> None:
    ours = {"name": "segfast", "ratio": 1.0, "served_by": "lattice.cu", "ms": 2.5}
    (judged,) = judge(BY_NAME["cuda-voc"].targets, 1, [ours])
    assert (judged["measured"], judged["met"]) == (2.5, True)
    (judged,) = judge(BY_NAME["cuda-voc"].targets, 1, [ours | {"ms": 3.5}])
    assert judged["met"] is False


@pytest.mark.parametrize("name", [row.name for row in WORKLOADS if row.device == "cuda"])
def test_rows_of_a_gpu_would_run(name: str) -> None:
    """In small, on the CPU: what computes there passes the gates, and the whole job runs."""
    row = dataclasses.replace(BY_NAME[name], device="cpu", size=(40, 48, 3))
    inputs = inputs_of(row)
    here = [name for name in row.providers if providers.absent(name) is None]
    judged = {gate["name"].split()[0] for gate in gates.run_gates(row, inputs)}
    assert judged == set(here) - {"pydensecrf"}
    for provider in here:
        assert torch.as_tensor(providers.prepare(provider, row, inputs)()).isfinite().all()


def test_iterations_can_be_changed() -> None:
    assert at(BY_NAME["voc"], 1) == dataclasses.replace(BY_NAME["voc"], iterations=1)
