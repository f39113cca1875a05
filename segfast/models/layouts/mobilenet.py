"""Published keys of MobileNets in segmentation networks -> `backbone.` and torchvision's names."""

from __future__ import annotations

from collections.abc import Iterator

from segfast.models._keys import Substitution
from segfast.models.backbones.mobilenet_v3 import BLOCKS

# torchvision's segmentation networks cut the classifier's `features` out of it
V3: tuple[Substitution, ...] = ((r"^backbone\.(\d)", r"backbone.features.\1"),)


def _mmseg_v3() -> Iterator[Substitution]:
    """Of a block, torchvision counts the parts that there are, mmseg names them."""
    yield r"^backbone\.layer(\d+)\.(0|1)\.", r"backbone.features.\1.\2."
    channels = 16
    for index, (_, inner, width, gated, *_) in enumerate(BLOCKS, 1):
        parts = {"expand_conv": inner != channels, "depthwise_conv": True, "se": gated}
        names = [name for name, there in parts.items() if there] + ["linear_conv"]
        for part, name in enumerate(names):
            yield rf"^backbone\.layer{index}\.{name}\.", rf"backbone.features.{index}.block.{part}."
        channels = width


# mmcv's ConvModule is a conv_bn_relu, its squeeze-and-excitation has two without normalisation
MMSEG_V3: tuple[Substitution, ...] = (
    (r"\.se\.conv([12])\.conv\.", r".se.fc\1."),
    (r"\.conv\.", ".0."),
    (r"\.bn\.", ".1."),
    *_mmseg_v3(),
)
