"""Every network that is compared with its published code: one row each."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch

from segfast.models import create_model


@functools.cache
def layouts(name: str) -> tuple[str, ...]:
    """Of a model, the default first."""
    with torch.device("meta"):
        return tuple(create_model(name).layouts)


class Golden(NamedTuple):
    """What tests/data/ holds of a published network, and how ours is built.

    Attributes:
        published: the files' name.
        model: name for `create_model`.
        params: learned numbers of the published network.
        options: for `create_model`: what differs from the name's defaults.
        at_input_size: the published output is at the size of the input, else at its own stride.
        after: "softmax" or "log_softmax": the published output; ours are the scores before it.
        giant: takes minutes or gigabytes: run with --giants.
    """

    published: str
    model: str
    params: int
    options: Mapping[str, Any] = {}
    at_input_size: bool = False
    after: str | None = None
    giant: bool = False

    def case(self) -> Any:
        """The row as a parameter of a test."""
        return pytest.param(self, id=self.published, marks=[pytest.mark.giant] * self.giant)


MMSEG = {"layout": "mmseg", "num_classes": 19}  # its Cityscapes configurations
GEOSEG = {"layout": "geoseg", "num_classes": 6}

GOLDEN = (
    Golden("_check_paper_unet", "unet", 31_030_658, {"in_channels": 1}),
    Golden("caffe_deconvnet_voc", "deconvnet", 251_805_653, giant=True),
    Golden("caffe_deeplab_largefov_voc12", "deeplabv1_largefov", 20_505_429),
    Golden("caffe_deeplab_v2_vgg_aspp_l_voc12", "deeplabv2_vgg16_aspp_l", 37_877_652),
    Golden("caffe_dilation8_camvid", "dilation8_camvid", 134_313_443, after="softmax", giant=True),
    Golden("caffe_fcn16s", "fcn16s_vgg16", 134_815_994, giant=True),
    Golden("caffe_fcn32s", "fcn32s_vgg16", 136_152_917, giant=True),
    Golden("caffe_fcn8s", "fcn8s_vgg16", 134_489_759, giant=True),
    Golden("caffe_fcn_alexnet", "fcn32s_alexnet", 58_704_590),
    Golden("caffe_segnet_camvid", "segnet", 29_449_355, giant=True),
    Golden("drsleep_refinenet101", "refinenet_resnet101", 118_052_437, giant=True),
    Golden("drsleep_refinenet50", "refinenet_resnet50", 99_060_309),
    Golden("geoseg_abcnet", "abcnet_resnet18", 13_666_563, GEOSEG),
    Golden("geoseg_manet", "manet_resnet50", 35_860_622, GEOSEG),
    Golden(
        "jfzhang_deeplabv3plus_resnet_os16",
        "deeplabv3plus_resnet101",
        59_344_309,
        at_input_size=True,
        giant=True,
    ),
    Golden(
        "jfzhang_deeplabv3plus_xception_os16",
        "deeplabv3plus_xception",
        54_705_317,
        at_input_size=True,
    ),
    Golden("junfu_danet_resnet50", "danet_resnet50", 47_462_651, at_input_size=True),
    Golden("kazuto_deeplabv2_resnet101", "deeplabv2_resnet101", 44_048_532),
    Golden(
        "kazuto_deeplabv3_resnet101_os8",
        "deeplabv3_resnet101",
        58_040_661,
        {"layout": "deeplab-pytorch"},
        giant=True,
    ),
    Golden("lironui_abcnet_resnet18", "abcnet_resnet18", 13_741_059),
    Golden("lironui_manet_resnet50", "manet_resnet50", 35_860_333),
    Golden("lironui_maresunet_resnet34", "maresunet_resnet34", 26_276_221),
    Golden("milesial_unet_convtranspose", "unet", 31_037_698, {"layout": "milesial"}),
    Golden("mmseg_danet_r50_d8_cityscapes", "danet_resnet50", 49_846_574, MMSEG),
    Golden(
        "mmseg_deeplabv3_r50_d8_cityscapes", "deeplabv3_resnet50", 68_113_030, MMSEG, giant=True
    ),
    Golden("mmseg_deeplabv3plus_r50_d8_cityscapes", "deeplabv3plus_resnet50", 43_589_878, MMSEG),
    Golden("mmseg_fcn_hr18_cityscapes", "hrnet_w18", 9_640_849, MMSEG),
    Golden("mmseg_fcn_r50_d8_cityscapes", "fcn_resnet50", 49_497_734, MMSEG),
    Golden("mmseg_fpn_r50_cityscapes", "fpn_resnet50", 28_497_907, MMSEG),
    Golden("mmseg_pspnet_r50_d8_cityscapes", "pspnet_resnet50", 48_975_494, MMSEG),
    Golden("official_hrnet_w18", "hrnet_w18", 9_641_119),
    Golden("official_hrnet_w32", "hrnet_w32", 29_546_515, giant=True),
    Golden("ptsemseg_segnet", "segnet", 29_449_377, {"layout": "ptsemseg"}),
    Golden("semseg_pspnet50", "pspnet_resnet50", 49_081_578, at_input_size=True),
    Golden(
        "smp_deeplabv3plus_resnet50",
        "deeplabv3plus_resnet50",
        26_682_725,
        {"layout": "smp"},
        at_input_size=True,
    ),
    Golden(
        "torchvision_deeplabv3_mobilenet_v3_large",
        "deeplabv3_mobilenet_v3_large",
        11_029_328,
        at_input_size=True,
    ),
    Golden("tiramisu_fcdensenet57", "fcdensenet57", 1_376_795, after="log_softmax"),
    Golden("tiramisu_fcdensenet67", "fcdensenet67", 3_463_243, after="log_softmax"),
    Golden("torchvision_deeplabv3_resnet50", "deeplabv3_resnet50", 42_004_074, at_input_size=True),
    Golden("smp_unet_resnet34", "unet_resnet34", 24_439_269),
    Golden("torchvision_fcn_resnet50", "fcn_resnet50", 35_322_218, at_input_size=True),
    Golden(
        "torchvision_lraspp_mobilenet_v3_large",
        "lraspp_mobilenet_v3_large",
        3_221_538,
        at_input_size=True,
    ),
)
