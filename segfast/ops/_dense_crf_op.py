"""The dense CRF operators as PyTorch sees them: schema, kernel, fake, vmap rule, (no) gradient."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference
from segfast.ops._dense_crf_engine import (
    Engine,
    PairwiseTerm,
    filter_features,
    warn_if_slow,
)
from segfast.ops._register import batch, fold

torch.library.define(
    "segfast::gaussian_filter",
    "(Tensor values, Tensor features, str method, str normalization, float tolerance) -> Tensor",
)
torch.library.define(
    "segfast::mean_field",
    "(Tensor logits, Tensor image, Tensor spatial_weight, Tensor bilateral_weight,"
    " Tensor? compatibility, float[] spatial_sigma, float[] bilateral_sigma, float[] color_sigma,"
    " int iterations, str normalization, str method, str spatial, float tolerance,"
    " bool keep_steps, bool softmax) -> Tensor",
)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.impl("segfast::gaussian_filter", "default")
@torch.autocast("cpu", enabled=False)  # all arithmetic stays in float32 or float64
def _gaussian_filter(
    values: Tensor, features: Tensor, method: str, normalization: str, tolerance: float
) -> Tensor:
    dtype = _compute_dtype(values.dtype)
    v, f = (x.to("cpu", dtype) for x in (values, features))
    y = torch.empty_like(v, memory_format=torch.contiguous_format)  # [B, C, N]
    for b in range(v.shape[0]):
        y[b] = filter_features(v[b], f[b], method, normalization, tolerance)
    return y.to(values.device, values.dtype)


@torch.library.impl("segfast::mean_field", "default")
@torch.autocast("cpu", enabled=False)
def _mean_field(
    logits: Tensor, image: Tensor, spatial_weight: Tensor, bilateral_weight: Tensor,
    compatibility: Tensor | None, spatial_sigma: Sequence[float],
    bilateral_sigma: Sequence[float], color_sigma: Sequence[float], iterations: int,
    normalization: str, method: str, spatial: str, tolerance: float, keep_steps: bool,
    softmax: bool,
) -> Tensor:  # fmt: skip
    """Scores [1, B, L, H, W] (their softmax if asked for); scores of all steps if `keep_steps`."""
    _warn_about_inputs(logits, image, color_sigma)
    dtype = _compute_dtype(logits.dtype)
    mixings = [_mixing(w, compatibility, dtype) for w in (spatial_weight, bilateral_weight)]

    def infer(b: int) -> Tensor:  # [S, L, H, W]
        terms = _terms(
            image[b], mixings, spatial_sigma, bilateral_sigma, color_sigma, normalization,
            method, spatial, dtype,
        )  # fmt: skip
        unary = logits[b].to("cpu", dtype).flatten(1)  # [L, N]
        warn_if_slow(unary, terms, iterations)
        engine = Engine(unary, terms, (logits.shape[2], logits.shape[3]), tolerance)
        states: list[Tensor] = []
        last = engine.run(iterations, states.append if keep_steps else None, softmax)
        stacked = torch.stack(states) if states else last[None]
        return stacked.unflatten(2, logits.shape[2:]).to(logits.device, logits.dtype)

    if logits.shape[0] == 1 and (iterations > 0 or not keep_steps):
        return infer(0).unsqueeze(1)  # a single image is not copied
    steps = logits.new_empty((iterations if keep_steps else 1, *logits.shape))  # [S, B, L, H, W]
    for b in range(logits.shape[0] if steps.numel() else 0):
        steps[:, b] = infer(b)
    return steps


def _mixing(weight: Tensor, compatibility: Tensor | None, dtype: torch.dtype) -> Tensor:
    """-mu W as one scalar, vector or matrix."""
    w = weight.detach().to("cpu", torch.float64)
    if compatibility is not None:
        mu = compatibility.detach().to("cpu", torch.float64)  # [L, L]
        w = -(mu @ w) if w.dim() == 2 else -(mu * w)  # mu diag(w) scales mu's columns
    return w.to(dtype)


def _terms(
    image: Tensor, mixings: Sequence[Tensor], spatial_sigma: Sequence[float],
    bilateral_sigma: Sequence[float], color_sigma: Sequence[float], normalization: str,
    method: str, spatial: str, dtype: torch.dtype,
) -> list[PairwiseTerm]:  # fmt: skip
    """The spatial and the bilateral kernel of one image [C, H, W]; a zero weight drops its term."""
    terms = []
    image = image.to("cpu", dtype)
    if mixings[0].count_nonzero():
        if spatial == "conv" or method == "exact":
            sigma = (spatial_sigma[0], spatial_sigma[1])
            terms.append(PairwiseTerm(None, mixings[0], normalization, "conv", sigma))
        else:
            grid = reference.position_features(image, spatial_sigma)  # [2, N]
            terms.append(PairwiseTerm(grid, mixings[0], normalization, "lattice"))
    if mixings[1].count_nonzero():
        features = reference.image_features(image, bilateral_sigma, color_sigma)  # [2 + C, N]
        term = PairwiseTerm(features, mixings[1], normalization, method)
        if features.numel() and not term.span.isfinite().all():
            require_finite_quotients(image, bilateral_sigma, color_sigma)
        terms.append(term)
    return terms


def require_finite_quotients(
    image: Tensor, bilateral_sigma: Sequence[float], color_sigma: Sequence[float]
) -> None:
    """Refuses sigmas so small that a finite image overflows; NaN in the image may pass on."""
    if image.isfinite().all():
        raise ValueError(
            f"bilateral_sigma and color_sigma must be larger: positions and colours divided by "
            f"{min(bilateral_sigma):.3g} and {min(color_sigma, default=math.inf):.3g} overflow "
            f"{image.dtype}"
        )


def _warn_about_inputs(logits: Tensor, image: Tensor, color: Sequence[float]) -> None:
    sums = logits[:, :, ::7, ::7].float().sum(1)  # a sample of the pixels is enough
    if (
        logits.shape[1] > 1
        and sums.numel() > 0
        and bool(((sums - 1).abs() < 1e-3).all())
        and bool((logits >= 0).all())
    ):
        warnings.warn(
            "logits are not negative and sum to 1 over the labels: these look like probabilities; "
            "pass their logarithm",
            stacklevel=3,
        )
    if image.dtype.is_floating_point and image.numel() > 0:
        low, high = (float(x) for x in torch.aminmax(image.float()))
        if 0 < high - low < min(color, default=0.0) / 5:
            warnings.warn(
                f"image spans {high - low:.3g} but color_sigma is {min(color):.3g}: colour has "
                f"almost no say; color_sigma is in image units",
                stacklevel=3,
            )


# Fakes: shapes and dtypes only.
@torch.library.register_fake("segfast::gaussian_filter")
def _gaussian_filter_fake(values: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


@torch.library.register_fake("segfast::mean_field")
def _mean_field_fake(logits: Tensor, *arguments: Any) -> Tensor:
    iterations, keep_steps = arguments[7], arguments[12]
    return logits.new_empty((iterations if keep_steps else 1, *logits.shape))


batch("gaussian_filter")


@torch.library.register_vmap("segfast::mean_field")
def _mean_field_vmap(
    info: Any, in_dims: Sequence[int | None], logits: Tensor, image: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    size, parameters = info.batch_size, rest[:3]
    x, pixels = fold(logits, in_dims[0], size), fold(image, in_dims[1], size)
    if all(dim is None for dim in in_dims[2:5]):
        steps = torch.ops.segfast.mean_field(x, pixels, *rest)  # [S, size * B, L, H, W]
        return steps.unflatten(1, (size, x.shape[0] // size)), 1
    each = [
        torch.ops.segfast.mean_field(
            x.unflatten(0, (size, -1))[i],
            pixels.unflatten(0, (size, -1))[i],
            *(
                p if d is None else p.select(d, i)
                for p, d in zip(parameters, in_dims[2:5], strict=True)
            ),
            *rest[3:],
        )
        for i in range(size)
    ]
    return torch.stack(each), 0


# Inference only so far: a derivative is refused, never silently zero. The raw operators refuse
# backward (exported graphs); the autograd.Functions also refuse torch.func and forward mode.
def _refuse(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "the dense CRF has no gradient yet (inference only): run it under torch.no_grad() "
        "or on detached logits"
    )


for _name in ("gaussian_filter", "mean_field"):
    torch.library.register_autograd(f"segfast::{_name}", _refuse)


class _InferenceOnly(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        _refuse()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _refuse()


class GaussianFilter(_InferenceOnly):
    """segfast::gaussian_filter for torch.func and forward mode."""

    @staticmethod
    def forward(values: Tensor, features: Tensor, options: tuple[Any, ...]) -> Tensor:
        return torch.ops.segfast.gaussian_filter(values, features, *options)


class MeanField(_InferenceOnly):
    """segfast::mean_field for torch.func and forward mode."""

    @staticmethod
    def forward(
        logits: Tensor, image: Tensor, spatial_weight: Tensor, bilateral_weight: Tensor,
        compatibility: Tensor | None, options: tuple[Any, ...],
    ) -> Tensor:  # fmt: skip
        return torch.ops.segfast.mean_field(
            logits, image, spatial_weight, bilateral_weight, compatibility, *options
        )
