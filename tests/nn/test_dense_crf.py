"""nn.DenseCRF: equal to the operator, its presets to what was published, its refusals clear."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import segfast.nn
from segfast.kernels.dense_crf import reference
from segfast.nn import PRESETS, DenseCRF, Preset
from segfast.ops import mean_field
from segfast.testing import assert_as_good_as

B, L, H, W = 2, 4, 11, 13


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (B, 3, 4, 5), generator=generator, dtype=torch.uint8)
    image = image.repeat_interleave(3, 2).repeat_interleave(3, 3)[:, :, :H, :W].contiguous()
    return 2 * torch.randn(B, L, H, W, generator=generator), image


def options() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "spatial_weight": torch.rand(L, generator=generator),
        "spatial_sigma": (2, 3.5),
        "bilateral_weight": torch.rand(L, L, generator=generator),
        "bilateral_sigma": [9.0, 7],
        "color_sigma": (20, 30, 40),
        "compatibility": torch.rand(L, L, generator=generator),
        "iterations": 2,
        "normalization": "after",
        "method": "exact",
        "spatial": "conv",
        "tolerance": 0.0,
        "capacity": 500,
    }


def test_defaults_are_the_operator_s() -> None:
    operator = inspect.signature(mean_field).parameters
    module = list(inspect.signature(DenseCRF).parameters.values())
    assert module.pop().name == "trainable"
    assert {p.name: p.default for p in module} == {
        name: operator[name].default for name in (p.name for p in module)
    }
    assert {p.name for p in module} == set(operator) - {
        "logits", "image", "return_steps", "return_belief"
    }  # fmt: skip


def test_equals_the_operator(inputs: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(DenseCRF()(*inputs), mean_field(*inputs))
    assert torch.equal(DenseCRF(**options())(*inputs), mean_field(*inputs, **options()))
    assert torch.equal(
        DenseCRF()(*inputs, return_belief=True), mean_field(*inputs, return_belief=True)
    )


def test_every_argument_reaches_the_operator(
    inputs: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def recorded(logits: Tensor, image: Tensor, **arguments: Any) -> Tensor:
        calls.append(arguments)
        return logits

    monkeypatch.setattr("segfast.nn.dense_crf.mean_field", recorded)
    DenseCRF(**options())(*inputs)
    (arguments,) = calls
    assert set(arguments) == {*options(), "return_belief"}
    for name, value in options().items():
        given = arguments[name]
        assert torch.equal(given, value) if isinstance(value, Tensor) else given == value, name


def test_compiles(inputs: tuple[Tensor, Tensor]) -> None:
    crf = DenseCRF(**options())
    with torch.no_grad():
        compiled = torch.compile(crf, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(*inputs), crf(*inputs))


def test_against_the_oracle(inputs: tuple[Tensor, Tensor]) -> None:
    logits, image = inputs
    parameters = {**options(), "iterations": 1}
    scores = DenseCRF(**parameters)(logits, image)
    del parameters["tolerance"], parameters["capacity"]

    def plain(dtype: torch.dtype) -> Tensor:
        return torch.stack(
            [
                reference.mean_field(one.to(dtype), pixels, **parameters)
                for one, pixels in zip(logits, image, strict=True)
            ]
        )

    # weights and compatibility are below 1: a score sums 2 L^2 messages of at most 1
    assert_as_good_as(
        scores, plain(torch.float64), plain(torch.float32), terms=H * W, magnitude=2.0 * L * L
    )


def test_unbatched_and_other_dtypes(inputs: tuple[Tensor, Tensor]) -> None:
    logits, image = inputs
    crf = DenseCRF(iterations=2)
    assert torch.equal(crf(logits[0], image[0]), crf(logits, image)[0])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert crf(logits.to(dtype), image).dtype == dtype


# ------------------------------------------------------------------------------ presets

PUBLISHED = {
    # name: spatial weight, sigma; bilateral weight, sigma, color sigma; iterations; normalisation
    "krahenbuhl2011": (3, 3, 10, 60, 20, 10, "after"),
    "pydensecrf": (3, 3, 10, 80, 13, 5, "symmetric"),
    "deeplab-v1": (3, 3, 5, 50, 10, 10, "after"),
    "deeplab-v1-largefov": (3, 3, 4, 121, 5, 10, "after"),
    "deeplab-v2-vgg16": (2, 2, 4, 65, 3, 10, "after"),
    "deeplab-v2-resnet101": (3, 1, 4, 67, 3, 10, "after"),
    "crf-rnn": (3, 3, 5, 160, 3, 10, "after"),
}


def test_presets_are_the_published_ones() -> None:
    assert list(PRESETS) == list(PUBLISHED)
    for name, preset in PRESETS.items():
        assert isinstance(preset, Preset)
        assert tuple(preset.parameters.values()) == PUBLISHED[name], name
        assert len(preset.source) > 20, name


@pytest.mark.parametrize("name", PUBLISHED)
def test_from_preset(name: str, inputs: tuple[Tensor, Tensor]) -> None:
    w_s, s_s, w_b, s_b, s_c, iterations, normalization = PUBLISHED[name]
    scores = DenseCRF.from_preset(name)(*inputs)
    expected = mean_field(
        *inputs,
        spatial_weight=w_s,
        spatial_sigma=s_s,
        bilateral_weight=w_b,
        bilateral_sigma=s_b,
        color_sigma=s_c,
        iterations=iterations,
        normalization=normalization,
    )
    assert torch.equal(scores, expected)


def test_from_preset_with_overrides(inputs: tuple[Tensor, Tensor]) -> None:
    crf = DenseCRF.from_preset("crf-rnn", iterations=0, method="exact")
    assert (crf.iterations, crf.method, crf.bilateral_sigma) == (0, "exact", 160)
    assert torch.equal(crf(*inputs), inputs[0])


def test_from_preset_makes_the_subclass() -> None:
    class Mine(DenseCRF):
        pass

    assert type(Mine.from_preset("pydensecrf")) is Mine


def test_unknown_presets_and_overrides() -> None:
    with pytest.raises(ValueError, match=r"name must be one of krahenbuhl2011.*got 'deeplab'"):
        DenseCRF.from_preset("deeplab")
    with pytest.raises(TypeError, match="colour_sigma"):
        DenseCRF.from_preset("crf-rnn", colour_sigma=3)


# ------------------------------------------------------------------------------ a good module


def test_tensors_are_state_and_numbers_are_not() -> None:
    crf = DenseCRF(**options())
    assert set(crf.state_dict()) == {"spatial_weight", "bilateral_weight", "compatibility"}
    assert not list(crf.parameters())
    assert not DenseCRF().state_dict()
    assert crf.double().bilateral_weight.dtype == torch.float64


def test_tensors_are_copied(inputs: tuple[Tensor, Tensor]) -> None:
    weight = torch.ones(L)
    crf = DenseCRF(spatial_weight=weight)
    scores = crf(*inputs)
    weight.zero_()
    assert torch.equal(crf(*inputs), scores)


def test_copies_and_saved_state(inputs: tuple[Tensor, Tensor], tmp_path: Any) -> None:
    crf = DenseCRF(**options())
    assert torch.equal(copy.deepcopy(crf)(*inputs), crf(*inputs))
    torch.save(crf.state_dict(), tmp_path / "crf.pt")
    zeros = {"spatial_weight", "bilateral_weight", "compatibility"}
    other = DenseCRF(**{k: v * 0 if k in zeros else v for k, v in options().items()})
    assert not torch.equal(other(*inputs), crf(*inputs))
    other.load_state_dict(torch.load(tmp_path / "crf.pt"))
    assert torch.equal(other(*inputs), crf(*inputs))


def test_repr_shows_every_argument() -> None:
    text = repr(DenseCRF(**options()))
    for name in inspect.signature(DenseCRF).parameters:
        assert f"{name}=" in text
    assert "spatial_weight=[4], spatial_sigma=(2, 3.5), bilateral_weight=[4, 4]" in text
    assert "normalization='after', method='exact'" in text
    assert "color_sigma=None, compatibility=None, iterations=10" in repr(DenseCRF())
    learned = DenseCRF(0.1, np.float32(2), tolerance=np.float64(0), trainable=True)
    assert "spatial_weight=0.1, spatial_sigma=2.0, bilateral_weight=10, " in repr(learned)
    assert "tolerance=0.0" in repr(learned)
    assert "spatial_weight=[], " in repr(learned.to("meta"))


def test_parameters_of_numpy_s_numbers_have_the_default_dtype() -> None:
    crf = DenseCRF(
        np.float64(3), bilateral_sigma=(np.float64(4), 5), method="exact", trainable=True
    )
    assert {p.dtype for p in crf.parameters()} == {torch.float32}


def test_gradient_of_the_logits(inputs: tuple[Tensor, Tensor]) -> None:
    logits, image = inputs
    leaf = logits.clone().requires_grad_()
    DenseCRF(iterations=1)(leaf, image).square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().min() > 0


def test_exported() -> None:
    assert {"DenseCRF", "PRESETS", "Preset"} <= set(segfast.nn.__all__)


# ------------------------------------------------------------------------------ refusals

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "normalization": ({"normalization": "softmax"}, ValueError, r"normalization.*symmetric.*softm"),
    "method": ({"method": "fast"}, ValueError, r"method.*lattice.*'fast'"),
    "spatial": ({"spatial": "fft"}, ValueError, r"spatial.*conv.*'fft'"),
    "iterations negative": ({"iterations": -1}, ValueError, r"iterations.*-1"),
    "iterations float": ({"iterations": 2.5}, TypeError, r"iterations.*2\.5"),
    "tolerance": ({"tolerance": -1e-7}, ValueError, r"tolerance.*not negative.*-1e-07"),
    "tolerance text": ({"tolerance": "0"}, TypeError, r"tolerance.*number.*'0'"),
    "spatial_sigma": ({"spatial_sigma": 0}, ValueError, r"spatial_sigma.*positive"),
    "bilateral_sigma": ({"bilateral_sigma": (1, 2, 3)}, ValueError, r"bilateral_sigma.*3"),
    "color_sigma": ({"color_sigma": (13, -1, 13)}, ValueError, r"color_sigma.*positive"),
    "weight text": ({"spatial_weight": "3"}, TypeError, r"spatial_weight.*number.*'3'"),
    "weight None": ({"bilateral_weight": None}, TypeError, r"bilateral_weight.*None"),
    "weight bool": ({"bilateral_weight": True}, TypeError, r"bilateral_weight.*True"),
    "weight NaN": ({"spatial_weight": float("nan")}, ValueError, r"spatial_weight.*finite.*nan"),
    "weight shape": ({"spatial_weight": torch.ones(3, 4)}, ValueError, r"spatial_weight.*3, 4"),
    "weight integers": (
        {"spatial_weight": torch.ones(3, dtype=torch.int64)}, TypeError, r"spatial_weight.*int64"),
    "weight beyond float32": ({"spatial_weight": 1e39}, ValueError, r"spatial_weight.*in float32"),
    "weight gradient": (
        {"spatial_weight": torch.ones(3, requires_grad=True)},
        ValueError, r"spatial_weight.*detach"),
    "compatibility number": ({"compatibility": 1.0}, TypeError, r"compatibility.*None or \[L, L\]"),
    "compatibility vector": ({"compatibility": torch.ones(3)}, ValueError, r"compatib.*\(3,\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_construction(case: str) -> None:
    arguments, error, pattern = REFUSED[case]
    with pytest.raises(error, match=pattern):
        DenseCRF(**arguments)


def test_refused_at_the_call(inputs: tuple[Tensor, Tensor]) -> None:
    logits, image = inputs
    for crf, x, pixels, pattern in (
        (DenseCRF(), logits, image[:, :, 1:], "image must have shape"),
        (DenseCRF(), logits, image.float(), "color_sigma must be given"),
        (DenseCRF(spatial_weight=torch.ones(3)), logits, image, "spatial_weight must be"),
        (DenseCRF(compatibility=torch.eye(3)), logits, image, "compatibility must have"),
        (DenseCRF(color_sigma=(1, 2)), logits, image, "color_sigma must be"),
    ):
        with pytest.raises(ValueError, match=pattern):
            crf(x, pixels)
    with pytest.raises(TypeError, match="logits must be a floating-point"):
        DenseCRF()(logits.long(), image)
