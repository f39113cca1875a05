"""What every backbone is: maps of an image, one for each of its stages."""

from __future__ import annotations

from torch import Tensor, nn

from segfast.models._inputs import require_image


class Backbone(nn.Module):
    """Called with an image, it gives the maps of a network for classification.

    A subclass says `maps`, and the attributes.

    Attributes:
        in_channels: C of the images.
        channels, strides: of the maps.
        least: pixels that an image has at least on both sides.
    """

    in_channels: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    least: int = 1

    def maps(self, x: Tensor) -> list[Tensor]:
        """An image that was checked -> the maps."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor]:
        """x [N, C, H, W] -> maps [N, c, h, w], c and H / h those of `channels` and `strides`.

        Raises:
            TypeError, ValueError: x is no such image; the message says what came.
        """
        require_image(x, self)
        return self.maps(x)
