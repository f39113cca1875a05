"""The Caffe networks row by row: shapes, parameters, fields of view and strides of every layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from segfast.models import create_model
from segfast.models._keys import Rules
from segfast.models.backbones import create_backbone
from segfast.models.layouts import backbones
from tests.models.golden import parameters
from tests.models.listings import Call, Row, assert_row, listing, run


class Listed(NamedTuple):
    """A listing of tests/data/nets/ and the network of ours that it is of.

    Attributes:
        name: of the file.
        build: makes the network.
        image: [N, C, H, W] that the listing is for.
        rules: Caffe's keys -> those of the network; None for those of its layout.
        part: of the network: what the listing is of; "" for all of it.
        constants: numbers that the listing counts and that are not learned.
        extra: names of ours that the listing has not.
    """

    name: str
    build: Callable[[], Any]
    image: tuple[int, int, int, int]
    rules: Rules | None = None
    part: str = ""
    constants: int = 0
    extra: tuple[str, ...] = ()


def model(name: str, **options: Any) -> Callable[[], Any]:
    return partial(create_model, name, **options)


def pspnet(name: str, num_classes: int) -> Callable[[], Any]:
    return model(name, num_classes=num_classes, layout="caffe", aux=False)


CAMVID = (1, 3, 360, 480)

LISTED = (
    Listed("bayesian_segnet_basic_camvid", model("bayesian_segnet_basic"), CAMVID),
    Listed("bayesian_segnet_camvid", model("bayesian_segnet"), CAMVID),
    Listed(
        "bvlc_googlenet",
        partial(create_backbone, "bvlc_googlenet", classifier=True),
        (1, 3, 224, 224),
        backbones.GOOGLENET["caffe"].rules,
    ),
    Listed("crfrnn_tvg", model("crfrnn_fcn8s", layout="caffe"), (1, 3, 500, 500), part="fcn"),
    Listed("deconvnet_voc", model("deconvnet"), (1, 3, 224, 224)),
    Listed("deeplab_largefov_voc12", model("deeplabv1_largefov"), (1, 3, 321, 321)),
    Listed("deeplab_v2_vgg_aspp_l_voc12", model("deeplabv2_vgg16_aspp_l"), (1, 3, 321, 321)),
    Listed("deeplab_vgg128_voc12", model("deeplabv1"), (1, 3, 306, 306)),
    # PyTorch's operators: there hooks see the layers of the context module, which is one of ours.
    # Images such that, padded, they are 1396 x 1396, 852 x 1640, 900 x 1100 and 900 x 900.
    Listed(
        "dilation10_cityscapes", model("dilation10_cityscapes", ops="torch"), (1, 3, 1024, 1024)
    ),
    Listed("dilation7_kitti", model("dilation7_kitti", ops="torch"), (1, 3, 472, 1260)),
    Listed("dilation8_camvid", model("dilation8_camvid", ops="torch"), (1, 3, 520, 720)),
    Listed("dilation8_pascal_voc", model("dilation8_voc"), (1, 3, 520, 520)),
    Listed("fcn_voc-fcn-alexnet", model("fcn32s_alexnet"), (1, 3, 500, 500)),
    Listed("fcn_voc-fcn16s", model("fcn16s_vgg16"), (1, 3, 500, 500)),
    Listed("fcn_voc-fcn32s", model("fcn32s_vgg16"), (1, 3, 500, 500)),
    Listed("fcn_voc-fcn8s", model("fcn8s_vgg16"), (1, 3, 500, 500)),
    Listed("fcn_voc-fcn8s-atonce", model("fcn8s_vgg16_atonce"), (1, 3, 500, 500), constants=1536),
    Listed("pspnet101_VOC2012_473", pspnet("pspnet_resnet101", 21), (1, 3, 473, 473)),
    Listed("pspnet101_cityscapes_713", pspnet("pspnet_resnet101", 19), (1, 3, 713, 713)),
    Listed("pspnet50_ADE20K_473", pspnet("pspnet_resnet50", 150), (1, 3, 473, 473)),
    Listed("segnet_basic_camvid", model("segnet_basic"), CAMVID),
    Listed("segnet_camvid", model("segnet"), CAMVID),
    Listed("segnet_driving_webdemo", model("segnet", num_classes=12), CAMVID),
    Listed("segnet_pascal", model("segnet", num_classes=21), (1, 3, 224, 224)),
    Listed("segnet_sun", model("segnet", num_classes=38), CAMVID),
)


@pytest.mark.parametrize("listed", LISTED, ids=lambda listed: listed.name)
def test_rows(listed: Listed) -> None:
    with torch.device("meta"):
        whole = listed.build()
    rules = listed.rules or whole.layouts[whole.layout]
    net: nn.Module = whole.get_submodule(listed.part)
    rows, total = listing(listed.name)
    calls = [call for call in run(net, listed.image) if call.name not in listed.extra]
    pairs = paired(rows, calls, rules, listed.part)
    for row, call in pairs:
        assert_row(row, call)
    assert parameters(net) == total - listed.constants == sum(row.params for row in rows)


def paired(rows: list[Row], calls: list[Call], rules: Rules, part: str) -> list[tuple[Row, Call]]:
    """Every row with its layer: by its name if it has parameters, else by its place in the order.

    No row and no layer is left over, and no layer runs twice.
    """
    learned = {call.name: call for call in calls if any(True for _ in call.module.parameters())}
    others = [call for call in calls if call.name not in learned]
    assert len(learned) + len(others) == len(calls) == len(rows)
    prefix = f"{part}." if part else ""
    order = iter(others)
    return [
        (row, learned.pop(_ours(row.name, rules, prefix)) if row.params else next(order))
        for row in rows
    ]


def _ours(name: str, rules: Rules, prefix: str) -> str:
    keys = (rules.key(f"{name}{ending}") or "" for ending in ("/0", ".weight"))
    key = next(key for key in keys if key.endswith(".weight"))
    return key.removeprefix(prefix).removesuffix(".weight")
