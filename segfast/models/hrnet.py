"""HRNet: the maps of all strides at stride 4, beside each other; and with object context (OCR).

image -> HRNet -> 4 maps -> resized to stride 4, [N, 15 C, H/4, W/4] -> 1 x 1 -> scores

OCR:      features -> 1 x 1 -> auxiliary scores: where each class is
          features and that -> a mean feature for each class -> attended to by every pixel
          -> beside the features -> scores
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from segfast.models._base import SegmentationModel, resize
from segfast.models._layers import conv_bn_relu
from segfast.models._registry import Entry
from segfast.models.backbones.hrnet import HRNETS, HRNet
from segfast.models.layouts.hrnet import LAYOUTS, OCR_LAYOUTS

BIAS = {"official": True, "mmseg": False}  # before the normalisation of the head


def head(channels: int, num_classes: int, bias: bool) -> nn.Sequential:
    """1 x 1, batch norm, ReLU, 1 x 1."""
    return nn.Sequential(
        *conv_bn_relu(channels, channels, 1, bias=bias), nn.Conv2d(channels, num_classes, 1)
    )


class HRNetSegmentation(SegmentationModel):
    """Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", 2019.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        size: "w18_small", "w18", "w32", "w40" or "w48".
        align_corners: of all resizes; None as in the released configurations: False, with OCR True.
        layout: "official" or "mmseg": a bias that a normalisation takes away again, or none.

    Shape:
        x [N, C, H, W] -> [N, L, H, W], resized from stride 4.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import HRNetSegmentation
        >>> model = HRNetSegmentation(num_classes=2, size="w18_small").eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    rules = LAYOUTS
    wirings = BIAS
    aligned: ClassVar[bool] = False

    def __init__(
        self,
        num_classes: int = 19,
        in_channels: int = 3,
        size: str = "w48",
        align_corners: bool | None = None,
        layout: str = "official",
    ) -> None:
        corners = self.aligned if align_corners is None else align_corners
        super().__init__(num_classes, in_channels, layout, corners)
        self.backbone = HRNet(size, in_channels, self.align_corners)
        self._build_head(sum(self.backbone.channels), num_classes, layout)

    def _build_head(self, channels: int, num_classes: int, layout: str) -> None:
        self.classifier: nn.Module = head(channels, num_classes, bias=BIAS[layout])

    def features(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> all maps at stride 4, [N, 15 C, H / 4, W / 4]."""
        maps = self.backbone(x)
        size = maps[0].shape[-2:]
        return torch.cat([resize(y, size, self.align_corners) for y in maps], 1)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> "out" [N, L, H / 4, W / 4]."""
        return {"out": self.classifier(self.features(x))}


class HRNetOCR(HRNetSegmentation):
    """Yuan, Chen and Wang, "Object-Contextual Representations for Semantic Segmentation", 2020.

    The auxiliary scores say softly where each class is; their loss has weight 0.4 as published.

    Args:
        num_classes, in_channels, size, align_corners: as :class:`HRNetSegmentation`.
        layout: "official".

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are "aux".

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import HRNetOCR
        >>> model = HRNetOCR(num_classes=2, size="w18_small").eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    rules = OCR_LAYOUTS
    aligned = True

    def _build_head(self, channels: int, num_classes: int, layout: str) -> None:
        self.aux_classifier = head(channels, num_classes, bias=True)
        self.reduce = conv_bn_relu(channels, 512, 3, bias=True)
        self.context = ObjectContext(512, 256)
        self.classifier = nn.Conv2d(512, num_classes, 1)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> maps [N, L, H / 4, W / 4]."""
        features = self.features(x)
        where = self.aux_classifier(features)
        maps = {"out": self.classifier(self.context(self.reduce(features), where))}
        return maps | {"aux": where} if aux else maps


class ObjectContext(nn.Module):
    """Every pixel attends to the mean feature of every class (section 3.2).

        f_k = sum_n softmax_n(s_kn) x_n                        the class's feature
        y_n = rho(sum_k softmax_k(phi(x_n) . psi(f_k) / sqrt(D)) delta(f_k))
        z_n = g [y_n, x_n]

    phi, psi, delta, rho and g are 1 x 1 convolutions with batch norm and ReLU, phi and psi two.
    """

    def __init__(self, channels: int, key_channels: int, dropout: float = 0.05) -> None:
        super().__init__()
        c, d = channels, key_channels
        self.pixel = nn.Sequential(conv_bn_relu(c, d, 1), conv_bn_relu(d, d, 1))
        self.object = nn.Sequential(conv_bn_relu(c, d, 1), conv_bn_relu(d, d, 1))
        self.down, self.up = conv_bn_relu(c, d, 1), conv_bn_relu(d, c, 1)
        self.project = nn.Sequential(*conv_bn_relu(2 * c, c, 1), nn.Dropout2d(dropout))

    def forward(self, x: Tensor, scores: Tensor) -> Tensor:
        """x [N, C, h, w], scores [N, L, h, w] -> z [N, C, h, w]."""
        weights = scores.flatten(2).softmax(2)  # [N, L, hw]
        objects = (x.flatten(2) @ weights.mT)[..., None]  # [N, C, L, 1]
        query = self.pixel(x).flatten(2).mT  # [N, hw, D]
        key, value = self.object(objects)[..., 0], self.down(objects)[..., 0].mT  # [N, D, L] ...
        attention = (query @ key * key.shape[1] ** -0.5).softmax(2)  # [N, hw, L]
        context = (attention @ value).mT.unflatten(2, x.shape[-2:])  # [N, D, h, w]
        return self.project(torch.cat([self.up(context), x], 1))


SOURCE = "Sun et al., 2019; HRNet/HRNet-Semantic-Segmentation, mmseg"
OCR_SOURCE = "Yuan, Chen and Wang, ECCV 2020; HRNet/HRNet-Semantic-Segmentation"
METRICS = {"w48": {"Cityscapes val, mean IU": 80.9}}
MODELS = tuple(
    Entry(
        f"hrnet_{size}",
        HRNetSegmentation,
        SOURCE,
        {"size": size},
        19,
        METRICS.get(size, {}),
    )
    for size in HRNETS
) + tuple(Entry(f"hrnet_{size}_ocr", HRNetOCR, OCR_SOURCE, {"size": size}, 19) for size in HRNETS)
