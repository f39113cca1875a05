"""Unary energies and pairwise features from labels, probabilities and images.

An energy is a negative log-probability; arrays come back float32, C-ordered, flattened over the
pixels: [n_labels, nvar] energies for `setUnaryEnergy`, [n_features, nvar] for `addPairwiseEnergy`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segfast.compat.pydensecrf._arguments import (
    Float32,
    as_array,
    as_count,
    as_real,
    as_sigmas,
    describe,
    divided,
    require_finite,
)

Numbers = float | Sequence[float] | npt.NDArray[Any]

# How far outside [0, 1] a probability may lie: half precision rounds by up to 5e-4 near 1.
PROBABILITY_SLACK = 1e-3


def unary_from_labels(
    labels: object, n_labels: int, gt_prob: float, zero_unsure: bool = True
) -> Float32:
    """Energies that trust a label map with probability `gt_prob`.

        -log p,  p = gt_prob for the pixel's label, (1 - gt_prob) / (n_labels - 1) for the others,
                 1 / n_labels for every label of an unsure pixel

    Args:
        labels: integer label map of any shape; booleans count as 0 and 1.
        n_labels: number of labels, without the unsure one.
        gt_prob: in (0, 1).
        zero_unsure: 0 means "unsure", labels are 1..n_labels (the default); False: 0..n_labels-1.

    Returns:
        Energies [n_labels, labels.size]; row k belongs to label k + 1 with `zero_unsure`, else k.

    Raises:
        TypeError: labels are not integers. ValueError: a label out of range (pydensecrf wraps
        negative ones around), or gt_prob outside (0, 1).

    Example:
        >>> from segfast.compat.pydensecrf.utils import unary_from_labels
        >>> unary_from_labels([[0, 1], [2, 2]], 2, 0.75).shape
        (2, 4)
    """
    array = as_array(labels, "labels", "a label map", booleans=True)
    if array.dtype.kind not in "iub":
        raise TypeError(f"labels must be integers, got {describe(array)}")
    count = as_count(n_labels, "n_labels", 1)
    prob = as_real(gt_prob, "gt_prob", "a number inside (0, 1)")
    if not 0 < prob < 1:
        raise ValueError(f"gt_prob must be inside (0, 1), got {gt_prob!r}")
    index = array.reshape(-1).astype(np.int64) - int(zero_unsure)  # -1 = unsure
    lowest, highest = (-1, count - 1) if zero_unsure else (0, count - 1)
    if index.size and not lowest <= index.min() <= index.max() <= highest:
        shift = int(zero_unsure)
        meaning = "0 (unsure) and 1" if zero_unsure else "0"
        raise ValueError(
            f"labels must be {meaning}..{highest + shift} for n_labels={count}, "
            f"zero_unsure={bool(zero_unsure)}; got labels {index.min() + shift}.."
            f"{index.max() + shift} (a void label such as 255 must be mapped first)"
        )
    other = -np.log((1 - prob) / max(count - 1, 1))
    energy = np.full((count, index.size), other, np.float32)  # [L, N]
    sure = np.flatnonzero(index >= 0)
    energy[index[sure], sure] = -np.log(prob)
    energy[:, index < 0] = -np.log(1 / count)
    return energy


def unary_from_softmax(
    sm: object, scale: float | None = None, clip: float | None = 1e-5
) -> Float32:
    """Energies of class probabilities: -log(clip(scale sm + (1 - scale) / n_labels, clip, 1)).

    Args:
        sm: probabilities [n_labels, ...], **labels first**, any real dtype. They need not sum to 1.
        scale: in (0, 1], the trust in `sm`; None is 1.
        clip: smallest probability, so that the energy of 0 stays finite; None or 0: no clipping,
            and a zero probability gives an infinite energy, which `setUnaryEnergy` refuses.

    Returns:
        Energies [n_labels, nvar].

    Raises:
        ValueError: values that are not finite, or outside [0, 1] (logits: pydensecrf clips them
        silently), scale outside (0, 1], clip outside [0, 1). TypeError: `sm` holds no real numbers.

    Example:
        >>> from segfast.compat.pydensecrf.utils import unary_from_softmax
        >>> unary_from_softmax([[1.0, 0.5], [0.0, 0.5]]).round(1).tolist()[1]
        [11.5, 0.699999988079071]
    """
    probs = as_array(sm, "sm", "class probabilities [n_labels, ...]")
    if probs.ndim < 1 or probs.shape[0] < 1:
        raise ValueError(f"sm must be class probabilities [n_labels, ...], got {describe(sm)}")
    # float64 stays what it is (pydensecrf's results bit for bit), half is raised to float32.
    probs = probs.astype(
        np.float32 if probs.dtype.itemsize <= 4 and probs.dtype.kind == "f" else float
    )
    require_finite(probs, "sm")
    if probs.size and not -PROBABILITY_SLACK <= probs.min() <= probs.max() <= 1 + PROBABILITY_SLACK:
        raise ValueError(
            f"sm must hold probabilities, inside [0, 1], got values {probs.min():g}.."
            f"{probs.max():g}; apply a softmax over the labels (axis 0) to logits first"
        )
    if scale is not None:
        scale = as_real(scale, "scale", "a number inside (0, 1], or None")
        if not 0 < scale <= 1:
            raise ValueError(f"scale must be inside (0, 1], got {scale!r}")
        probs = scale * probs + (1 - scale) / len(probs)
    smallest = 0.0 if clip is None else as_real(clip, "clip", "a number inside [0, 1), or None")
    if not 0 <= smallest < 1:
        raise ValueError(f"clip must be inside [0, 1), or None, got {clip!r}")
    probs = np.clip(probs, smallest, 1)
    with np.errstate(divide="ignore"):  # log(0) without clipping is documented above
        return -np.log(probs).reshape(len(probs), -1).astype(np.float32)


def compute_unary(labels: object, M: int, GT_PROB: float = 0.5) -> Float32:
    """Deprecated: `unary_from_labels(labels, M, GT_PROB)`."""
    warnings.warn("compute_unary is deprecated: unary_from_labels", DeprecationWarning, 2)
    return unary_from_labels(labels, M, GT_PROB)


def softmax_to_unary(sm: object, GT_PROB: float = 1) -> Float32:
    """Deprecated: `unary_from_softmax(sm, GT_PROB, clip=None)`."""
    warnings.warn("softmax_to_unary is deprecated: unary_from_softmax", DeprecationWarning, 2)
    return unary_from_softmax(sm, GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Numbers, shape: Sequence[int]) -> Float32:
    """Position features p_a / sdims_a, axis by axis in the order of `shape` (so y first).

    Args:
        sdims: standard deviation in pixels, one per axis or one for all.
        shape: sizes of the grid, any number of axes.

    Returns:
        Features [len(shape), prod(shape)]. `DenseCRF2D.addPairwiseGaussian` orders x first: the
        same model, but another lattice.

    Raises:
        ValueError: sizes or standard deviations that are not positive, or too few or many.

    Example:
        >>> from segfast.compat.pydensecrf.utils import create_pairwise_gaussian
        >>> create_pairwise_gaussian((3, 3), (480, 640)).shape
        (2, 307200)
    """
    try:
        sizes = tuple(as_count(size, "each size of shape", 1) for size in shape)
    except TypeError as error:
        raise TypeError(f"shape must be the grid's sizes, got {describe(shape)}: {error}") from None
    sigmas = as_sigmas(sdims, "sdims", len(sizes), f"one per axis of shape {sizes}")
    return _positions(sizes, sigmas)


def create_pairwise_bilateral(
    sdims: Numbers, schan: Numbers, img: object, chdim: int = -1
) -> Float32:
    """Position and colour features (p_a / sdims_a, I_c / schan_c) of an image of any dimension.

    Args:
        sdims: standard deviation in pixels, one per spatial axis or one for all.
        schan: standard deviation in image units, one per channel or one for all.
        img: image of any real dtype, any number of spatial axes and channels.
        chdim: the channel axis. **-1 means "no channel axis"** (as in pydensecrf), not the last:
            an image [H, W, 3] needs `chdim=2`.

    Returns:
        Features [spatial axes + channels, nvar], spatial axes first, in the image's order.

    Raises:
        ValueError: the numbers of deviations, axes and channels do not fit; a deviation that is
        not positive; values that are not finite. TypeError: `img` holds no real numbers.

    Example:
        >>> import numpy as np
        >>> from segfast.compat.pydensecrf.utils import create_pairwise_bilateral
        >>> create_pairwise_bilateral((80, 80), 13, np.zeros((48, 64, 3), np.uint8), chdim=2).shape
        (5, 3072)
    """
    array = as_array(img, "img", "an image")
    chdim = as_count(chdim, "chdim", -array.ndim)
    if chdim == -1:
        channels = array[None]  # [1, ...]
    elif -array.ndim <= chdim < array.ndim:
        channels = np.moveaxis(array, chdim, 0)  # [C, ...]
    else:
        raise ValueError(
            f"chdim must be an axis of img, or -1 for none; got {chdim} for shape {array.shape}"
        )
    sizes = channels.shape[1:]
    each = f"one per spatial axis of img {array.shape}"
    if chdim == -1:
        each += "; chdim=-1 says that no axis holds channels"
    deviations = as_sigmas(sdims, "sdims", len(sizes), each)
    colour_deviations = as_sigmas(
        schan, "schan", len(channels), f"one per channel of img, with chdim={chdim}", one=True
    )
    colours = channels.reshape(len(channels), -1)  # [C, N]
    require_finite(colours.astype(np.float32), "img")
    return np.concatenate(
        [
            _positions(sizes, deviations),
            divided(colours, colour_deviations, ["schan"] * len(colours)),
        ]
    )


def _positions(sizes: Sequence[int], sigmas: Sequence[float]) -> Float32:
    """p_a / sigma_a of every pixel of a grid of D axes, row-major: [D, N]."""
    positions = np.indices(sizes, np.float32).reshape(len(sizes), -1)
    return divided(positions, sigmas, ["sdims"] * len(sizes))
