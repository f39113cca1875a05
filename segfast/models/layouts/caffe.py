"""What the published Caffe networks share: a layer's blobs are LAYER/0 and LAYER/1."""

from __future__ import annotations

from segfast.models._keys import Substitution

BLOBS: tuple[Substitution, ...] = ((r"/0$", ".weight"), (r"/1$", ".bias"))

VGG16: tuple[Substitution, ...] = ((r"^(conv\d_\d(?:_bn)?\.)", r"backbone.\1"),)

_INCEPTION = {  # Caffe's layers of an inception -> torchvision's
    "1x1": "branch1",
    "3x3_reduce": "branch2.0",
    "3x3": "branch2.1",
    "5x5_reduce": "branch3.0",
    "5x5": "branch3.1",
    "pool_proj": "branch4.1",
}
GOOGLENET: tuple[Substitution, ...] = (
    (r"^conv1/7x7_s2\.", "backbone.conv1.conv."),
    (r"^conv2/3x3_reduce\.", "backbone.conv2.conv."),
    (r"^conv2/3x3\.", "backbone.conv3.conv."),
    (
        rf"^inception_(\w+)/({'|'.join(_INCEPTION)})\.",
        lambda match: f"backbone.inception{match[1]}.{_INCEPTION[match[2]]}.conv.",
    ),
)

# Where caffe-segnet and DeconvNet normalise, scale and shift absorb the statistics after training:
# y = scale x + shift, which is the normalisation by mean 0 and variance 1 - EPS.
EPS = 1e-9
ABSORBED = {
    r"\.running_mean$": 0.0,
    r"\.running_var$": 1.0 - EPS,
}
