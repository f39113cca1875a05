"""Attention to scale: one DeepLab on an image at several scales, its scores weighted per pixel.

image at scale s -> DeepLab-LargeFOV (shared) -> fc7_s, scores f_s, both resized to the largest
fc7_1, fc7_0.75, fc7_0.5 -> concatenated -> 3 x 3 -> 1 x 1 -> softmax over scales -> w_s
scores = sum_s w_s f_s
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segfast.models._base import resize
from segfast.models._layers import conv2d, gaussian, image_scales
from segfast.models._registry import Entry
from segfast.models.deeplabv1 import FIELDS_OF_VIEW, DeepLabV1
from segfast.ops import _check

MERGES = ("attention", "average", "max")


class AttentionToScale(DeepLabV1):
    """Chen, Yang, Wang, Xu and Yuille, "Attention to Scale", CVPR 2016, section 3.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        scales: of the image, two or more; the largest is 1.
        merge: "attention" (the paper's), "average" or "max" of the scales' scores.
        layout: "caffe": keys of DeepLab-LargeFOV; those of the attention are ours.

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are those of every scale, "scale_1",
        "scale_0.75" and so on, each trained with a loss of its own.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import AttentionToScale
        >>> model = AttentionToScale(num_classes=2).eval()
        >>> out, aux = model(torch.randn(1, 3, 65, 97), return_aux=True)
        >>> out.shape, list(aux)
        (torch.Size([1, 2, 65, 97]), ['scale_1', 'scale_0.75', 'scale_0.5'])
    """

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        scales: Sequence[float] = (1.0, 0.75, 0.5),
        merge: str = "attention",
        layout: str = "caffe",
    ) -> None:
        super().__init__(num_classes, in_channels, layout=layout)
        self.scales = image_scales(scales)
        if max(self.scales) != 1 or len(self.scales) < 2:
            raise ValueError(f"scales must be two or more, 1 the largest of them; got {scales}")
        _check.require_choice("merge", merge, MERGES)
        self.merge = merge
        width = FIELDS_OF_VIEW["large"].width * len(self.scales)
        self.attention: nn.Module | None = None
        if merge == "attention":
            self.attention = nn.Sequential(
                OrderedDict[str, nn.Module](
                    conv1=conv2d(width, 512, 3, bias=True),
                    relu=nn.ReLU(inplace=True),
                    conv2=gaussian(nn.Conv2d(512, len(self.scales), 1)),
                )
            )

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> [N, L, H/8, W/8], also of every scale."""
        features = [self._features(x, scale) for scale in self.scales]
        sizes = [y.shape[-2:] for y in features]
        size = max(sizes)
        maps = [resize(self.classifier[-1](y), size, True) for y in features]
        each = torch.stack(maps, 1)  # [N, S, L, h, w]
        if self.attention is not None:
            together = torch.cat([resize(y, size, True) for y in features], 1)
            weights = self.attention(together).softmax(1)  # [N, S, h, w]
            merged = (weights.unsqueeze(2) * each).sum(1)
        else:
            merged = each.mean(1) if self.merge == "average" else each.amax(1)
        named = {f"scale_{scale:g}": y for scale, y in zip(self.scales, maps, strict=True)}
        return {"out": merged, **(named if aux else {})}

    def _features(self, x: Tensor, scale: float) -> Tensor:
        """fc7 [N, 1024, h, w] of the image at a scale."""
        size = torch.Size(int((n - 1) * scale) + 1 for n in x.shape[-2:])
        *_, y = self.backbone(resize(x, size, True))
        return self.classifier[:-1](self.pool5a(y))


MODELS = (
    Entry(
        "attention_to_scale_vgg16",
        AttentionToScale,
        "Chen et al., CVPR 2016; on DeepLab-LargeFOV",
    ),
)
