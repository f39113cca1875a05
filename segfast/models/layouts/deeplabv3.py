"""Published keys of DeepLab v3 -> ours, which are torchvision's."""

from __future__ import annotations

from segfast.models._keys import AS_IT_IS, Rules, Substitution
from segfast.models.layouts import aspp, mobilenet, resnet

PYRAMID: Substitution = (r"^aspp\.", "classifier.0.")

LAYOUTS = {
    "torchvision": AS_IT_IS,
    "mmseg": Rules(
        *resnet.MMSEG, *aspp.MMSEG, PYRAMID, (r"^decode_head\.conv_seg\.", "classifier.1.")
    ),
    "smp": Rules(
        *resnet.SMP,
        (r"^decoder\.aspp\.", "classifier.0."),
        (r"^decoder\.conv\.", "classifier.1."),
        (r"^decoder\.bn\.", "classifier.2."),
        (r"^segmentation_head\.0\.", "classifier.4."),
    ),
    "deeplab-pytorch": Rules(
        *resnet.DEEPLAB_PYTORCH,
        *aspp.DEEPLAB_PYTORCH,
        PYRAMID,
        (r"^fc2\.", "classifier.1."),
    ),
}
MOBILENET_V3 = {"torchvision": Rules(*mobilenet.V3)}
