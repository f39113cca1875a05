"""Keys of the published DeconvNet -> ours: a normalisation is named after its convolution there."""

from __future__ import annotations

from segfast.models._keys import Rules
from segfast.models.layouts.caffe import ABSORBED, BLOBS, VGG16

LAYOUTS = {
    "caffe": Rules(
        *BLOBS,
        (r"^bn(\d_\d)\.", r"conv\1_bn."),
        *VGG16,
        (r"^debn(\d_\d)\.", r"deconv\1_bn."),
        (r"^(deconv(\d)_\d(?:_bn)?\.)", r"decoder.\2.\1"),
        (r"^(fc[67])\.", r"fc.\1."),
        (r"^bnfc([67])\.", r"fc.bn\1."),
        (r"^fc6-deconv\.", "fc6_deconv.fc6_deconv."),
        (r"^fc6-deconv-bn\.", "fc6_deconv.fc6_deconv_bn."),
        (r"^seg-score-voc\.", "seg_score."),
        absent=ABSORBED,
    )
}
