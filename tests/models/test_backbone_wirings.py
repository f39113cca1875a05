"""Weights belong into the wiring that they were trained in: stems, strides, Caffe's files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.models import load_backbone
from segfast.models.backbones import MobileNetV3, ResNet
from tests.models.classifiers import (
    State,
    classifier,
    number,
    on_meta,
    published,
    resnet,
    shapes_of,
    tagged,
    tags,
)
from tests.models.test_checkpoint import caffemodel

STEM = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"}
TIMM = {"0": "conv1.0", "1": "conv1.1", "3": "conv1.3", "4": "conv1.4", "6": "conv1.6", "7": "bn1"}


def deep(names: Mapping[str, str], name: str, wiring: str) -> tuple[State, dict[str, str]]:
    """A classifier with a deep stem under other names; and our key -> theirs of its backbone."""
    state = resnet(name, wiring=wiring)
    theirs = {key: re.sub(r"^stem\.(\d)\.", lambda m: f"{names[m[1]]}.", key) for key in state}
    ours = {key: name for key, name in theirs.items() if not key.startswith("fc.")}
    return tagged({theirs[key]: x.shape for key, x in state.items()}), ours


# -------------------------------------------------------------------------------------- wirings


@pytest.mark.parametrize(
    ("names", "wiring", "depth", "layout"),
    [
        (STEM, "semseg", 50, "semseg"),
        (STEM, "caffe101", 101, "caffe"),
        (TIMM, "mmseg", 50, "mmseg"),
        ({k: f"stem.{k}" for k in STEM}, "mmseg", 50, "mmseg"),
    ],
)
def test_deep_stems(names: Mapping[str, str], wiring: str, depth: int, layout: str) -> None:
    state, pairs = deep(names, f"resnet{depth}", wiring)
    model = on_meta(f"pspnet_resnet{depth}", layout=layout)
    load_backbone(model, state)
    found = tags(model.backbone)
    assert found == {ours: number(theirs) for ours, theirs in pairs.items()}


FIRST = "which mean a bottleneck's stride on its 3 x 3 convolution"


@pytest.mark.parametrize(
    ("name", "options", "state", "message"),
    [
        ("deeplabv2_resnet101", {}, lambda: resnet("resnet101"), FIRST),
        (
            "pspnet_resnet50",
            {"layout": "caffe"},
            lambda: deep(STEM, "resnet50", "semseg")[0],
            FIRST,
        ),
        (
            "lraspp_mobilenet_v3_large",
            {"layout": "mmseg"},
            lambda: published("mobilenet_v3_large"),
            "which mean the same padding on both sides",
        ),
        ("fcn_resnet50", {}, lambda: he("resnet50"), "stride on its first 1 x 1 convolution"),
    ],
)
def test_other_wirings(
    name: str, options: dict[str, Any], state: Callable[[], State], message: str
) -> None:
    """Refused, and nothing is changed; named layouts are taken."""
    model, source = on_meta(name, **options), state()
    before = tags(model)
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(model, source)
    assert tags(model) == before
    (layout,) = re.findall(r"say layout='(\w+)' here", str(error.value))
    load_backbone(model, source, layout=layout)
    assert None not in tags(model.backbone).values()


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("pspnet_resnet50", lambda: resnet("resnet50"), r"missing backbone\.stem\.7\.weight"),
        ("pspnet_resnet50", lambda: deep(STEM, "resnet50", "mmseg")[0], r"stem\.6\.weight has"),
        ("fcn_resnet50", lambda: deep(STEM, "resnet50", "semseg")[0], r"\(64, 3, 3, 3\), wanted"),
        ("fcn_resnet50", lambda: resnet("resnet101"), r"unexpected backbone\.layer3\.22"),
        ("fcn_resnet101", lambda: resnet("resnet50"), r"missing backbone\.layer3\.22"),
        ("fcn32s_vgg16", lambda: published("vgg16_bn"), r"unexpected backbone\.conv5_3_bn\.bias"),
        ("segnet", lambda: published("alexnet"), r"keys do not fit layout"),
    ],
)  # fmt: skip
def test_other_networks_are_refused(name: str, source: Callable[[], State], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(on_meta(name), source())


def test_wiring_of_mobilenets_own_state() -> None:
    """The keys are torchvision's, too: our own weights of that padding are to be named."""
    with torch.device("meta"):
        net = MobileNetV3(wiring="mmseg")
    state = tagged(shapes_of(net))
    with pytest.raises(ValueError, match="the same padding on both sides"):
        load_backbone(net, state)
    load_backbone(net, state, layout="segfast")
    assert None not in tags(net).values()


