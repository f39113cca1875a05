"""Published keys of MobileNets in segmentation networks -> `backbone.` and torchvision's names."""

from __future__ import annotations

from segfast.models._keys import Substitution

# torchvision's segmentation networks cut the classifier's `features` out of it
V3: tuple[Substitution, ...] = ((r"^backbone\.(\d)", r"backbone.features.\1"),)
