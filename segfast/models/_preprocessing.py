"""What published networks expect of their images: channels, scale, means and standard deviations.

Read in the code or the data files that go with each network; what nobody says is not here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from segfast.ops import _check

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Of a photograph x, RGB from 0 to 1: y_c = (scale x_c - mean_c) / std_c.

    Called with a photograph it gives what the network takes.

    Attributes:
        channels: "RGB" or "BGR", the order of y's.
        scale: of white before the mean is taken off, 1 or 255.
        mean, std: in the order of `channels` and in units of `scale`.

    Example:
        >>> import torch
        >>> from segfast.models import Preprocessing
        >>> white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
        >>> Preprocessing("BGR", 255, mean=(104.0, 117.0, 123.0))(white).flatten()
        tensor([151., 138., 132.])
    """

    channels: str = "RGB"
    scale: float = 1.0
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    def __call__(self, image: Tensor) -> Tensor:
        """A photograph as the network takes it.

        Args:
            image: [N, 3, H, W], RGB: uint8, or floating from 0 to 1.

        Returns:
            [N, 3, H, W], of uint8 images in PyTorch's default dtype, else in their own.

        Raises:
            TypeError, ValueError: `image` is none of these.
        """
        _require_photograph(image)
        if image.dtype == torch.uint8:
            x = image.to(torch.get_default_dtype()) * self.scale / 255  # exactly itself by 255
        else:
            x = image * self.scale
        x = x.flip(1) if self.channels == "BGR" else x
        mean, std = (x.new_tensor(v).reshape(3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def __str__(self) -> str:
        """RGB 0..1 - (0.485, 0.456, 0.406), / (0.229, 0.224, 0.225)"""
        text = f"{self.channels} 0..{self.scale:g}"
        text += f" - {_listed(self.mean)}" if any(self.mean) else ""
        return text + (f", / {_listed(self.std)}" if set(self.std) != {1.0} else "")


def _listed(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.6g}' for value in values)})"


def _require_photograph(image: Tensor) -> None:
    _check.require_tensor("image", image, "[N, 3, H, W]")
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(f"image must be [N, 3, H, W], RGB, got {_check.describe(image)}")
    if image.dtype == torch.uint8:
        return
    if not image.is_floating_point():
        raise TypeError(f"image must be uint8 or floating, got {_check.describe(image)}")
    if torch.compiler.is_compiling() or image.is_meta or not image.numel():
        return
    low, high = (float(end) for end in torch.aminmax(image.detach()))
    if low < 0 or high > 1:
        raise ValueError(
            f"image must be from 0 to 1 (or uint8), got values from {low:.3g} to {high:.3g}"
        )


IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
UNCHANGED = Preprocessing()  # RGB, 0 to 1
FCN = Preprocessing("BGR", 255.0, mean=(104.00698793, 116.66876762, 122.67891434))
DEEPLAB = Preprocessing("BGR", 255.0, mean=(104.008, 116.669, 122.675))
CAFFE_VGG = Preprocessing("BGR", 255.0, mean=(103.939, 116.779, 123.68))

# Of all networks of one code; what a network's layouts expect otherwise stands in its Entry. mmseg
# and semseg have ImageNet's numbers times 255, on images from 0 to 255: the same.
USUAL: dict[str, Preprocessing] = {
    **dict.fromkeys(
        ("torchvision", "mmseg", "smp", "jfzhang", "semseg", "geoseg", "official"), IMAGENET
    ),
    "deeplab-pytorch": DEEPLAB,
    "wkentaro": FCN,
}
