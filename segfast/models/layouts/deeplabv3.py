"""Published keys of DeepLab v3 -> ours, which are torchvision's."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from segfast.models._keys import AS_IT_IS, Rules, Substitution
from segfast.models.layouts import aspp, mobilenet, resnet

PYRAMID: Substitution = (r"^aspp\.", "classifier.0.")
SMP = Rules(
    *resnet.SMP,
    (r"^decoder\.aspp\.", "classifier.0."),
    (r"^decoder\.conv\.", "classifier.1."),
    (r"^decoder\.bn\.", "classifier.2."),
    (r"^segmentation_head\.0\.", "classifier.4."),
)
MOBILENET_V3 = {"torchvision": Rules(*mobilenet.V3)}
MOBILENET_V2 = {**MOBILENET_V3, "smp": SMP}
BASIC = ("resnet18", "resnet34")


@functools.cache
def layouts(backbone: str, rates: int) -> Mapping[str, Rules]:
    """On a backbone, with a pyramid of so many rates."""
    if backbone == "mobilenet_v3_large":
        return MOBILENET_V3
    if backbone == "mobilenet_v2":
        return MOBILENET_V2
    found = {
        "torchvision": AS_IT_IS,
        "mmseg": Rules(*aspp.mmseg(rates), PYRAMID, (r"^decode_head\.conv_seg\.", "classifier.1.")),
        "smp": SMP,
    }
    if backbone not in BASIC:  # deeplab-pytorch has bottlenecks alone
        found["deeplab-pytorch"] = Rules(
            *resnet.DEEPLAB_PYTORCH,
            *aspp.deeplab_pytorch(rates),
            PYRAMID,
            (r"^fc2\.", "classifier.1."),
        )
    return found
