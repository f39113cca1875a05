"""Checks of the dense CRF's arguments, shared by operators, modules and losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segfast.ops import _check

METHODS = ("lattice", "exact", "auto")
SPATIAL = ("conv", "lattice")
MAX_FEATURES = 32
# What None stands for with uint8 images. Mean field has the value of pydensecrf's examples, the
# loss that of the training it was published with (meng-tang/rloss): two models, two numbers.
MEAN_FIELD_COLOR_SIGMA = 13.0
LOSS_COLOR_SIGMA = 15.0
# softmax(c one_hot) is p where the label is, for this c.
CERTAINTY = "log(p (L - 1) / (1 - p)), if one of L labels is right with probability p"
FLOAT32_MAX = torch.finfo(torch.float32).max
MAX_LABELS = 2**20 - 1

Weight = float | Tensor  # a number, [L] or [L, L]
Sigma = float | Sequence[float] | Tensor  # once, or per axis (y, x) or channel


def require_same_device(name: str, value: Tensor, other: str, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(
            f"{name} must be on the device of {other}, {like.device}, got {value.device}"
        )


def require_capacity(capacity: int | None) -> int | None:
    return None if capacity is None else _check.require_count("capacity", capacity)


def require_logits(logits: Tensor) -> None:
    _check.require_tensor("logits", logits, "[B, L, H, W]")
    if not (logits.dtype.is_floating_point or logits.dtype.is_complex):
        raise TypeError(
            f"logits must be a floating-point tensor [B, L, H, W], got {_check.describe(logits)}; "
            f"of labels, one_hot(labels, L).movedim(-1, 1) times {CERTAINTY}"
        )
    _check.require_floating("logits", logits, "[B, L, H, W]")


def require_maps(name: str, maps: Tensor, image: Tensor) -> None:
    """`name` [B, L, H, W], L >= 1, and image [B, C, H, W]."""
    if maps.dim() != 4 or maps.shape[1] < 1:
        raise ValueError(
            f"{name} must have shape [B, L, H, W], L >= 1, got {_check.describe(maps)}"
        )
    if maps.shape[1] > MAX_LABELS:
        raise ValueError(f"{name} must have at most {MAX_LABELS} labels, got {maps.shape[1]}")
    if image.dtype.is_complex or image.dtype == torch.bool:
        raise TypeError(
            f"image must be uint8, another integer or a float dtype, got {_check.describe(image)}"
        )
    batch, _, height, width = maps.shape
    if image.dim() != 4 or (image.shape[0], *image.shape[2:]) != (batch, height, width):
        raise ValueError(
            f"image must have shape [B, C, H, W] = [{batch}, C, {height}, {width}] like {name}, "
            f"got {_check.describe(image)}"
        )
    if image.shape[1] + 2 > MAX_FEATURES:
        raise ValueError(
            f"image must have at most {MAX_FEATURES - 2} channels, got {image.shape[1]}"
        )
    require_same_device("image", image, name, maps)


def require_sigmas(
    spatial_sigma: object = None, bilateral_sigma: object = None, color_sigma: object = None
) -> None:
    """What can be said of numbers before there is an image; None is left to `color_sigma_of`."""
    given = {
        "spatial_sigma": spatial_sigma, "bilateral_sigma": bilateral_sigma,
        "color_sigma": color_sigma,
    }  # fmt: skip
    for name, sigma in given.items():
        if isinstance(sigma, Tensor) or (isinstance(sigma, np.ndarray) and sigma.ndim > 0):
            raise TypeError(
                f"{name} must be a number or a tuple of numbers, got {_check.describe(sigma)}; "
                f"what learns it is segfast.nn.DenseCRF(trainable=[{name!r}], method='exact')"
            )
    for name, sigma in (("spatial_sigma", spatial_sigma), ("bilateral_sigma", bilateral_sigma)):
        if sigma is not None:
            _check.positive_floats(name, sigma, 2)
    if color_sigma is not None:
        channels = len(color_sigma) if isinstance(color_sigma, (tuple, list)) else 1
        _check.positive_floats("color_sigma", color_sigma, channels)


def color_sigma_of(color_sigma: Sigma | None, image: Tensor, default: float) -> Sigma:
    """As it is given; `default` for a uint8 image without one."""
    if color_sigma is not None:
        return color_sigma
    if image.dtype != torch.uint8:
        raise ValueError(
            f"color_sigma must be given for {image.dtype} images, in the units of the image "
            f"({default:g} suits values of 0 to 255, about {default / 255:.2f} values of 0 to 1)"
        )
    return default


def sigma_tensor(name: str, sigma: Sigma, count: int, like: Tensor) -> Tensor:
    """[1] or [count] in float64. Whether a tensor is positive is looked at where it is used."""
    if not isinstance(sigma, Tensor):
        numbers = _check.positive_floats(name, sigma, count)
        return torch.tensor(numbers, dtype=torch.float64)  # on a GPU one would wait for them
    if not sigma.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating-point tensor, got {_check.describe(sigma)}")
    if sigma.dim() > 1 or (sigma.numel() != 1 and sigma.numel() != count):
        raise ValueError(
            f"{name} must be one number or {count} of them, got {_check.describe(sigma)}"
        )
    require_same_device(name, sigma, "logits", like)
    return sigma.double().reshape(-1)


def weight_tensor(name: str, weight: Weight, labels: int, logits: Tensor) -> Tensor:
    """[], [L] or [L, L] where the logits are."""
    if isinstance(weight, Tensor):
        _check.require_dtype(name, weight)
        if tuple(weight.shape) not in ((), (labels,), (labels, labels)):
            raise ValueError(
                f"{name} must be a number, [L] = [{labels}] or [L, L], "
                f"got {_check.describe(weight)}"
            )
        require_same_device(name, weight, "logits", logits)
        return weight
    number = require_number(name, weight, "a number or a tensor [L] or [L, L]")
    return torch.full((), number, dtype=torch.float64, device=logits.device)


def require_number(name: str, value: object, wanted: str) -> float:
    """A number that is finite in float32, in which it may be computed."""
    if (number := _check.real(value)) is None:
        raise TypeError(f"{name} must be {wanted}, got {_check.describe(value)}")
    if not abs(number) <= FLOAT32_MAX:
        raise ValueError(f"{name} must be finite in float32, got {_check.describe(value)}")
    return float(number)


def require_compatibility(compatibility: Tensor | None, labels: int, logits: Tensor) -> None:
    if compatibility is None:
        return
    _check.require_floating("compatibility", compatibility, "[L, L]")
    _check.require_dtype("compatibility", compatibility)
    if tuple(compatibility.shape) != (labels, labels):
        raise ValueError(
            f"compatibility must have shape [L, L] = [{labels}, {labels}], "
            f"got {_check.describe(compatibility)}"
        )
    require_same_device("compatibility", compatibility, "logits", logits)
