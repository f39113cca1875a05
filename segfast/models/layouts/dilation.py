"""Keys of the published dilated networks -> ours: ctx_conv3_1, in VOC's network ct_conv3_1."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from segfast.models._keys import Rules
from segfast.models.layouts.caffe import BLOBS, VGG16


@functools.cache
def layouts(rates: int) -> Mapping[str, Rules]:
    """Of networks whose context module has that many 3 x 3 convolutions, and one 1 x 1."""

    def layer(match: re.Match[str]) -> str:
        name, level, number = match[1], match[2], match[3]
        if level:  # conv1_1, conv1_2, conv2_1, conv3_1 and so on
            place = int(level) + int(number) - 2 if level == "1" else int(level)
        else:
            place = {"fc1": rates - 1, "final": rates}[name]
        return f"context.convs.{place}."

    return {
        "caffe": Rules(
            *BLOBS,
            *VGG16,
            (r"^(fc[67])\.", r"fc.\1."),
            (r"^fc-final\.", "final."),
            (r"^ctx_upsample\.", "upsample."),
            (r"^ctx?_(conv(\d)_(\d)|fc1|final)\.", layer),
        )
    }
