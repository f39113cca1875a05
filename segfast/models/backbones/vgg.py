"""VGG16's thirteen convolutions, under the names that every Caffe network gives them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segfast.models._layers import conv2d

# (convolutions, channels) of the five stages. Simonyan and Zisserman, ICLR 2015, table 1, column D.
VGG16_STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGG16(nn.Module):
    """Five stages of 3 x 3 convolutions and ReLU; what lies between them, the network says.

        for i in range(5):
            x = pool(vgg.stage(i, x))

    Args:
        in_channels: C.
        batch_norm: a normalisation after every convolution, conv{i}_{j}_bn.
        rates: atrous rate of each stage.
        padding: of each stage, in units of its rate; None keeps sizes (1 everywhere).
        first_padding: of conv1_1; None means as its stage. FCN has 100.

    Shape:
        stage i: x [N, C_i, H, W] -> [N, C_{i+1}, H, W] with `padding` 1. State: conv{i}_{j}
        (weight, bias), i from 1.
    """

    def __init__(
        self,
        in_channels: int = 3,
        batch_norm: bool = False,
        rates: Sequence[int] = (1, 1, 1, 1, 1),
        padding: Sequence[int] = (1, 1, 1, 1, 1),
        first_padding: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_norm = batch_norm
        channels = in_channels
        for i, (count, width) in enumerate(VGG16_STAGES):
            for j in range(count):
                pad = padding[i] * rates[i]
                if first_padding is not None and i == j == 0:
                    pad = first_padding
                conv = conv2d(channels, width, 3, dilation=rates[i], bias=True, padding=pad)
                self.add_module(f"conv{i + 1}_{j + 1}", conv)
                if batch_norm:
                    self.add_module(f"conv{i + 1}_{j + 1}_bn", nn.BatchNorm2d(width))
                channels = width

    def stage(self, i: int, x: Tensor) -> Tensor:
        """The convolutions of stage i (from 0), each with its ReLU."""
        for j in range(VGG16_STAGES[i][0]):
            name = f"conv{i + 1}_{j + 1}"
            x = self.get_submodule(name)(x)
            if self.batch_norm:
                x = self.get_submodule(f"{name}_bn")(x)
            x = torch.relu_(x)
        return x
