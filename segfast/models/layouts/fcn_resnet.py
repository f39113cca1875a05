"""Published keys of FCNs on residual networks -> ours, which are torchvision's."""

from __future__ import annotations

from segfast.models._keys import AS_IT_IS, Rules
from segfast.models.layouts.resnet import MMSEG_HEADS

LAYOUTS = {
    "torchvision": AS_IT_IS,
    "mmseg": Rules(
        *MMSEG_HEADS,
        (r"^decode_head\.convs\.", "classifier.convs."),
        (r"^decode_head\.conv_cat\.", "classifier.fuse."),
        (r"^decode_head\.conv_seg\.", "classifier.scores.1."),
    ),
}
