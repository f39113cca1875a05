"""Inputs for benchmarks: real photographs at the sizes people use, and logits as a network's.

The photographs are those that ship with scikit-image; nothing is downloaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MOSAIC = (  # read in rows of four tiles
    "astronaut",
    "coffee",
    "rocket",
    "chelsea",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "coffee",
)


def photograph(name: str, height: int, width: int) -> Tensor:
    """A scikit-image photograph resized to uint8 [3, height, width] (bilinear, antialiased)."""
    from skimage import data

    pixels = torch.from_numpy(getattr(data, name)()[..., :3].copy()).movedim(-1, 0)  # [3, H, W]
    resized = F.interpolate(
        pixels[None].float(), (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def mosaic(height: int, width: int) -> Tensor:
    """Eight photographs side by side in two rows, uint8 [3, height, width]: a large real image."""
    tiles = [photograph(name, height // 2, width // 4) for name in MOSAIC]
    return torch.cat([torch.cat(tiles[:4], 2), torch.cat(tiles[4:], 2)], 1)


def noise(height: int, width: int) -> Tensor:
    """Uniform noise, uint8 [3, height, width]: the worst case, more vertices than pixels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


PICTURES: dict[str, Callable[[int, int], Tensor]] = {
    "coffee": functools.partial(photograph, "coffee"),
    "mosaic": mosaic,
    "noise": noise,
}


def network_logits(image: Tensor, labels: int, seed: int = 0) -> Tensor:
    """Log-probabilities float32 [labels, H, W], smooth and wrong in places like a network's.

    At an eighth of the size each cell is compared with `labels` cells drawn from the image by
    colour and place; noise makes a part of the cells wrong; bilinear upsampling does the rest.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = image.shape[1:]
    coarse = (max(2, -(-height // 8)), max(2, -(-width // 8)))
    colour = F.interpolate(image[None].float() / 255, coarse, mode="area")[0]  # [3, h, w]
    place = torch.stack(
        torch.meshgrid(
            torch.linspace(0, 1, coarse[0]), torch.linspace(0, 1, coarse[1]), indexing="ij"
        )
    )
    cells = torch.cat([colour, place]).flatten(1)  # [5, h w]
    chosen = torch.randint(0, cells.shape[1], (labels,), generator=generator)
    distance = (cells[:, None, :] - cells[:, chosen, None]).square().sum(0)  # [labels, h w]
    rough = -12 * distance + torch.randn(distance.shape, generator=generator)
    smooth = F.interpolate(
        rough.reshape(1, labels, *coarse), (height, width), mode="bilinear", align_corners=False
    )
    return smooth[0].log_softmax(0).contiguous()
