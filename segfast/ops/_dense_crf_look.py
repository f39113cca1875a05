"""The dense CRF's one look at the numbers it is given (on a GPU each look waits for them), and what
can be done about numbers that are undefined without looking."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from segfast._warn import warn
from segfast.ops._dense_crf_check import CERTAINTY


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
        self.sample = sample

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
        self.sample = look.sample
        self.probable = bool(probable) and look.labels > 1 and look.sample.numel() > 0
        self.finite = bool(finite)
        self.present = [count > 0 for count in given]

    def warn(self, color: Sequence[float]) -> None:
        if self.probable and bool((self.sample.amax(1) == 1).all()):
            warn(
                "logits are 1 for one label and 0 for the others: these look like labels; "
                f"multiply them by {CERTAINTY}"
            )
        elif self.probable:
            warn(
                "logits are not negative and sum to 1 over the labels: these look like "
                "probabilities; pass their logarithm"
            )
        warn_about_span(self.high - self.low, color)


def warn_about_span(
    span: float, color: Sequence[float], image: str = "image", sigma: str = "color_sigma"
) -> None:
    """Of an image that was scaled to 0 to 1 or normalised, and a sigma for 0 to 255.

    Three channels that deviate by a quarter of the span leave a typical pair exp(-3 span^2 /
    16 sigma^2) of its weight: half at this limit, and more below. Normalised for ImageNet, values
    span 4.8 at most, and published sigmas are 3 or more.
    """
    if 0 < span < 2 * min(color, default=0.0):
        warn(
            f"{image} spans {span:.3g} and {sigma} is {min(color):.3g}: colour has little say; "
            f"pass the photograph in its own units, or a {sigma} in the image's"
        )


def drop_undefined(features: Tensor, mixing: Tensor) -> tuple[Tensor, Tensor]:
    """Features [B, F, N] of a kernel that may have weight 0, and of which images they are left out.

    A weight of zeros means no kernel, and no NaN from where its pixels stand: those that stand
    nowhere are moved to one place, where 0 times the message is 0. Nothing waits.
    """
    undefined = ~features.isfinite().flatten(1).all(1) & (mixing.count_nonzero() == 0)  # [B]
    return features.masked_fill(undefined[:, None, None], 0), undefined


def nan_where_undefined(undefined: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a weight 0, whose kernel says nothing that could be differentiated."""
    return grad.masked_fill(undefined.any(), math.nan)


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """On `like`'s device and in its dtype, without a copy that a GPU would have to wait for."""
    return torch.cat([like.new_empty(0), *(like.new_full((1,), value) for value in values)])
