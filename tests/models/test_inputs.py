"""Calls that cannot be served say what is wrong; options that would do nothing are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from segfast.models import (
    SegmentationModel,
    create_backbone,
    create_model,
    load_checkpoint,
    macs,
    model_info,
    receptive_field,
)
from segfast.models._layers import LocalResponseNorm

X = torch.rand(1, 3, 33, 49)


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    return create_model("segnet_basic").eval()


@pytest.mark.parametrize(
    ("x", "options", "kind", "message"),
    [
        (X, {"return_aux": 1}, TypeError, "return_aux must be True or False, got int 1"),
        (X, {"return_aux": None}, TypeError, "return_aux must be True or False"),
        (X, {"image": X}, TypeError, r"SegmentationModel\.forward\(\) got .* 'image'"),
        (X[0], {}, ValueError, r"x must be \[B, 3, H, W\], got torch.float32 tensor of shape"),
        (X[:, :2], {}, ValueError, r"x must be \[B, 3, H, W\], got .* \(1, 2, 33, 49\)"),
        (X[:, :, :0], {}, ValueError, r"x must be at least 1 pixels high and wide, got"),
        (X[..., :0], {}, ValueError, r"x must be at least 1 pixels high and wide, got"),
        (X.double(), {}, TypeError, "x must have the dtype of the module, torch.float32, got"),
        ((255 * X).byte(), {}, TypeError, r"x must be a floating-point tensor \[B, 3, H, W\]"),
        (X.to("meta"), {}, ValueError, "x must be on the device of the model, cpu; it is on meta"),
        ([X], {}, TypeError, r"x must be a tensor \[B, 3, H, W\], got list"),
    ],
)
def test_refused_calls(
    model: SegmentationModel, x: Any, options: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        model(x, **options)


def test_what_a_network_takes_is_named() -> None:
    with torch.device("meta"):
        crf = create_model("crfrnn_fcn8s", backbone="googlenet")
    with pytest.raises(TypeError, match=r"^CRFRNNFCN8s\.forward\(\) got an unexpected .* 'guide'"):
        crf(X.to("meta"), guide=X)


def test_model_without_numbers(model: SegmentationModel) -> None:
    """PyTorch's convolution would take what lies in memory; hooks may bring the numbers in time."""
    with torch.device("meta"):
        net, hooked = (create_model("segnet_basic").eval() for _ in range(2))
        backbone = create_backbone("resnet18")
    for empty in (net, backbone):
        with pytest.raises(ValueError, match=r"^the model is on the meta device, .* gives it some"):
            empty(X)

    def bring(module: Any, arguments: Any) -> None:
        load_checkpoint(hooked, model.state_dict())

    hooked.encoder[0].register_forward_pre_hook(bring)  # type: ignore[index, union-attr, operator]
    for filled in (load_checkpoint(net, model.state_dict()), hooked):
        torch.testing.assert_close(filled(X), model(X))


def test_compilers_that_are_refused(model: SegmentationModel) -> None:
    with pytest.raises(TypeError, match=r"^x must be a tensor, got a proxy: torch\.fx .*export"):
        torch.fx.symbolic_trace(model)
    for module in (model, torch.nn.Sequential(model)):
        with pytest.raises(TypeError, match=r"^torch\.jit\.script does not take SegNetBasic: "):
            torch.jit.script(module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_local_response_norm_of_half_types(dtype: torch.dtype) -> None:
    """Squares of 255 are no float16."""
    x = 255 * torch.rand(1, 7, 5, 6)
    y = LocalResponseNorm()(x.to(dtype))
    truth = torch.nn.functional.local_response_norm(x.to(dtype).double(), 5, 1e-4, 0.75)
    assert y.dtype == dtype
    torch.testing.assert_close(y, truth.to(dtype))


# ---------------------------------------------------------------------------- options without use

# The last one is refused: it would do nothing beside the others.
IDLE: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("attention_to_scale_vgg16", {"merge": "max", "scales": (1,)}),
    ("crfrnn_fcn8s", {"device": "cpu"}),
    ("crfrnn_fcn8s", {"dtype": torch.float64}),
    ("deeplabv3_resnet18", {"cascade": 5, "image_pooling": False}),
    ("deeplabv3_resnet18", {"cascade": 5, "image_pooling": True}),
    ("deeplabv3_resnet18", {"cascade": 4, "rates": (6, 12)}),
    ("deeplabv3_mobilenet_v3_large", {"multi_grid": (1, 2, 4)}),
    ("deeplabv3_mobilenet_v3_large", {"cascade": 5}),
    ("deeplabv3plus_xception", {"multi_grid": (1, 2, 4)}),
    ("deeplabv3plus_mobilenet_v2", {"multi_grid": (1, 2, 4)}),
    ("dilation_frontend_voc", {"dilations": "camvid"}),
    ("dilation_frontend_voc", {"padding": "first"}),
    ("fcn32s_vgg16", {"at_once": True}),
    ("fcn32s_vgg16", {"upscore2_bias": True}),
    ("pspnet_resnet34", {"layout": "caffe"}),
    ("pspnet_resnet50", {"layout": "caffe", "depth": 34}),
)


@pytest.mark.parametrize(("name", "options"), IDLE)
def test_options_without_use_are_refused(name: str, options: Mapping[str, Any]) -> None:
    refused = [*options][-1]
    with torch.device("meta"), pytest.raises((TypeError, ValueError), match=rf"\b{refused}\b"):
        create_model(name, **options)


# ------------------------------------------------------------------------------- sizes too small


@pytest.mark.parametrize("count", [model_info, macs, receptive_field])
def test_size_below_a_networks_least(count: Any) -> None:
    with torch.device("meta"):
        net = create_model("deconvnet") if count is not model_info else "deconvnet"
    with pytest.raises(ValueError, match=r"^size must be at least 193 x 193 for a DeconvNet, got"):
        count(net, size=(64, 300))


def test_channels_of_another_network(model: SegmentationModel) -> None:
    with pytest.raises(ValueError, match="in_channels must be the model's, 3, got 4"):
        receptive_field(model, in_channels=4)


@pytest.mark.parametrize(
    ("name", "layout", "least"),
    [
        ("deconvnet", "caffe", 193),
        ("deeplabv1", "caffe", 2),
        ("deeplabv1_largefov", "caffe", 1),
        ("fcdensenet57", "tiramisu", 32),
        ("fcn32s_googlenet", "caffe", 1),
        ("segnet", "caffe", 1),
        ("segnet", "ptsemseg", 32),
        ("unet", "paper", 1),
        ("unet", "milesial_bilinear", 16),
        ("unet", "mmseg", 16),
    ],
)
def test_least_images(name: str, layout: str, least: int) -> None:
    """That size is enough; below it the message says so."""
    with torch.device("meta"):
        net = create_model(name, 2, layout=layout).eval()
        assert net(torch.empty(1, 3, least, least)).shape == (1, 2, least, least)
        with pytest.raises(ValueError, match=rf"^x must be at least {least} pixels high and wide"):
            net(torch.empty(1, 3, least - 1, least + 50))
