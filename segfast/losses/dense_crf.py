"""The dense CRF as a regularised loss: what lets a network learn from scribbles.

Tang, Perazzi, Djelouah, Ben Ayed, Schroers and Boykov, "On Regularized Losses for Weakly-supervised
CNN Segmentation", ECCV 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from segfast._warn import warn
from segfast.kernels.dense_crf import reference
from segfast.kernels.dense_crf.reference_grad import pixel_sum
from segfast.ops import _check, gaussian_filter
from segfast.ops._dense_crf_check import (
    LOSS_COLOR_SIGMA,
    METHODS,
    color_sigma_of,
    require_maps,
    require_same_device,
    require_sigmas,
)
from segfast.ops._dense_crf_grad import differentiated, require_exact
from segfast.ops._dense_crf_look import is_recording, warn_about_span
from segfast.ops._dense_crf_terms import compute_dtype, placed, require_finite_quotients
from segfast.ops._function import watched
from segfast.ops.dense_crf import resolve_method


def dense_crf_loss(
    probabilities: Tensor,  # [B, L, H, W]
    image: Tensor,  # [B, C, H, W]
    region: Tensor | None = None,  # [B, H, W]
    *,
    bilateral_sigma: float | Sequence[float] = 100.0,
    color_sigma: float | Sequence[float] | None = None,
    scale_factor: float = 1.0,
    method: str = "lattice",
    tolerance: float = 1e-7,
) -> Tensor:
    r"""Minus the agreement of a soft segmentation with itself, weighed by a bilateral kernel.

    .. math:: \text{loss} = -\frac1B \sum_b \sum_l S_{bl}^T K_b S_{bl}, \qquad
        K_{ij} = \exp(-\frac{\|p_i - p_j\|^2}{2 \sigma_\alpha^2}
                      - \frac{\|I_i - I_j\|^2}{2 \sigma_\beta^2})

    with S = region * probabilities, j = i included and K not normalised. Its gradient for S_bl is
    -(K + K^T) S_bl / B, so -2 K S_bl / B with the exact kernel, whose matrix is symmetric. Up to
    a constant it is the relaxed Potts energy sum_l S_l^T K (1 - S_l): Tang et al., "On Regularized
    Losses for Weakly-supervised CNN Segmentation", ECCV 2018; the form and the defaults are those
    of the published code (meng-tang/rloss).

    The loss is negative, and in units of pairs of pixels: from -(number of pixels)^2, where all
    look alike and have one label, to 0. A weight for it is therefore small, the published one
    2e-9 for crops of 513 x 513 at ``scale_factor=0.5``.

    Args:
        probabilities: S [B, L, H, W], the softmax of a network's scores; any float dtype, half and
            bfloat16 are computed in float32.
        image: [B, C, H, W], uint8 or any real dtype, any C. Not a normalised one, or with a
            ``color_sigma`` to suit.
        region: [B, H, W], what counts: a mask, or weights; bool or any real dtype. None: all. The
            published training leaves out what padding added.
        bilateral_sigma: sigma_alpha in pixels of ``image``; one number or (y, x).
        color_sigma: sigma_beta in image units; one number or one per channel. None means 15 for
            uint8 images; it must be given for every other dtype.
        scale_factor: computes on maps of floor(H * scale_factor) rows, likewise columns, for
            speed: probabilities bilinear, image and region nearest, ``bilateral_sigma`` scaled,
            as published. The loss shrinks with scale_factor^4.
        method: ``"lattice"`` (published, about half the true kernel's mass), ``"exact"`` (every
            pair) or ``"auto"``, which here means exact (see `segfast.ops.gaussian_filter`).
        tolerance: exact method: kernel mass that may be dropped per pixel.

    Returns:
        The loss, a scalar, float64 for float64 probabilities and float32 otherwise. Gradients:
        probabilities and region; with the exact method also a floating image.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it. So does an
            image that requires a gradient the lattice does not have.
        NotImplementedError: on differentiating twice or in forward mode.

    Warns:
        UserWarning: probabilities outside of [0, 1] (scores passed by mistake); a float image
            that spans less than two ``color_sigma``.

    Example:
        >>> import torch
        >>> from segfast.losses import dense_crf_loss
        >>> scores = torch.randn(2, 3, 20, 30, requires_grad=True)
        >>> image = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
        >>> loss = dense_crf_loss(scores.softmax(1), image)
        >>> bool(loss < 0), loss.shape
        (True, torch.Size([]))
    """
    _check.require_floating("probabilities", probabilities, "[B, L, H, W]")
    _check.require_tensor("image", image, "[B, C, H, W]")
    require_maps("probabilities", probabilities, image)
    _require_region(region, probabilities)
    scale_factor = _check.positive_floats("scale_factor", scale_factor, 1)[0]
    if min(math.floor(size * scale_factor) for size in probabilities.shape[2:]) < 1:
        raise ValueError(
            f"scale_factor must leave a pixel of {_check.describe(probabilities)}, "
            f"got {scale_factor}"
        )
    sigma = _check.positive_floats("bilateral_sigma", bilateral_sigma, 2)
    given = color_sigma_of(color_sigma, image, LOSS_COLOR_SIGMA)
    color = _check.positive_floats("color_sigma", given, image.shape[1])
    _check.require_choice("method", method, METHODS)
    method = resolve_method(method, image.shape[2] * image.shape[3], "none")
    require_exact(method, {"image": differentiated(image)})
    _warn_about(probabilities, image, color)

    dtype = compute_dtype(probabilities.dtype)
    segmentation, given = probabilities.to(dtype), image  # S [B, L, H, W]
    image = placed(image, method, dtype)
    mask = None if region is None else region.to(dtype)[:, None]  # [B, 1, H, W]
    if scale_factor != 1:
        segmentation = functional.interpolate(
            segmentation, scale_factor=scale_factor, mode="bilinear", align_corners=False
        )
        image = functional.interpolate(image, scale_factor=scale_factor)
        mask = None if mask is None else functional.interpolate(mask, scale_factor=scale_factor)
        sigma = [scale_factor * s for s in sigma]
    if mask is not None:
        undefined = (mask == 0) & ~segmentation.isfinite()  # 0 NaN is NaN
        segmentation = segmentation.masked_fill(undefined, 0) * mask
    y_x = ((sigma * 2)[0], (sigma * 2)[1])
    features = [reference.image_features(one, y_x, tuple(color)) for one in image]  # [2 + C, N]
    if not features:  # the mean over no image
        return segmentation.sum() * math.nan
    f = torch.stack(features)  # [B, 2 + C, N]
    if _may_look(f) and not bool(f.isfinite().all()):
        require_finite_quotients(given, y_x, color, dtype)
    filtered = gaussian_filter(
        segmentation.flatten(2), f, method=method, tolerance=tolerance
    ).reshape(segmentation.shape)
    # Row by row, and those in order: of one long sum the bits would depend on the threads.
    rows = (segmentation * filtered).sum(3).flatten()
    return -pixel_sum(rows).to(dtype) / len(segmentation)


class DenseCRFLoss(nn.Module):
    """``weight`` times `dense_crf_loss`, which has the formula, its source and its units.

    Beside a cross-entropy of the labelled pixels this is the training of Tang et al., ECCV 2018.

    Args:
        weight: factor, the published code's ``densecrfloss``.
        bilateral_sigma, color_sigma, scale_factor, method, tolerance: see `dense_crf_loss`. The
            published code calls the sigmas ``sigma_xy`` and ``sigma_rgb``.

    Shape:
        probabilities [B, L, H, W], image [B, C, H, W], region [B, H, W] or None -> a scalar.

    Raises:
        TypeError, ValueError: an argument that no input could make valid.

    Example:
        >>> import torch
        >>> from segfast.losses import DenseCRFLoss
        >>> criterion = DenseCRFLoss(weight=2e-9, scale_factor=0.5)
        >>> image = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
        >>> criterion(torch.full((2, 4, 20, 30), 0.25), image).shape
        torch.Size([])
    """

    def __init__(
        self,
        weight: float = 1.0,
        bilateral_sigma: float | Sequence[float] = 100.0,
        color_sigma: float | Sequence[float] | None = None,
        scale_factor: float = 1.0,
        method: str = "lattice",
        tolerance: float = 1e-7,
    ) -> None:
        super().__init__()
        self.weight = _check.not_negative("weight", weight)
        require_sigmas(bilateral_sigma=bilateral_sigma, color_sigma=color_sigma)
        self.scale_factor = _check.positive_floats("scale_factor", scale_factor, 1)[0]
        _check.require_choice("method", method, METHODS)
        self.method = method
        self.tolerance = _check.not_negative("tolerance", tolerance)
        self.bilateral_sigma = _check.plain(bilateral_sigma)
        self.color_sigma = _check.plain(color_sigma)

    def forward(self, probabilities: Tensor, image: Tensor, region: Tensor | None = None) -> Tensor:
        """[B, L, H, W], [B, C, H, W], [B, H, W] -> the weighted loss, a scalar."""
        return self.weight * dense_crf_loss(
            probabilities,
            image,
            region,
            bilateral_sigma=self.bilateral_sigma,
            color_sigma=self.color_sigma,
            scale_factor=self.scale_factor,
            method=self.method,
            tolerance=self.tolerance,
        )

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"weight={self.weight}, bilateral_sigma={self.bilateral_sigma}, "
            f"color_sigma={self.color_sigma}, scale_factor={self.scale_factor}, "
            f"method={self.method!r}, tolerance={self.tolerance}"
        )


# --- checks -------------------------------------------------------------------------------------


def _require_region(region: Tensor | None, probabilities: Tensor) -> None:
    if region is None:
        return
    batch, _, height, width = probabilities.shape
    _check.require_tensor("region", region, "[B, H, W]")
    if tuple(region.shape) != (batch, height, width) or region.dtype.is_complex:
        raise ValueError(
            f"region must be real, of shape [B, H, W] = [{batch}, {height}, {width}] like "
            f"probabilities, got {_check.describe(region)}"
        )
    require_same_device("region", region, "probabilities", probabilities)


def _may_look(x: Tensor) -> bool:
    """Whether there are numbers, which on a GPU are waited for: not in a trace or a recording."""
    return not (watched() or x.is_meta or is_recording() or x.numel() == 0)


def _warn_about(probabilities: Tensor, image: Tensor, color: Sequence[float]) -> None:
    if not _may_look(probabilities):
        return
    sample = probabilities.detach()[:, :, ::7, ::7]  # a sample of the pixels is enough
    ends = [*torch.aminmax(sample)]
    if image.is_floating_point() and image.numel() > 0:
        ends += torch.aminmax(image.detach())
    least, most, *span = torch.stack([end.double() for end in ends]).tolist()  # one wait
    if least < 0 or most > 1 + 1e-2:
        warn("probabilities lie outside of [0, 1]: these look like scores; pass their softmax")
    if span:
        warn_about_span(span[1] - span[0], color)
