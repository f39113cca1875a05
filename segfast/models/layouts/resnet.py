"""Published keys of dilated residual networks -> `backbone.` and torchvision's names."""

from __future__ import annotations

from segfast.models._keys import Substitution

# mmseg calls backbones as we do: backbone.stem.i, backbone.layerN. Of its heads, a ConvModule is a
# conv_bn_relu, the auxiliary head an FCNHead "aux_classifier".
MMSEG_HEADS: tuple[Substitution, ...] = (
    (r"\.conv\.", ".0."),
    (r"\.bn\.", ".1."),
    (r"^auxiliary_head\.convs\.0\.", "aux_classifier."),
    (r"^auxiliary_head\.conv_seg\.", "aux_classifier.4."),
)
SMP: tuple[Substitution, ...] = ((r"^encoder\.", "backbone."),)
# kazuto1011/deeplab-pytorch: layer1 is the stem, blocks count from 1. With "base." in front it is
# the network that sees several scales.
DEEPLAB_PYTORCH: tuple[Substitution, ...] = (
    (r"^base\.", ""),
    (r"^layer1\.conv1\.conv\.", "backbone.conv1."),
    (r"^layer1\.conv1\.bn\.", "backbone.bn1."),
    (r"^layer(\d)\.block(\d+)\.", lambda m: f"backbone.layer{int(m[1]) - 1}.{int(m[2]) - 1}."),
    *(
        substitution
        for i, name in enumerate(("reduce", "conv3x3", "increase"), 1)
        for substitution in (
            (rf"^(backbone\..*)\.{name}\.conv\.", rf"\1.conv{i}."),
            (rf"^(backbone\..*)\.{name}\.bn\.", rf"\1.bn{i}."),
        )
    ),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.bn\.", ".downsample.1."),
)
SEMSEG: tuple[Substitution, ...] = (
    (r"^layer0\.", r"backbone.stem."),
    (r"^layer([1-4])\.", r"backbone.layer\1."),
)
LIRONUI: tuple[Substitution, ...] = (
    (r"^first(conv|bn)\.", r"backbone.\g<1>1."),
    (r"^encoder([1-4])\.", r"backbone.layer\1."),
)
