"""The dense CRF's one look at the numbers it is given: on a GPU each look waits for them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor


def is_recording() -> bool:
    """Whether a CUDA graph is being recorded, which must not wait for anything."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class Look:
    """What is to be known of a call's tensors; `numbers` [6] stay where the tensors are.

    Once they were read, `read` tells the host: whoever waits anyway may read them along.
    """

    def __init__(
        self, logits: Tensor, image: Tensor, mixings: Sequence[Tensor], features: Tensor | None
    ) -> None:
        self.labels = logits.shape[1]
        sample = logits[:, :, ::7, ::7].float()  # of the pixels: enough
        sums_to_one = ((sample.sum(1) - 1).abs() < 1e-3).all() & (sample >= 0).all()
        ends = [sums_to_one.new_zeros(())] * 2
        if image.is_floating_point() and image.numel() > 0:
            ends = list(torch.aminmax(image.float()))
        finite = torch.ones_like(sums_to_one)
        if features is not None:
            finite = features.isfinite().all()
        given = [m.count_nonzero() for m in mixings]
        self.numbers = torch.stack([x.double() for x in (sums_to_one, finite, *ends, *given)])
        self.empty = sample.numel() == 0

    def read(self, numbers: Sequence[float] | None = None) -> Seen:
        return Seen(self, self.numbers.tolist() if numbers is None else numbers)


class Seen:
    """A look that was read.

    Attributes:
        present: whether the weights of the spatial and of the bilateral kernel have one that is
            not zero.
        finite: whether the features are, where they were looked at.
    """

    def __init__(self, look: Look, numbers: Sequence[float]) -> None:
        probable, finite, self.low, self.high, *given = numbers
        self.probable = bool(probable) and look.labels > 1 and not look.empty
        self.finite = bool(finite)
        self.present = [count > 0 for count in given]

    def warn(self, color: Sequence[float]) -> None:
        if self.probable:
            warnings.warn(
                "logits are not negative and sum to 1 over the labels: these look like "
                "probabilities; pass their logarithm",
                stacklevel=4,
            )
        span = self.high - self.low
        if 0 < span < min(color, default=0.0) / 5:
            warnings.warn(
                f"image spans {span:.3g} but color_sigma is {min(color):.3g}: colour has almost "
                f"no say; color_sigma is in image units",
                stacklevel=4,
            )


def without_say(features: Tensor, mixing: Tensor) -> tuple[Tensor, Tensor]:
    """Features [B, F, N] of a kernel that may have weight 0, and of which images they are left out.

    A weight of zeros means no kernel, and no NaN from where its pixels stand: those that stand
    nowhere are moved to one place, where 0 times the message is 0. Nothing waits.
    """
    nowhere = ~features.isfinite().flatten(1).all(1) & (mixing.count_nonzero() == 0)  # [B]
    return features.masked_fill(nowhere[:, None, None], 0), nowhere


def not_a_number_if(gone: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a weight 0, whose kernel says nothing that could be differentiated."""
    return grad.masked_fill(gone.any(), math.nan)


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """On `like`'s device and in its dtype, without a copy that a GPU would have to wait for."""
    return torch.cat([like.new_full((1,), value) for value in values])
