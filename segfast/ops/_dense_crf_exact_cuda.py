"""The exact dense CRF on a GPU: all images at once, every iteration on the device.

    scores = logits + sum_m M_m K~_m Q,   Q = softmax(scores)

K is Triton's exact filter for the bilateral kernel and two convolutions for the spatial one.
Gradients: `_dense_crf_exact_grad.py`. The launchers are imported at the first call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from segfast._native import has_triton
from segfast.kernels.dense_crf.triton_configurations import OLDEST
from segfast.ops._dense_crf_look import drop_undefined
from segfast.ops._dense_crf_options import Options
from segfast.ops._dense_crf_terms import Kernel, gaussian_taps, mix


def serves(x: Tensor, method: str) -> bool:
    """Everything but float64 on GPUs from sm_80 on, if there is something to compute."""
    return (
        method == "exact"
        and x.is_cuda
        and x.dtype != torch.float64
        and x.numel() > 0
        and has_triton()
        and torch.cuda.get_device_capability(x.device) >= OLDEST
    )


@functools.cache
def launchers() -> ModuleType:
    from segfast.ops import _dense_crf_exact_triton

    return _dense_crf_exact_triton


class GridGaussian:
    """exp(-|p_i - p_j|^2 / 2 sigma^2) over the pixel grid, cut off at 5.5 sigma, [B, C, N]."""

    def __init__(self, size: tuple[int, int], sigma: Sequence[float], like: Tensor) -> None:
        self.size = size
        self.taps: list[Tensor] = []  # y, x: [radius + 1] float32
        self.slopes: list[Tensor] = []  # their derivatives with respect to sigma
        for length, s in zip(size, sigma, strict=True):
            both = gaussian_taps(length, s, torch.float32, like.device)
            for kept, taps in zip((self.taps, self.slopes), both, strict=True):
                kept.append(taps.float())

    def __call__(self, values: Tensor) -> Tensor:
        return self.convolve(values, *self.taps)

    def convolve(self, values: Tensor, down: Tensor, along: Tensor) -> Tensor:
        maps = values.contiguous().unflatten(-1, self.size)  # [B, C, H, W]
        convolve = launchers().convolve
        return convolve(convolve(maps, along, 3), down, 2).flatten(-2)


@dataclass(frozen=True)
class Call:
    """What mean field is given.

    Attributes:
        logits: [B, L, H, W]
        features: [B, F, N] of the bilateral kernel, or of any; float32.
        mixings: of the spatial and the bilateral term, [], [L] or [L, L].
        spatial_sigma: (y, x)
        present: whether each term takes part; None: not known, both do.
    """

    logits: Tensor
    features: Tensor
    mixings: Sequence[Tensor]
    spatial_sigma: Sequence[float]
    options: Options
    present: Sequence[bool] | None = None

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.logits.shape[2:]
        return height, width

    def unary(self) -> Tensor:
        """[B, L, N] float32"""
        return self.logits.float().flatten(2).contiguous()


class ExactModel:
    """The terms of a batch of images, prepared once.

    Attributes:
        undefined: images whose bilateral kernel has weight 0 and no place for a pixel, [B].
    """

    def __init__(self, call: Call) -> None:
        ones = torch.ones_like(call.features[:, :1])
        used = [True, True] if call.present is None else call.present
        features, self.undefined = drop_undefined(call.features, call.mixings[1])
        size, sigma, options = call.size, call.spatial_sigma, call.options
        self.spatial = GridGaussian(size, sigma, features) if used[0] else None
        self.exact = launchers().ExactFilter(features, options.tolerance) if used[1] else None
        self.mixings = [mixing.float() for mixing in call.mixings]
        self.terms = [
            None if raw is None else Kernel(raw, raw, ones, options.normalization)
            for raw in (self.spatial, self.exact)
        ]

    def used(self) -> Iterator[tuple[Tensor, Kernel]]:
        for mixing, term in zip(self.mixings, self.terms, strict=True):
            if term is not None:
                yield mixing, term

    def step(self, logits: Tensor, belief: Tensor) -> Tensor:
        """logits and the messages sent by `belief`, [B, L, N] -> scores."""
        scores = logits.clone()
        for mixing, term in self.used():
            scores += mix(mixing, term(belief))
        return scores

    def run(self, logits: Tensor, iterations: int) -> Iterator[Tensor]:
        """Scores [B, L, N] after each iteration."""
        scores = logits
        for _ in range(iterations):
            scores = self.step(logits, torch.softmax(scores, 1))
            yield scores


def mean_field(call: Call) -> Tensor:
    """Scores [S, B, L, H, W] of all steps, or of the last; or the belief."""
    options, unary = call.options, call.unary()
    model = ExactModel(call)
    count = options.iterations if options.keep_steps else 1
    steps = call.logits.new_empty((count, *unary.shape))
    last = unary
    for i, last in enumerate(model.run(unary, options.iterations)):
        if options.keep_steps:
            steps[i] = last
    if not options.keep_steps:
        steps[0] = torch.softmax(last, 1) if options.softmax else last
    return steps.unflatten(3, call.size)


def gaussian_filter(
    values: Tensor, features: Tensor, normalization: str, tolerance: float
) -> Tensor:
    """K~ values [B, C, N] over features [B, F, N]."""
    f = features.float().contiguous()
    ones = f.new_ones(len(f), 1, f.shape[2])
    pairs = launchers().ExactFilter(f, tolerance)
    kernel = Kernel(pairs, pairs, ones, normalization)
    return kernel(values.float()).to(values.dtype)


def served_by() -> str:
    """Of method "exact", where `has_triton`."""
    return "triton_exact.py, triton_exact_grad.py (float64: the CPU's)"
