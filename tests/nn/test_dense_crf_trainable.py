"""nn.DenseCRF(trainable=...): which arguments become parameters, and that they learn."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference
from segfast.nn import DenseCRF
from segfast.ops import mean_field
from segfast.testing import assert_as_good_as

B, L, H, W = 2, 3, 8, 9
WEIGHTS = ["spatial_weight", "bilateral_weight", "compatibility"]
SIGMAS = ["spatial_sigma", "bilateral_sigma", "color_sigma"]


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tones = torch.randint(0, 256, (B, 3, 4, 5), generator=generator)
    image = tones.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :W]
    return torch.randn(B, L, H, W, generator=generator, dtype=torch.float64), image.double()


def options(**more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "spatial_weight": torch.rand(L, generator=generator),
        "spatial_sigma": (2.0, 3.5),
        "bilateral_weight": torch.rand(L, L, generator=generator),
        "bilateral_sigma": 9.0,
        "color_sigma": (60.0, 70.0, 80.0),
        "compatibility": torch.rand(L, L, generator=generator),
        "iterations": 2,
        "tolerance": 0.0,
        **more,
    }


# ------------------------------------------------------------------------------ what is learned

CHOICES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"trainable": False, "method": "exact"}, []),
    ({"trainable": True}, WEIGHTS),
    ({"trainable": True, "method": "auto"}, WEIGHTS),
    ({"trainable": True, "method": "exact"}, WEIGHTS + SIGMAS),
    ({"trainable": ["compatibility", "spatial_weight"]}, ["spatial_weight", "compatibility"]),
    ({"trainable": ("color_sigma",), "method": "exact"}, ["color_sigma"]),
    ({"trainable": True, "method": "exact", "compatibility": None, "color_sigma": None},
     ["spatial_weight", "bilateral_weight", "spatial_sigma", "bilateral_sigma"]),
]  # fmt: skip


@pytest.mark.parametrize(("chosen", "names"), CHOICES)
def test_what_becomes_a_parameter(chosen: dict[str, Any], names: list[str]) -> None:
    crf = DenseCRF(**options(**chosen))
    assert sorted(dict(crf.named_parameters())) == sorted(names)
    for name, parameter in crf.named_parameters():
        start = torch.as_tensor(options()[name])
        assert torch.equal(parameter, start), name
        assert parameter.dtype == torch.float32, name
    assert sorted(crf.state_dict()) == sorted(
        {*names, *(name for name in WEIGHTS if isinstance(options(**chosen)[name], Tensor))}
    )


def test_numbers_become_scalars_and_none_stays() -> None:
    crf = DenseCRF(trainable=True)
    assert {n: (p.shape, p.item()) for n, p in crf.named_parameters()} == {
        "spatial_weight": ((), 3), "bilateral_weight": ((), 10)
    }  # fmt: skip
    assert crf.compatibility is None  # Potts
    preset = DenseCRF.from_preset("crf-rnn", trainable=True, method="exact")
    shapes = {name: tuple(p.shape) for name, p in preset.named_parameters()}
    assert shapes == dict.fromkeys([*WEIGHTS[:2], *SIGMAS], ())
    assert preset.bilateral_sigma.item() == 160  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_untrained_it_is_the_same_crf(method: str, inputs: tuple[Tensor, Tensor]) -> None:
    fixed = DenseCRF(**options(method=method))
    trainable = DenseCRF(**options(method=method, trainable=True))
    assert torch.equal(trainable(*inputs), fixed(*inputs))


# ------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("method", ["lattice", "exact"])
def test_gradients(method: str, inputs: tuple[Tensor, Tensor]) -> None:
    """Of every parameter, the logits, and with the exact method the image: autograd through the
    reference, in float64."""
    crf = DenseCRF(**options(method=method, trainable=True)).double()
    logits, image = inputs[0].clone().requires_grad_(), inputs[1].clone()
    image.requires_grad_(method == "exact")
    leaves = {"logits": logits, **dict(crf.named_parameters())}
    if method == "exact":
        leaves["image"] = image
    out = torch.linspace(-1, 1, inputs[0].numel(), dtype=torch.float64).view_as(logits)
    found = torch.autograd.grad(crf(logits, image), list(leaves.values()), out)

    arguments = {name: getattr(crf, name) for name in WEIGHTS + SIGMAS}
    expected = torch.autograd.grad(
        torch.stack([
            reference.mean_field(one, pixels, **arguments, iterations=2, method=method)
            for one, pixels in zip(logits, image, strict=True)
        ]), list(leaves.values()), out,
    )  # fmt: skip
    for (name, leaf), actual, oracle in zip(leaves.items(), found, expected, strict=True):
        assert actual.shape == leaf.shape
        assert actual.any(), name
        # a chain of 2 iterations of sums over N pixels, or L, each of factors of at most 2
        assert_as_good_as(
            actual, oracle, oracle, terms=4 * (H * W) ** 2, label=name,
            magnitude=max(1.0, oracle.abs().max().item()) * H * W,
        )  # fmt: skip


@pytest.mark.parametrize("names", [["bilateral_weight"], ["compatibility", "spatial_sigma"]])
def test_only_what_is_named_learns(names: list[str], inputs: tuple[Tensor, Tensor]) -> None:
    crf = DenseCRF(**options(method="exact", trainable=names))
    before = copy.deepcopy(crf)
    optimizer = torch.optim.SGD(crf.parameters(), lr=0.1)
    crf(*inputs).square().mean().backward()
    optimizer.step()
    for name in WEIGHTS + SIGMAS:
        now, then = (torch.as_tensor(getattr(m, name)) for m in (crf, before))
        assert torch.equal(now, then) == (name not in names), name


def test_sigmas_are_found_again(inputs: tuple[Tensor, Tensor]) -> None:
    """What CRF with other sigmas says is learned from its scores alone."""
    logits, image = inputs
    truth = {"spatial_sigma": 1.5, "bilateral_sigma": 4.0, "color_sigma": 60.0}
    wanted = mean_field(logits, image, **truth, iterations=1, method="exact", tolerance=0.0)  # type: ignore[arg-type]
    crf = DenseCRF(
        spatial_sigma=1.2, bilateral_sigma=3.0, color_sigma=45.0, iterations=1,
        method="exact", tolerance=0.0, trainable=SIGMAS,
    ).double()  # fmt: skip
    # Each learns at a rate of its own size: a step of Adam is that long.
    groups = [{"params": [p], "lr": 0.04 * p.item()} for p in crf.parameters()]
    optimizer = torch.optim.Adam(groups)
    for _ in range(100):
        optimizer.zero_grad()
        (crf(logits, image) - wanted).square().mean().backward()
        optimizer.step()
    for name, value in truth.items():
        assert getattr(crf, name).item() == pytest.approx(value, rel=0.02), name  # from 20 to 25 %


# ------------------------------------------------------------------------------ refusals

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "number": ({"trainable": 1}, TypeError, r"trainable must be True, False or a list.*int 1"),
    "one name": ({"trainable": "compatibility"}, TypeError, r"trainable.*list of names.*str"),
    "unknown": ({"trainable": ["sigma"]}, ValueError, r"trainable.*spatial_weight.*got 'sigma'"),
    "lattice": (
        {"trainable": ["color_sigma"]}, ValueError, r"color_sigma with method='lattice'.*exact"),
    "auto": (
        {"trainable": ["spatial_sigma"], "method": "auto"},
        ValueError, r"spatial_sigma with method='auto'"),
    "Potts": (
        {"trainable": ["compatibility"], "compatibility": None},
        ValueError, r"compatibility must be given to be learned"),
    "not learned": (
        {"trainable": ["compatibility"], "spatial_weight": torch.ones(L, requires_grad=True)},
        ValueError, r"spatial_weight must not require.*name it in trainable.*detach"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_construction(case: str) -> None:
    chosen, error, pattern = REFUSED[case]
    with pytest.raises(error, match=pattern):
        DenseCRF(**options(**chosen))


def test_a_step_too_far_is_refused(inputs: tuple[Tensor, Tensor]) -> None:
    crf = DenseCRF(**options(method="exact", trainable=True))
    with torch.no_grad():
        crf.bilateral_sigma.zero_()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="bilateral_sigma must be positive"):
        crf(*inputs)
