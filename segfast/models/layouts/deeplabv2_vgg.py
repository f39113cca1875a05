"""Keys of DeepLab v2's published Caffe network on VGG16 -> ours: fc6_1, fc8_voc12_1 and so on."""

from __future__ import annotations

from segfast.models._keys import Rules
from segfast.models.layouts.caffe import BLOBS, VGG16

LAYOUTS = {
    "caffe": Rules(
        *BLOBS,
        *VGG16,
        (r"^(fc[678])(?:_\w+?)?_(\d)\.", r"branches.\2.\1."),
    )
}
