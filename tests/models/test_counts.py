"""Published numbers of parameters, and published keys, of variants without a golden file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch

from segfast.models import create_model, load_checkpoint
from tests.fingerprints import read
from tests.models.golden import parameters
from tests.models.networks import MMSEG


class Count(NamedTuple):
    """A variant: its name for `create_model`, learned numbers, options, tests/data/state_dicts/."""

    model: str
    params: int
    options: Mapping[str, Any] = {}
    published: str | None = None


SMP = {"layout": "smp"}
KAZUTO = {"layout": "deeplab-pytorch"}
MSC = 5 * (128 * 128 + 128) + 963 * 9 * 128 + 5 * 128 + 5 * (128 * 21 + 21)  # from 963 channels
CAFFE_PSPNET = {"layout": "caffe", "aux": False}

COUNTS = (
    Count("fcdensenet103", 9_322_091),
    Count("attention_to_scale_vgg16", 20_505_429 + 3072 * 9 * 512 + 512 + 512 * 3 + 3),
    Count("deeplabv1_resnet101", 42_543_189),
    Count("bayesian_segnet", 29_449_355),
    Count("bayesian_segnet_basic", 1_416_587, {}, "caffe_bayesian_segnet_basic_camvid"),
    Count("danet_resnet101", 66_454_779),
    Count("danet_resnet101", 68_838_702, MMSEG),
    Count("deeplabv1", 65_140_565, {}, "caffe_deeplab_vgg128_voc12"),
    Count("deeplabv1_4x4", 65_140_565),
    Count("deeplabv1_7x7", 134_346_581),
    Count("deeplabv1_msc", 65_140_565 + MSC),
    Count("deeplabv1_msc_largefov", 20_505_429 + MSC),
    Count("deeplabv1_resnet101", 42_543_189),
    Count("deeplabv2_vgg16_aspp_s", 37_877_652),
    Count("deeplabv3_resnet101", 60_996_202),
    Count("deeplabv3_resnet101", 87_105_158, MMSEG),
    Count("deeplabv3_resnet101", 58_630_997, SMP),
    Count("deeplabv3_resnet34", 26_012_245, SMP, "smp_deeplabv3_resnet34"),
    Count("deeplabv3_resnet50", 39_638_869, SMP),
    Count(
        "deeplabv3plus_mobilenet_v2", 5_816_053, published="jfzhang_deeplabv3plus_mobilenet_os16"
    ),
    Count("deeplabv3plus_mobilenet_v2", 5_816_053, {"output_stride": 8}),
    Count("deeplabv3plus_mobilenet_v2", 4_383_653, SMP),
    Count("deeplabv3plus_resnet101", 59_344_309, {"output_stride": 8}),
    Count("deeplabv3plus_resnet101", 59_344_309, KAZUTO, "kazuto_deeplabv3plus_resnet101_os16"),
    Count("deeplabv3plus_resnet101", 62_582_006, MMSEG),
    Count("deeplabv3plus_resnet101", 45_674_853, SMP),
    Count("deeplabv3plus_resnet34", 22_442_597, SMP),
    Count("deeplabv3plus_xception", 54_705_317, {"output_stride": 8}),
    Count("dilation10_cityscapes", 134_373_043, {}, "caffe_dilation10_cityscapes"),
    Count("dilation7_kitti", 134_312_343),
    Count("dilation8_voc", 141_149_720, {}, "caffe_dilation8_pascal_voc"),
    Count("dilation8_voc", 134_346_581 + 28_392, {"context": "basic"}),
    Count("dilation_frontend_voc", 134_346_581),
    Count("fcn_resnet101", 54_314_346),
    Count("fcn_resnet101", 68_489_862, MMSEG),
    Count("fpn_resnet101", 47_490_035, MMSEG),
    Count("fpn_resnet34", 23_157_973, {"layout": "smp", "num_classes": 21}),
    Count("fpn_resnet50", 26_118_613, {"layout": "smp", "num_classes": 21}, "smp_fpn_resnet50"),
    Count("hrnet_w18_small", 3_939_309, MMSEG),
    Count("hrnet_w18_small", 3_939_579),
    Count("hrnet_w40", 45_894_435),
    Count("hrnet_w48", 65_858_659, MMSEG),
    Count("hrnet_w48", 65_859_379),
    Count("hrnet_w48_ocr", 70_372_678, {}, "official_hrnet_ocr_w48_cityscapes"),
    Count(
        "lraspp_mobilenet_v3_large",
        3_284_547,
        MMSEG,
        "mmseg_mobilenet_v3_d8_lraspp_cityscapes",
    ),
    Count("pspnet_resnet101", 65_707_475, {**CAFFE_PSPNET, "num_classes": 19}),
    Count("pspnet_resnet101", 65_708_501, CAFFE_PSPNET),
    Count("pspnet_resnet101", 67_967_622, MMSEG),
    Count("pspnet_resnet101", 68_073_706),
    Count("pspnet_resnet50", 46_782_550, {**CAFFE_PSPNET, "num_classes": 150}),
    Count("refinenet_resnet101_light", 46_349_653),
    Count("refinenet_resnet152", 133_696_085),
    Count("refinenet_resnet152_light", 61_993_301),
    Count("refinenet_resnet50_light", 27_357_525, {}, "drsleep_rf_lw50"),
    Count("segnet", 29_449_932, {"num_classes": 12}),
    Count("segnet", 29_455_125, {"num_classes": 21}),
    Count("segnet", 29_464_934, {"num_classes": 38}),
    Count("segnet", 29_486_411, {"layout": "yassouali"}, "yassouali_segnet"),
    Count("segnet_basic", 1_416_587, {}, "caffe_segnet_basic_camvid"),
    Count("unet", 7_763_041, {"layout": "mateuszbuda", "num_classes": 1}, "mateuszbuda_unet"),
    Count("unet", 17_263_042, {"layout": "milesial_bilinear"}, "milesial_unet_bilinear"),
    Count("unet", 29_062_886, MMSEG, "mmseg_unet_s5_d16_fcn_cityscapes"),
    Count("unet", 31_100_354, {"layout": "released", "in_channels": 1}, "_check_unet_phseg_v5"),
    Count("unet_resnet50", 32_524_005),
)


@pytest.mark.parametrize("count", COUNTS, ids=str)
def test_parameters_and_keys(count: Count) -> None:
    with torch.device("meta"):
        model = create_model(count.model, **count.options)
    assert parameters(model) == count.params
    if count.published:
        shapes = read("state_dicts", count.published)
        state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        load_checkpoint(model, state)  # strict
