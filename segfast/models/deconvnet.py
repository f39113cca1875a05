"""DeconvNet: VGG16 down to a vector, and its mirror of unpoolings and transposed convolutions up.

    image -> conv1 -> pool1 -> ... -> conv5 -> pool5 -> fc6 -> fc7 -> [N, 4096, 1, 1]
                        |                        | indices              |
    scores <- deconv1 <- unpool1 <- ... <- deconv5 <- unpool5 <- fc6_deconv

Its inputs are proposals, parts of an image that hold an object; `segfast.models.aggregate` puts
their scores together.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._layers import gaussian
from segfast.models._preprocessing import FCN
from segfast.models._registry import Entry
from segfast.models._unpooling import decode, encode, mirrored, named_layers
from segfast.models.backbones import VGG16, VGG16_STAGES, fully_connected
from segfast.models.layouts.caffe import EPS
from segfast.models.layouts.deconvnet import LAYOUTS
from segfast.nn import MaxPool2d, MaxUnpool2d


class DeconvNet(SegmentationModel):
    """Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015,
    figure 2. Every convolution is normalised and rectified.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        layout: "caffe".

    Shape:
        x [N, C, H, W] -> [N, L, H, W], H and W at least 193 (published for 224). In training a
        single image must be larger than 224 on one side, or normalisations have one value.

    Raises:
        TypeError, ValueError: an argument breaks its contract, or x is too small; the message
            names it.

    Example:
        >>> import torch
        >>> from segfast.models import DeconvNet
        >>> with torch.device("meta"):  # 252 million parameters
        ...     scores = DeconvNet()(torch.empty(2, 3, 224, 224))
        >>> scores.shape
        torch.Size([2, 21, 224, 224])
    """

    rules = LAYOUTS
    least = 193  # pixels that five pools make 7 of, the kernel of fc6

    def __init__(self, num_classes: int = 21, in_channels: int = 3, layout: str = "caffe") -> None:
        super().__init__(num_classes, in_channels, layout)
        self.backbone = VGG16(in_channels, batch_norm=True, eps=EPS)
        self.pool = MaxPool2d(2, return_indices=True, ceil_mode=True)
        self.unpool = MaxUnpool2d(2)
        self.fc = fully_connected(512, eps=EPS)
        self.fc6_deconv = named_layers(["fc6_deconv"], [4096, 512], _deconv(7, 0), eps=EPS)
        self.decoder = nn.Sequential()
        for i, channels in mirrored(VGG16_STAGES, 64):
            names = [f"deconv{i}_{j}" for j in range(1, len(channels))]
            self.decoder.add_module(str(i), named_layers(names, channels, _deconv(3, 1), eps=EPS))
        self.seg_score = gaussian(nn.Conv2d(64, num_classes, 1))

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> [N, L, H, W]."""
        stages = [functools.partial(self.backbone.stage, i) for i in range(len(VGG16_STAGES))]
        x, pools = encode(x, stages, self.pool)
        x = self.fc6_deconv(self.fc(x))  # [N, 4096, 1, 1] of 224 x 224, and 7 x 7 again
        x = decode(x, self.decoder, self.unpool, pools)
        return {"out": self.seg_score(x)}


def _deconv(kernel_size: int, padding: int) -> functools.partial[nn.Module]:
    return functools.partial(_transposed, kernel_size=kernel_size, padding=padding)


def _transposed(in_channels: int, out_channels: int, kernel_size: int, padding: int) -> nn.Module:
    return gaussian(nn.ConvTranspose2d(in_channels, out_channels, kernel_size, padding=padding))


MODELS = (
    Entry(
        "deconvnet",
        DeconvNet,
        "Noh, Hong and Han, ICCV 2015; their Caffe network",
        metrics={"VOC 2012 test, mean IU with FCN-8s and CRF": 72.5},
        images={"caffe": FCN},
    ),
)
