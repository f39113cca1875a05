"""Photographs, masks and a network's coarse, confused scores, all drawn from one seed.

Five labels: a background and two pairs of look-alikes, the frequent one of each pair taken for
itself, the rare one more often for the frequent one. The scores are those of a network of stride 4:
smooth, noisy, with a bias of their own on every object. Colours say nothing about labels, only
where objects end: every object of every image has a colour of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LABELS, HEIGHT, WIDTH, STRIDE, OBJECTS = 5, 48, 64, 4, 6
FREQUENCY = torch.tensor([0.0, 0.35, 0.15, 0.35, 0.15])  # of objects; label 0 is what they lie on
# What the network believes of a pixel: row = truth, column = label.
CONFUSION = torch.tensor(
    [
        [0.88, 0.03, 0.03, 0.03, 0.03],
        [0.10, 0.75, 0.10, 0.03, 0.02],
        [0.10, 0.47, 0.38, 0.03, 0.02],
        [0.15, 0.03, 0.02, 0.70, 0.10],
        [0.15, 0.03, 0.02, 0.42, 0.38],
    ]
)
OBJECT_BIAS, CELL_NOISE = 0.4, 1.0  # standard deviations, in logits
CAMERA_NOISE = 5.0  # of 255


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [N, L, H, W], images uint8 [N, 3, H, W], true labels [N, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [_scene(generator) for _ in range(count)]
    scores, images, truths = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    return scores, images, truths


def mean_iu(predicted: Tensor, truth: Tensor) -> float:
    """Mean over the labels of intersection over union, in per cent."""
    pairs = truth.flatten() * LABELS + predicted.flatten()
    counts = torch.bincount(pairs, minlength=LABELS**2).reshape(LABELS, LABELS).double()
    union = counts.sum(0) + counts.sum(1) - counts.diag()
    return 100 * (counts.diag() / union).mean().item()


def _scene(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    owner, truth = _objects(generator)
    return _scores(owner, truth, generator), _photograph(owner, generator), truth


def _objects(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ellipses and rounded boxes at any angle: whose pixel [H, W] (0 nobody's), labels [H, W]."""
    y, x = torch.arange(HEIGHT)[:, None].float(), torch.arange(WIDTH).float()
    owner = torch.zeros(HEIGHT, WIDTH, dtype=torch.long)
    labels = torch.zeros(1 + OBJECTS, dtype=torch.long)
    labels[1:] = torch.multinomial(FREQUENCY, OBJECTS, replacement=True, generator=generator)
    for number in range(1, 1 + OBJECTS):
        place, size, turn = torch.rand(5, generator=generator).split((2, 2, 1))
        cy, cx = place[0] * HEIGHT, place[1] * WIDTH
        ry, rx = 6 + 8 * size
        sin, cos = torch.sin(math.pi * turn), torch.cos(math.pi * turn)
        u = ((x - cx) * cos + (y - cy) * sin) / rx  # [H, W]
        v = ((y - cy) * cos - (x - cx) * sin) / ry
        power = 2 if number % 2 else 8
        owner[u.abs() ** power + v.abs() ** power < 1] = number
    return owner, labels[owner]


def _photograph(owner: Tensor, generator: torch.Generator) -> Tensor:
    colors = torch.randint(30, 226, (1 + OBJECTS, 3), generator=generator).float()
    light = torch.linspace(0.95, 1.05, WIDTH)
    noise = CAMERA_NOISE * torch.randn(3, HEIGHT, WIDTH, generator=generator)
    image = colors[owner].permute(2, 0, 1) * light + noise  # [3, H, W]
    return image.round().clamp(0, 255).to(torch.uint8)


def _scores(owner: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    bias = OBJECT_BIAS * torch.randn(1 + OBJECTS, LABELS, generator=generator)
    evidence = (CONFUSION[truth].log() + bias[owner]).permute(2, 0, 1)  # [L, H, W]
    cells = functional.avg_pool2d(evidence[None], STRIDE)  # [1, L, H / 4, W / 4]
    cells = cells + CELL_NOISE * torch.randn(cells.shape, generator=generator)
    return functional.interpolate(
        cells, size=(HEIGHT, WIDTH), mode="bilinear", align_corners=False
    )[0]
