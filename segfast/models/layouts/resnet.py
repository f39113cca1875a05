"""Published keys of dilated residual networks -> `backbone.` and torchvision's names."""

from __future__ import annotations

from segfast.models._keys import Substitution

TORCHVISION: tuple[Substitution, ...] = ()  # ours
MMSEG: tuple[Substitution, ...] = ()  # backbone.stem.i, backbone.layerN as ours
SEMSEG: tuple[Substitution, ...] = (
    (r"^layer0\.", r"backbone.stem."),
    (r"^layer([1-4])\.", r"backbone.layer\1."),
)
