"""Keys of DeepLab's published Caffe networks on VGG16 -> ours.

fc8 is called after the data set there: fc8_voc12, fc8_pascal.
"""

from __future__ import annotations

from segfast.models._keys import Rules
from segfast.models.layouts.caffe import BLOBS, VGG16

LAYOUTS = {
    "caffe": Rules(
        *BLOBS,
        *VGG16,
        (r"^(fc[67])\.", r"classifier.\1."),
        (r"^fc8_\w+?\.", r"classifier.fc8."),
        (r"^(data|pool[1-4])_(conv|fc|ms)\.", r"multi_scale.\1.\2."),
    )
}
