"""Published keys of PSPNets -> ours."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from segfast.models._keys import Rules
from segfast.models.layouts.resnet import MMSEG_HEADS, SEMSEG

PARTS = {"1x1_reduce": "1", "3x3": "2", "1x1_increase": "3"}  # of a bottleneck


def _caffe(match: re.Match[str]) -> str:
    """conv3_1_1x1_proj/bn -> backbone.layer2.0.downsample.1"""
    stage, block, part, bn = int(match[1]), int(match[2]), match[3], match[4] is not None
    if stage == 1:
        return f"backbone.stem.{3 * (block - 1) + bn}."
    where = f"backbone.layer{stage - 1}.{block - 1}"
    if part == "1x1_proj":
        return f"{where}.downsample.{int(bn)}."
    return f"{where}.{'bn' if bn else 'conv'}{PARTS[part]}."


RELEASED = (50, 101)  # depths of the Caffe networks


@functools.cache
def layouts(released: bool, bins: tuple[int, ...]) -> Mapping[str, Rules]:
    """Of a depth that was released for Caffe or not, where grids name the pyramid's layers."""
    found = {
        "semseg": Rules(*SEMSEG, (r"^cls\.", "classifier."), (r"^aux\.", "aux_classifier.")),
        "mmseg": Rules(
            *MMSEG_HEADS,
            (r"^decode_head\.psp_modules\.(\d)\.1\.0\.", r"ppm.features.\1.1."),
            (r"^decode_head\.psp_modules\.(\d)\.1\.1\.", r"ppm.features.\1.2."),
            (r"^decode_head\.bottleneck\.", "classifier."),
            (r"^decode_head\.conv_seg\.", "classifier.4."),
        ),
    }
    if released:
        found["caffe"] = Rules(
            (r"^conv5_4/bn\.", "classifier.1."),
            (r"^conv5_4\.", "classifier.0."),
            (r"^conv6\.", "classifier.4."),
            *(
                (rf"^conv5_3_pool{size}_conv{bn}\.", f"ppm.features.{i}.{part}.")
                for i, size in enumerate(bins)
                for part, bn in ((1, ""), (2, "/bn"))
            ),
            (r"^conv([1-5])_(\d+)_(1x1_reduce|3x3|1x1_increase|1x1_proj)(?:_s2)?(/bn)?\.", _caffe),
        )
    return found
