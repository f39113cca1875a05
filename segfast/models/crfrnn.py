"""CRF-RNN: FCN-8s and the dense CRF behind it, one network.

x [N, C, H, W] -> FCN-8s -> scores s_0 [N, L, H, W] -> mean field -> scores [N, L, H, W]
image [N, C', H, W] ---------------------------------------^
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._preprocessing import CAFFE_VGG
from segfast.models._registry import Entry
from segfast.models.fcn import FCN
from segfast.models.layouts.crfrnn import LAYOUTS
from segfast.nn import CRFRNN

FIXED = {"model", "labels", "device", "dtype"}  # arguments of CRFRNN that are this network's own


class CRFRNNFCN8s(SegmentationModel):
    """Zheng et al., "Conditional Random Fields as Recurrent Neural Networks", ICCV 2015.

        s_{t+1} = s_0 + C (W_s K~_s softmax(s_t) + W_b K~_b softmax(s_t)),   s_0 = FCN-8s(x)

    Called as ``model(x)`` or ``model(x, image=image)``. The kernels compare the colours of `image`,
    0 to 255. The published network's x has these units, less a mean that distances do not see, so x
    serves and `image` may be left away. Where x is scaled otherwise, give the photograph (uint8 or
    floating) as `image`, or another `color_sigma`; a range too small for it is warned of.

    Args:
        num_classes, in_channels: L of the scores, C of x.
        backbone: of the FCN; published is "vgg16".
        layout: "crfasrnn_pytorch" or "caffe" (torrvision/crfasrnn): wired alike.
        crf: arguments of `segfast.nn.CRFRNN`, for example ``iterations=10`` and
            ``training_iterations=5``, ``color_sigma=3``, ``method="lattice"``.

    With `return_aux` the FCN's scores s_0 are under "fcn". Gradients reach every parameter; those
    of the CRF want larger steps, see `segfast.nn.CRFRNN`.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import CRFRNNFCN8s
        >>> model = CRFRNNFCN8s(num_classes=2, backbone="googlenet").eval()
        >>> image = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
        >>> model(image / 127.5 - 1, image=image).shape
        torch.Size([1, 2, 40, 56])
    """

    rules = LAYOUTS

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        backbone: str = "vgg16",
        layout: str = "crfasrnn_pytorch",
        **crf: Any,
    ) -> None:
        super().__init__(num_classes, in_channels, layout)
        for name in FIXED & crf.keys():
            raise TypeError(f"{name} is no argument of a CRFRNNFCN8s")
        self.fcn = FCN(num_classes, in_channels, backbone, stride=8, upscore2_bias=True)
        self.crfrnn = CRFRNN(nn.Identity(), num_classes, **crf)

    def forward(self, x: Tensor, return_aux: bool = False, image: Tensor | None = None) -> Any:
        """Scores of x [N, C, H, W]: [N, L, H, W]; the image [N, C', H, W] may be left away."""
        return self._run(x, return_aux, image=image)

    def scores(
        self, x: Tensor, aux: bool = False, image: Tensor | None = None
    ) -> dict[str, Tensor]:
        """x [N, C, H, W], image [N, C', H, W] -> "out" [N, L, H, W], with `aux` also "fcn"."""
        fcn = self.fcn.scores(x)["out"]
        out = self.crfrnn(fcn, x if image is None else image)
        return {"out": out, "fcn": fcn} if aux else {"out": out}


MODELS = (
    Entry(
        "crfrnn_fcn8s",
        CRFRNNFCN8s,
        "Zheng et al., ICCV 2015; torrvision/crfasrnn, sadeepj/crfasrnn_pytorch",
        metrics={"VOC 2012 test, mean IU": 74.7},
        images=dict.fromkeys(LAYOUTS, CAFFE_VGG),
    ),
)
