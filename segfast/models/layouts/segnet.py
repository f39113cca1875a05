"""Keys of published SegNets -> ours, which have Caffe's names: conv1_1, conv1_1_bn, conv1_1_D."""

from __future__ import annotations

import re

from segfast.models._keys import Rules
from segfast.models.layouts.caffe import ABSORBED, BLOBS, VGG16

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of VGG16's stages
SUFFIXES = ("", "_bn")  # a convolution and its normalisation


def _ptsemseg(match: re.Match[str]) -> str:
    """down2.conv1.cbr_unit.0 -> backbone.conv2_1, up5.conv1.cbr_unit.1 -> decoder.5.conv5_3_D_bn"""
    side, stage, number, part = match[1], int(match[2]), int(match[3]), SUFFIXES[int(match[4])]
    if side == "down":
        return f"backbone.conv{stage}_{number}{part}."
    return f"decoder.{stage}.conv{stage}_{CONVOLUTIONS[stage - 1] + 1 - number}_D{part}."


def _yassouali(match: re.Match[str]) -> str:
    """stage2_encoder.4 -> backbone.conv2_2_bn, stage1_decoder.3 -> decoder.5.conv5_2_D."""
    (number, part), stage = divmod(int(match[3]), 3), int(match[1])
    if match[2] == "encoder":
        return f"backbone.conv{stage}_{number + 1}{SUFFIXES[part]}."
    stage = 6 - stage
    count = CONVOLUTIONS[stage - 1] + (stage == 1)
    return f"decoder.{stage}.conv{stage}_{count - number}_D{SUFFIXES[part]}."


LAYOUTS = {
    "caffe": Rules(
        *BLOBS,
        *VGG16,
        (r"^(conv(\d)_\d_D(?:_bn)?\.)", r"decoder.\2.\1"),
        absent=ABSORBED,
    ),
    "ptsemseg": Rules((r"^(down|up)([1-5])\.conv(\d)\.cbr_unit\.([01])\.", _ptsemseg)),
    "yassouali": Rules((r"^stage([1-5])_(encoder|decoder)\.([013467])\.", _yassouali)),
}

BASIC = {
    "caffe": Rules(
        *BLOBS,
        (r"^(conv(\d)(?:_bn)?\.)", r"encoder.\2.\1"),
        (r"^(conv_decode(\d)(?:_bn)?\.)", r"decoder.\2.\1"),
        (r"^(conv_classifier|dense_softmax_inner_prod)\.", "classifier."),
        absent=ABSORBED,
    )
}
