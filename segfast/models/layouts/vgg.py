"""torchvision's keys of VGG16 -> ours, which are Caffe's: conv1_1 to conv5_3."""

from __future__ import annotations

from segfast.models._keys import Substitution
from segfast.models.backbones.vgg import VGG16_STAGES


def torchvision(batch_norm: bool) -> tuple[Substitution, ...]:
    """features.{place in the sequence} -> backbone.conv{stage}_{number}.

    Example:
        >>> from segfast.models.layouts.vgg import torchvision
        >>> torchvision(False)[2]
        ('^features\\\\.5\\\\.', 'backbone.conv2_1.')
    """
    found: list[Substitution] = []
    place = 0
    for i, (count, _) in enumerate(VGG16_STAGES, 1):
        for j in range(1, count + 1):
            found.append((rf"^features\.{place}\.", f"backbone.conv{i}_{j}."))
            if batch_norm:
                found.append((rf"^features\.{place + 1}\.", f"backbone.conv{i}_{j}_bn."))
            place += 3 if batch_norm else 2  # convolution, norm, ReLU
        place += 1  # the pool
    return tuple(found)
