"""What the published Caffe networks share: a layer's blobs are LAYER/0 and LAYER/1."""

from __future__ import annotations

from segfast.models._keys import Substitution

BLOBS: tuple[Substitution, ...] = ((r"/0$", ".weight"), (r"/1$", ".bias"))

VGG16: tuple[Substitution, ...] = ((r"^(conv\d_\d(?:_bn)?\.)", r"backbone.\1"),)

# Where caffe-segnet and DeconvNet normalise, scale and shift absorb the statistics after training:
# y = scale x + shift, which is the normalisation by mean 0 and variance 1 - EPS.
EPS = 1e-9
ABSORBED = {
    r"\.running_mean$": 0.0,
    r"\.running_var$": 1.0 - EPS,
    r"\.num_batches_tracked$": 0,
}
