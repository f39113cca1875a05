"""segfast.swap of pyramids and attentions: structure finds them, numbers decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segfast
from segfast.nn import ASPP as OurASPP
from segfast.nn import ASPPv2, DilatedConv2d, LinearAttention2d
from segfast.nn.eager_attention import EagerLinearAttention2d
from tests.swap_networks import ASPP, Attention, HeadASPP, SumASPP, filled, results, same

MAP = torch.randn(
    2, 6, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)  # [B, C, H, W]


def swapped(module: nn.Module) -> tuple[Any, Any]:
    """What is in the place of a module, and the report; results are the same."""
    model = filled(nn.Sequential(module)).eval()
    before, keys = results(model, MAP), set(model.state_dict())
    report = segfast.swap(model)
    assert all(map(same, results(model, MAP), before))
    with torch.no_grad():
        assert same(model(MAP), before[0])
    assert set(model.state_dict()) == keys
    segfast.swap(model, to="torch")
    assert all(map(same, results(model, MAP), before))
    segfast.swap(model)
    return model[0], report


# ------------------------------------------------------------------------------ pyramids


@pytest.mark.parametrize("separable", [False, True])
def test_pyramids_of_version_3(separable: bool) -> None:
    module = ASPP(separable=separable)
    parts = list(module.parameters()), module.convs[0][1], module.project[3]
    new, report = swapped(module)
    assert type(new) is OurASPP
    assert all(a is b for a, b in zip(new.parameters(), parts[0], strict=True))
    assert new.convs[0][1] is parts[1]  # the very normalisation, frozen or not
    assert new.project[3] is parts[2]
    assert report.changed == (("0", "ASPP", "segfast.nn.ASPP", "rates 2, 3"),)


def test_pyramids_of_version_2() -> None:
    new, report = swapped(SumASPP())
    assert type(new) is ASPPv2
    assert report.changed[0][1:] == ("SumASPP", "segfast.nn.ASPPv2", "rates 2, 3")


def test_frozen_normalisations_stay_frozen() -> None:
    model = nn.Sequential(ASPP())
    model[0].convs[1][1].eval()
    segfast.swap(model)
    assert [branch[-2].training for branch in model[0].convs] == [True, False, True, True]


class WithFirstTwice(ASPP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.convs[0](x)


class WithNoiseInTraining(ASPP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.training else 1)


class WithoutSum(SumASPP):
    def forward(self, x: Tensor) -> Tensor:
        return self.c0(x) * self.c1(x)


class Failing(ASPP):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < 9:
            raise RuntimeError("too narrow")
        return super().forward(x)


def having(path: str, value: Any, of: Callable[[], nn.Module] = ASPP) -> nn.Module:
    module: Any = of()
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, value)
    return module


def hooked(module: nn.Module, path: str) -> nn.Module:
    module.get_submodule(path).register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (WithFirstTwice, "on a probe it computes something else"),
        (WithNoiseInTraining, "on a probe it computes something else"),
        (WithoutSum, "on a probe it computes something else"),
        (Failing, "on a probe it raised RuntimeError: too narrow"),
        (lambda: hooked(ASPP(), "convs.1.1"), "convs.1.1 has hooks or parametrizations"),
        (lambda: hooked(SumASPP(), ""), "it has hooks or parametrizations"),
        (lambda: having("convs.1.2", nn.ReLU6()), "convs.1.2 is no ReLU"),
        (lambda: having("project.3", nn.Dropout2d()), "project.3 is no Dropout"),
        (lambda: having("convs.3.0", nn.AdaptiveMaxPool2d(1)), "convs.3.0 is no average"),
        (lambda: having("convs.1.0.bias", nn.Parameter(torch.ones(4))), "convs.1.0 is Conv2d"),
        (lambda: having("convs.1.0.padding_mode", "reflect"), "convs.1.0 is Conv2d"),
        (lambda: having("c1.stride", (1, 2), SumASPP), "c1 is Conv2d"),
        (lambda: having("convs.2", nn.Sequential(nn.Conv2d(6, 4, 3))), "no Sequential of 3"),
    ],
)
def test_other_pyramids_keep_their_own_forward(build: Callable[[], nn.Module], why: str) -> None:
    model = nn.Sequential(build())
    report = segfast.swap(model)
    assert type(model[0]) not in (OurASPP, ASPPv2)
    reasons = {row.name: row.why for row in report.left}
    assert why in reasons["0"]
    assert reasons["0"].endswith("only its convolutions are looked at")
    changed = {row.name for row in report.changed}
    rated = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1)
    }
    assert changed == rated - set(reasons)


def test_pyramids_under_other_keys_keep_their_own_forward() -> None:
    new, report = swapped(HeadASPP())
    assert type(new) is HeadASPP
    assert {row.name for row in report.changed} == {"0.aspp_modules.1.0", "0.aspp_modules.2.0"}


# ------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", ["softplus", "taylor"])
def test_linear_attentions(kind: str, residual: bool) -> None:
    module = Attention(kind, residual, eps=0.01)
    parts = module.query_conv, module.key_conv, module.value_conv, module.gamma
    new, report = swapped(module)
    assert type(new) is LinearAttention2d
    assert (new.feature_map, new.residual, new.eps) == (kind, residual, 0.01)
    assert (new.query_conv, new.key_conv, new.value_conv, new.gamma) == parts
    note = kind if residual else f"{kind}, without x"
    assert report.changed[0][1:] == ("Attention", "segfast.nn.LinearAttention2d", note)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_probe_has_numbers_of_its_own(device: str) -> None:
    """gamma starts as zero, so that all attentions are x; on meta there are no numbers at all."""
    with torch.device(device):
        model = nn.Sequential(Attention("taylor"), Attention("softplus"), Attention("softmax"))
    state = torch.random.get_rng_state()
    segfast.swap(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [getattr(module, "feature_map", None) for module in model] == [
        "taylor",
        "softplus",
        None,
    ]
    assert device == "meta" or not any(module.gamma.any() for module in model)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: Attention("softmax"), "on a probe it is none of the linear attentions"),
        (lambda: having("eps", 1e-3, HiddenEps), "on a probe it is none of the linear"),
        (lambda: FailingAttention(), "on a probe it raised ValueError: never"),
        (lambda: having("key_conv", nn.Conv2d(6, 3, 3), Taylor), "key_conv is Conv2d"),
        (lambda: having("key_conv", nn.Conv2d(6, 2, 1), Taylor), "differ in channels"),
        (lambda: having("value_conv", nn.Conv2d(6, 7, 1), Taylor), "do not keep the channels"),
        (lambda: having("value_conv", nn.Linear(6, 6), Taylor), "derived from Conv2d"),
        (lambda: having("gamma", nn.Parameter(torch.ones(6)), Taylor), "one element"),
        (lambda: hooked(Taylor(), "key_conv"), "key_conv: it has hooks"),
        (lambda: hooked(Taylor(), ""), "it has hooks"),
    ],
)
def test_other_attentions_stay(build: Callable[[], nn.Module], why: str) -> None:
    model = nn.Sequential(build())
    module = model[0]
    report = segfast.swap(model)
    assert model[0] is module
    assert not report.changed
    assert why in report.left[0].why


class Taylor(Attention):
    def __init__(self) -> None:
        super().__init__("taylor")


class FailingAttention(Taylor):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("never\nat all")


class HiddenEps(Taylor):
    """Computes with another eps than it says."""

    def forward(self, x: Tensor) -> Tensor:
        said, self.eps = self.eps, 1.0
        y = super().forward(x)
        self.eps = said
        return y


def test_more_state_is_another_module() -> None:
    model = nn.Sequential(Taylor())
    model[0].norm = nn.BatchNorm2d(6)
    report = segfast.swap(model)
    assert not report.changed


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("feature_map", ["softplus", "taylor", "relu", "elu"])
def test_the_eager_form_is_the_equation(feature_map: str, residual: bool) -> None:
    """In float64; and where a query's features are zero, or next to nothing, and their slopes."""
    ours = filled(LinearAttention2d(6, 3, feature_map, 0.01, residual))
    eager = filled(EagerLinearAttention2d(6, 3, feature_map, 0.01, residual))
    eager.load_state_dict(ours.state_dict())
    assert all(map(same, results(eager, MAP), results(ours, MAP)))
    for bias in (0.0, -50.0, -1000.0):
        for conv in (ours.query_conv, eager.query_conv):
            nn.init.zeros_(conv.weight)
            nn.init.constant_(conv.bias, bias)
        assert all(map(same, results(eager, MAP), results(ours, MAP)))
    assert repr(eager) == repr(ours).replace("LinearAtt", "EagerLinearAtt")


def test_the_eager_form_in_half_precision() -> None:
    ours, eager = LinearAttention2d(6), EagerLinearAttention2d(6)
    eager.load_state_dict(filled(ours, torch.float32).state_dict())
    x = MAP.float()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert eager(x).dtype == ours(x).dtype == torch.float32
        assert eager.to(dtype)(x.to(dtype)).dtype == dtype
        eager.float()


def test_convolutions_in_what_is_ours_already() -> None:
    """A pyramid of segfast's whose convolutions became PyTorch's gets them back."""
    model = filled(nn.Sequential(OurASPP(6, (2, 3), 4))).eval()
    before = results(model, MAP)
    segfast.swap(model, to="torch")
    report = segfast.swap(model)
    assert {row.now for row in report.changed} == {"segfast.nn.DilatedConv2d"}
    assert type(model[0].convs[1][0]) is DilatedConv2d
    assert all(map(same, results(model, MAP), before))
