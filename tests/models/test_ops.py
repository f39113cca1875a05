"""Every network runs on segfast's operators, or on PyTorch's, and both compute the same."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import segfast
from segfast.models import _ENTRIES, SegmentationModel, create_model, list_models
from segfast.nn import CRFRNN, LinearAttention2d
from tests.fingerprints import TOLERANCES
from tests.swap_networks import Operators

# Of each architecture one name: of those here, the shallowest, the first.
LIGHT = (
    "deeplabv1_largefov",
    "dilation8_camvid",
    "fcn32s_googlenet",
    "hrnet_w18_small",
    "hrnet_w18_small_ocr",
    "segnet",
    "segnet_basic",
)
GIANTS = ("deconvnet", "dilation8_camvid")  # their numbers are compared with --giants
OPTIONS = {"crfrnn_fcn8s": {"backbone": "googlenet"}}
SIZES = {"deconvnet": (224, 224)}
BY_RULE = ("neither dilated nor grouped", "no kernel of ours takes groups of")
LEFT_TO_SEGFAST = {"PyTorch has no dense CRF"}


def one_of_each() -> list[str]:
    groups = collections.defaultdict(list)
    for name, entry in _ENTRIES.items():
        groups[entry.build].append((name not in LIGHT, entry.options.get("depth", 0), name))
    return sorted(min(group)[-1] for group in groups.values())


def build(name: str, **options: Any) -> Any:
    return create_model(name, num_classes=3, **OPTIONS.get(name, {}), **options).eval()


def image(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    size = SIZES.get(name, (64, 96))
    generator = torch.Generator().manual_seed(0)
    return 255 * torch.rand(1, 3, *size, generator=generator, dtype=dtype)


@pytest.mark.parametrize("name", list_models())
def test_no_module_is_left_but_by_rule(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    report = segfast.swap(model)
    assert not report.changed
    assert all(row.why.startswith(BY_RULE) for row in report.left), str(report)
    report = segfast.swap(model, to="torch")
    assert {row.why for row in report.left} <= LEFT_TO_SEGFAST, str(report)


@pytest.mark.parametrize("name", one_of_each())
def test_operators_that_are_called(name: str) -> None:
    """On tensors without numbers; the dense CRF, whose size these decide, has no other form."""
    calls = {}
    with FakeTensorMode(), torch.no_grad():
        for ops in ("segfast", "torch"):
            model: nn.Module = build(name, ops=ops)
            if any(isinstance(module, CRFRNN) for module in model.modules()):
                model = model.fcn
            with Operators() as calls[ops]:
                model(torch.empty(image(name).shape))
    assert not calls["segfast"].of_torch()
    assert not calls["torch"].of_segfast()
    ours, theirs = calls["segfast"].of_segfast(), calls["torch"].of_torch()
    for kind in ("conv", "max_pool", "max_unpool"):  # (a pyramid's 1 x 1 is one of ours, too)
        counts = [sum(kind in call for call in found) for found in (theirs, ours)]
        assert counts[0] == counts[1] or (kind == "conv" and counts[0] < counts[1])
    attentions = sum(isinstance(module, LinearAttention2d) for module in model.modules())
    assert sum("linear_attention_read" in call for call in ours) == attentions


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.giant] * (name in GIANTS)) for name in one_of_each()],
)
@torch.no_grad()
def test_both_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    model: SegmentationModel = build(name).double()
    for key, parameter in model.named_parameters():
        if key.endswith("gamma"):
            parameter.fill_(0.5)  # from zero on, attentions are the identity
    x = image(name, torch.float64) / (1 if "crf" in name else 64)
    expected, others = model(x, return_aux=True)
    segfast.swap(model, to="torch")
    scores, aux = model(x, return_aux=True)
    assert aux.keys() == others.keys()
    for key, y in {"out": scores, **aux}.items():
        truth = {"out": expected, **others}[key]
        assert y.shape == truth.shape
        assert (y - truth).abs().max() <= TOLERANCES[torch.float64] * truth.abs().max()


def test_both_have_the_same_state() -> None:
    ours, theirs = (build("lraspp_mobilenet_v3_large", ops=ops) for ops in ("segfast", "torch"))
    theirs.load_state_dict(ours.state_dict())
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert (ours.layout, ours.layouts) == (theirs.layout, theirs.layouts)
    x = image("lraspp")
    torch.testing.assert_close(theirs(x), ours(x))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="ops must be one of segfast, torch; got str 'cudnn'"):
        create_model("fcn_resnet50", ops="cudnn")
