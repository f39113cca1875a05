"""Published keys of FCNs on residual networks -> ours, which are torchvision's."""

from __future__ import annotations

from segfast.models._keys import AS_IT_IS, Rules
from segfast.models.layouts.resnet import MMSEG

LAYOUTS = {
    "torchvision": AS_IT_IS,
    "mmseg": Rules(
        *MMSEG,
        (r"^auxiliary_head\.", "aux_classifier."),
        (r"^decode_head\.", "classifier."),
    ),
}
