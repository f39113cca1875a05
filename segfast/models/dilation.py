"""Yu and Koltun's dilated networks: a front end that keeps a stride of 8, and a context module.

image, reflected by 186 on each side
      -> VGG16, no padding, pool1 to pool3 only, conv5 at rate 2
      -> fc6 (7 x 7 at rate 4) -> fc7 -> final -> [N, L, H/8, W/8]      the front end
      -> 3 x 3 at rates 1, 1, 2, 4, 8, 16, 1 -> 1 x 1 -> scores         the context module
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._keys import Rules
from segfast.models._layers import gaussian
from segfast.models._placement import reflected, spread
from segfast.models._preprocessing import Preprocessing
from segfast.models._registry import Entry
from segfast.models.backbones import VGG16, VGG16_STAGES, fully_connected
from segfast.models.layouts.dilation import layouts
from segfast.nn import CONTEXT_DILATIONS, BilinearConvTranspose2d, ContextModule, MaxPool2d
from segfast.nn._shared import chosen
from segfast.ops import _check

MARGIN = 186  # what the front end without padding takes off each side
STRIDE = 8


class DilationNet(SegmentationModel):
    """Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        context: "basic" (L channels in every layer), "large" (up to 32 L), or None: the front end.
        dilations, padding: of the context module, see `segfast.nn.ContextModule`; None for
            "pascal" and "each".
        upsample: the scores are upsampled by a bilinear transposed convolution, which is learned.
        layout: "caffe".

    `forward` pads the image by reflection, 186 pixels before it and 194 behind, of which the front
    end leaves ceil(H / 8) + 1 scores, those of the pixels 8 i as published; between these it is
    bilinear. With `upsample` it pads by 186 on both sides and cuts the result to the image.
    `scores` takes images that are padded already: [N, C, H + 372, W + 372] -> [N, L, H/8, W/8],
    times 8 with `upsample`.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import DilationNet
        >>> with torch.device("meta"):  # 134 million parameters
        ...     scores = DilationNet(11)(torch.empty(1, 3, 45, 60))
        >>> scores.shape
        torch.Size([1, 11, 45, 60])
    """

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        context: str | None = "basic",
        dilations: str | Sequence[int] | None = None,
        padding: str | None = None,
        upsample: bool = False,
        layout: str = "caffe",
    ) -> None:
        rates = chosen("dilations", "pascal" if dilations is None else dilations, CONTEXT_DILATIONS)
        super().__init__(num_classes, in_channels, layout, variant=len(rates))
        _check.require_bool("upsample", upsample)
        self.backbone = VGG16(in_channels, rates=(1, 1, 1, 1, 2), padding=(0,) * 5)
        self.pool = MaxPool2d(2, ceil_mode=True)
        self.fc = fully_connected(512, dilation=4)
        self.final = gaussian(nn.Conv2d(4096, num_classes, 1), 0.001)
        self.context: nn.Module = nn.Identity()
        if context is not None:
            _check.require_choice("context", context, ("basic", "large"))
            pad = "each" if padding is None else padding
            self.context = ContextModule(num_classes, context, rates, padding=pad)
        for name, value in (("dilations", dilations), ("padding", padding)):
            if context is None and value is not None:
                raise ValueError(f"{name} is of the context module, there is none; got {value!r}")
        self.upsample = (
            BilinearConvTranspose2d(num_classes, scale_factor=STRIDE, groups=num_classes)
            if upsample
            else None
        )

    @classmethod
    def layouts_of(cls, variant: int) -> Mapping[str, Rules]:
        """With that many 3 x 3 convolutions in the context module."""
        return layouts(variant)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H + 372, W + 372] -> [N, L, H/8, W/8], with upsampling [N, L, H, W]."""
        for i in range(len(VGG16_STAGES)):
            x = self.backbone.stage(i, x)
            x = self.pool(x) if i < 3 else x
        x = self.context(self.final(self.fc(x)))
        return {"out": x if self.upsample is None else self.upsample(x)}

    def prepared(self, x: Tensor) -> Tensor:
        """Reflected, x[-i] = x[i], by the margin."""
        end = MARGIN if self.upsample is not None else MARGIN + STRIDE
        return reflected(reflected(x, -2, MARGIN, end), -1, MARGIN, end)

    def at_input_size(self, y: Tensor, size: Any) -> Tensor:
        """Cut to the image; bilinear between the pixels 8 i."""
        if self.upsample is not None:
            return y[..., : size[0], : size[1]]
        return spread(y, STRIDE, size)


SOURCE = "Yu and Koltun, ICLR 2016; fyu/dilation"
# Mean pixels, BGR, as published with the networks (of Cityscapes, to two decimals, in their ports).
MEANS = {
    "voc": (102.93, 111.36, 116.52),
    "camvid": (110.70313206, 108.77808759, 105.41212523),
    "cityscapes": (72.39, 82.91, 73.16),
    "kitti": (96.19429688, 95.55136972, 91.34692262),
}


def _entry(
    name: str, num_classes: int, metrics: dict[str, float] | None = None, **options: Any
) -> Entry:
    images = {"caffe": Preprocessing("BGR", 255.0, MEANS[name.rsplit("_", 1)[1]])}
    return Entry(name, DilationNet, SOURCE, options, num_classes, metrics or {}, images)


VAL = "VOC 2012 val, mean IU"

MODELS = (
    _entry("dilation_frontend_voc", 21, {VAL: 69.8, "VOC 2012 test, mean IU": 71.3}, context=None),
    _entry(
        "dilation8_voc",
        21,
        {VAL: 72.1, f"{VAL} with CRF": 73.3, f"{VAL} with CRF-RNN": 73.9},
        context="large",
        padding="first",
    ),
    _entry("dilation8_camvid", 11, dilations="camvid"),
    _entry("dilation10_cityscapes", 19, dilations="cityscapes", upsample=True),
    _entry("dilation7_kitti", 11, dilations="kitti"),
)
