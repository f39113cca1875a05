"""Published keys of LR-ASPP -> ours."""

from __future__ import annotations

from segfast.models._keys import Rules
from segfast.models.layouts.mobilenet import MMSEG_V3, V3

LAYOUTS = {
    "torchvision": Rules(*V3),
    "mmseg": Rules(
        *MMSEG_V3,
        (r"^decode_head\.aspp_conv\.", "classifier.cbr."),
        (r"^decode_head\.image_pool\.1\.0\.", "classifier.scale.0."),
        (r"^decode_head\.conv_up_input\.", "classifier.start."),
        (r"^decode_head\.convs\.conv(\d)\.", r"classifier.skips.\1."),
        (r"^decode_head\.conv_ups\.conv_up(\d)\.", r"classifier.refine.\1."),
        (r"^decode_head\.conv_seg\.", "classifier.end.1."),
    ),
}