# ------------------------------------------------------------------ He et al.'s .caffemodel files


def he(name: str) -> State:
    """Their keys and shapes, sums of statistics with weight 2."""
    shapes: dict[str, Any] = {"fc1000/0": (1000, 2048), "fc1000/1": (1000,)}
    if name == "resnet50":  # the others have no such bias
        shapes["conv1/1"] = (64,)
    of_blobs = {"bn": ("running_mean", "running_var"), "scale": ("weight", "bias")}
    for ours, x in classifier(name).backbone.state_dict().items():
        layer, _, kind = ours.rpartition(".")
        if layer in ("conv1", "bn1"):
            theirs = "conv1"
        else:
            stage, block, part = re.match(r"layer(\d)\.(\d+)\.(.+)$", layer).groups()  # type: ignore[union-attr]
            many = name != "resnet50" and stage in "23"
            letter = "a" if block == "0" else f"b{block}" if many else "abcdef"[int(block)]
            branch = "1" if "down" in part else f"2{'abc'[int(part[-1]) - 1]}"
            theirs = f"{int(stage) + 1}{letter}_branch{branch}"
        if x.dim() == 4:
            shapes["conv1/0" if theirs == "conv1" else f"res{theirs}/0"] = x.shape
        for layers, kinds in of_blobs.items() if x.dim() == 1 else ():
            if kind in kinds:
                name_of = f"{layers}{'_' if theirs == 'conv1' else ''}{theirs}"
                shapes[f"{name_of}/{kinds.index(kind)}"] = x.shape
                if layers == "bn":
                    shapes[f"{name_of}/2"] = (1,)
    state = tagged(shapes)
    two = {key: torch.full((1,), 2.0) for key in state if key.startswith("bn") and key[-1] == "2"}
    return state | two


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_residual_networks_of_caffe(depth: int) -> None:
    state = he(f"resnet{depth}")
    with torch.device("meta"):
        net = ResNet(depth, wiring="deeplab-pytorch")
    load_backbone(net, state)
    found = tags(net)
    assert None not in found.values()
    block = "3b3" if depth > 50 else "3d"
    assert found["layer2.3.conv2.weight"] == number(f"res{block}_branch2b/0")
    assert found["layer2.3.bn3.running_var"] == number(f"bn{block}_branch2c/1") / 2
    assert found["layer4.0.downsample.1.bias"] == number("scale5a_branch1/1")


def test_stem_of_caffe(tmp_path: Path) -> None:
    """relu(scale (conv x + bias - mean) / sqrt(var + eps) + shift), of a file."""
    torch.manual_seed(6)
    state = {
        key: torch.rand(x.shape) + 0.5 if "conv1/" in key else x.contiguous()
        for key, x in he("resnet50").items()
        if not key.startswith("fc")
    }
    state |= {"bn_conv1/2": torch.tensor([3.0])}
    layers: dict[str, list[Tensor]] = {}
    for key in sorted(key for key in state if "conv1/" in key):
        layers.setdefault(key[:-2], []).append(state[key])
    stem = tmp_path / "stem.caffemodel"
    stem.write_bytes(caffemodel(layers, legacy=False))
    net = ResNet(50, wiring="deeplab-pytorch").eval()
    with pytest.warns(UserWarning, match=r"keys do not fit layout 'caffe': missing layer1"):
        load_backbone(net, stem, layout="caffe", strict=False)
    x = torch.rand(1, 3, 9, 11)
    mean, var = (state[f"bn_conv1/{i}"] / 3 for i in (0, 1))
    y = F.conv2d(x, state["conv1/0"], state["conv1/1"], 2, 3)
    y = F.batch_norm(y, mean, var, state["scale_conv1/0"], state["scale_conv1/1"])
    torch.testing.assert_close(net.enter(x), y.relu())
