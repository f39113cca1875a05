"""Published keys of MobileNets in segmentation networks -> `backbone.` and torchvision's names."""

from __future__ import annotations

import re
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


def _layer(m: re.Match[str]) -> str:
    """A block's layers in one row of convolution, norm, ReLU6: block 1 has no expansion."""
    last = 3 if m[1] == "1" else 6
    layer, part = divmod(int(m[2]), 3)
    inner = f"{layer}.{part}" if int(m[2]) < last else str(last // 3 + part)
    return f"backbone.features.{m[1]}.conv.{inner}."


# jfzhang95/pytorch-deeplab-xception keeps every layer under two names
JFZHANG_V2: tuple[Substitution, ...] = (
    (r"^backbone\.(?:low|high)_level_features\.", "backbone.features."),
    (r"^backbone\.features\.(\d+)\.conv\.(\d)\.", _layer),
)
JFZHANG_V2_TWICE = r"^backbone\.features\."
