"""Dense CRF: Gaussian filtering in feature space, and mean-field inference built on it.

    y_i = sum_j exp(-1/2 |f_i - f_j|^2) v_j                                  (gaussian_filter)
    scores = logits - mu sum_m W_m K~_m Q,   Q = softmax(scores)             (mean_field)

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
NIPS 2011; the normalisations of "Parameter Learning and Convergent Inference for Dense Random
Fields", ICML 2013. Derivations: kernels/dense_crf/README.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segfast._native import has_triton, native
from segfast.kernels.dense_crf.reference import NORMALIZATIONS
from segfast.ops import _check, _dense_crf_check, _dense_crf_grad
from segfast.ops._dense_crf_check import (
    MAX_FEATURES,
    MEAN_FIELD_COLOR_SIGMA,
    METHODS,
    SPATIAL,
    Sigma,
    Weight,
)
from segfast.ops._dense_crf_exact_cuda import served_by as exact_served_by
from segfast.ops._dense_crf_lattice_op import available
from segfast.ops._dense_crf_options import Options
from segfast.ops._dense_crf_terms import mix
from segfast.ops._function import call

# "auto" sums every pair up to this many pixels: small enough for it to stay cheap.
AUTO_EXACT_PIXELS = 128 * 128


def gaussian_filter(
    values: Tensor,  # [B, C, N]
    features: Tensor,  # [B, F, N]
    method: str = "exact",
    normalization: str = "none",
    tolerance: float = 1e-7,
    capacity: int | None = None,
) -> Tensor:
    r"""Gaussian filter in an arbitrary feature space.

    .. math:: y_i = \sum_j \exp(-\tfrac12 |f_i - f_j|^2)\, v_j \quad (j = i \text{ included})

    Args:
        values: [B, C, N], any float dtype (half and bfloat16 are computed in float32).
        features: [B, F, N] already divided by the bandwidths, 1 <= F <= 32; any float dtype,
            computed in that of the values: float64 only if those are.
        method: ``"exact"`` sums every pair; ``"lattice"`` is the permutohedral lattice (Adams et
            al. 2010), an approximation whose raw mass is about half the true one in five
            dimensions (use a normalisation with it); ``"auto"`` is exact for at most 16384
            positions and wherever the normalisation is "none" or "before", else the lattice.
        normalization: with n = K 1: ``"none"`` K v, ``"before"`` K (v/n), ``"after"`` (K v)/n,
            ``"symmetric"`` n^-1/2 K (n^-1/2 v).
        tolerance: exact method only. Far tiles are skipped as long as the kernel mass dropped per
            row is proven to be at most this: \|y - exact\| <= tolerance * max\|v\|. 0 skips none.
        capacity: for the lattice on CUDA: how many vertices there is room for, in all images
            together; otherwise one wait finds out how many there are, which a CUDA graph cannot.
            Where it does not suffice the result is NaN. At most B N (F + 1) are needed.

    Returns:
        [B, C, N], the dtype and device of ``values``. Differentiable once, in reverse mode: values
        by both methods (the lattice by its exact transpose), features by the exact one.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it. So do
            features that require a gradient the lattice does not have.
        NotImplementedError: on differentiating twice or in forward mode.

    Warns:
        UserWarning: a job of over a minute on the CPU.

    Example:
        >>> import torch, segfast
        >>> features = torch.linspace(0, 3, 50).reshape(1, 1, 50)
        >>> segfast.ops.gaussian_filter(torch.ones(1, 2, 50), features, normalization="after").shape
        torch.Size([1, 2, 50])
    """
    contract = "[B, C, N]"
    _check.require_floating("values", values, contract)
    _check.require_floating("features", features, "[B, F, N]")
    if values.dim() != 3:
        raise ValueError(f"values must have shape {contract}, got {_check.describe(values)}")
    if features.dim() != 3 or (features.shape[0], features.shape[2]) != (
        values.shape[0],
        values.shape[2],
    ):
        raise ValueError(
            f"features must have shape [B, F, N] = [{values.shape[0]}, F, {values.shape[2]}] like "
            f"values, got {_check.describe(features)}"
        )
    if not 1 <= features.shape[1] <= MAX_FEATURES:
        raise ValueError(
            f"features must have 1 to {MAX_FEATURES} dimensions, got {_check.describe(features)}"
        )
    _dense_crf_check.require_same_device("features", features, "values", values)
    _check.require_choice("method", method, METHODS)
    _check.require_choice("normalization", normalization, NORMALIZATIONS)
    tolerance = _check.not_negative("tolerance", tolerance)
    method = resolve_method(method, values.shape[2], normalization)
    capacity = _dense_crf_check.require_capacity(capacity)
    return _dense_crf_grad.gaussian_filter(
        values, features, method, normalization, tolerance, capacity
    )


def mean_field(
    logits: Tensor,  # [B, L, H, W]
    image: Tensor,  # [B, C, H, W]
    *,
    spatial_weight: Weight = 3.0,
    spatial_sigma: Sigma = 3.0,
    bilateral_weight: Weight = 10.0,
    bilateral_sigma: Sigma = 80.0,
    color_sigma: Sigma | None = None,
    compatibility: Tensor | None = None,
    iterations: int = 10,
    normalization: str = "symmetric",
    method: str = "lattice",
    spatial: str = "conv",
    tolerance: float = 1e-7,
    return_steps: bool = False,
    return_belief: bool = False,
    capacity: int | None = None,
) -> Any:
    r"""Mean-field inference in a fully connected CRF with Gaussian edge potentials.

    .. math:: s^{t+1} = \text{logits} - \mu \sum_m W_m \tilde K_m \operatorname{softmax}(s^t)

    with a spatial kernel exp(-\|p_i - p_j\|^2 / 2 sigma_gamma^2) and a bilateral kernel
    exp(-\|p_i - p_j\|^2 / 2 sigma_alpha^2 - \|I_i - I_j\|^2 / 2 sigma_beta^2). The self-message
    (j = i) is kept, as in the published code.

    Args:
        logits: [B, L, H, W] log-probabilities up to a constant per pixel (minus the unary energy),
            any float dtype, 1 <= L < 2^20. Unbatched [L, H, W] is taken with an unbatched image.
        image: [B, C, H, W], uint8 or any real dtype, any C.
        spatial_weight, bilateral_weight: W_m: a number, [L] (per label) or [L, L].
        spatial_sigma: sigma_gamma in pixels, one number or (y, x); a tensor if it is learned.
        bilateral_sigma: sigma_alpha in pixels, one number or (y, x); a tensor if it is learned.
        color_sigma: sigma_beta in image units, one number or one per channel; a tensor if it is
            learned. None means 13 for uint8 images; it must be given for every other dtype.
        compatibility: mu [L, L], the penalty, used as given; None = Potts (minus the identity,
            equal to 1 - I up to a constant per pixel).
        iterations: number of parallel updates; 0 returns the logits.
        normalization: of each kernel, see :func:`gaussian_filter`. "symmetric" is pydensecrf's
            default, "after" DeepLab's and CRF-RNN's.
        method: bilateral kernel by ``"lattice"`` (the published approximation), ``"exact"`` (every
            pair, within ``tolerance``), or ``"auto"`` (see :func:`gaussian_filter`).
        spatial: with the lattice, the spatial kernel is an exact separable convolution (``"conv"``,
            radius 5.5 sigma, in float64 8.5) or a two-dimensional lattice as in pydensecrf
            (``"lattice"``). The exact method always convolves.
        tolerance: exact method: kernel mass that may be dropped per pixel.
        return_steps: also return the state after each iteration.
        return_belief: return the belief Q = softmax(scores) over the labels in place of the scores;
            faster than a softmax afterwards, and not rounded to half precision before it.
        capacity: room for the vertices of a lattice on CUDA, see :func:`gaussian_filter`; F is
            C + 2. With it, and with sigmas that are numbers, nothing waits for the device after
            the first call of a size, and nothing warns: CUDA graphs can be recorded. The exact
            method needs none of it to be recorded.

    Returns:
        scores [B, L, H, W] before the softmax (or the belief), in the dtype of ``logits``; with
        ``return_steps`` ``(scores, steps)``, steps a list of ``(scores, belief)`` per iteration.

    Differentiable in reverse mode, once: logits, weights and compatibility by every method (the
    lattice by its exact transpose), a float image and the sigmas by the exact method only. On the
    CPU the graph keeps the lattices and the scores of all iterations but the last,
    [iterations - 1, B, L, H, W] in float32 (float64 for float64), until backward is done; on CUDA,
    compiled or exported it keeps the inputs, and backward runs forward again.

    A weight of zeros means no kernel, on every device: not even a NaN in the image passes through
    it. If it is learned where pixels are not finite, its gradient is NaN. On CUDA a call waits for
    the device once for each lattice, or once by the exact method; sigmas that are tensors cost a
    wait each. float64 by the exact method is computed on the CPU.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it. So does an
            image or sigma that requires a gradient the lattice does not have.
        NotImplementedError: on differentiating twice or in forward mode.

    Warns:
        UserWarning: logits that sum to 1 over labels (probabilities or labels passed by mistake); a
        float image that spans less than two ``color_sigma``; a job of over a minute on the CPU.

    Example:
        >>> import torch, segfast
        >>> logits, image = torch.randn(1, 3, 20, 30), torch.randint(0, 256, (1, 3, 20, 30)).byte()
        >>> segfast.ops.mean_field(logits, image).argmax(1).shape
        torch.Size([1, 20, 30])
    """
    unbatched = isinstance(logits, Tensor) and logits.dim() == 3
    _dense_crf_check.require_logits(logits)
    _check.require_tensor("image", image, "[B, C, H, W]")
    if unbatched and image.dim() == 3:
        logits, image = logits[None], image[None]
    _dense_crf_check.require_maps("logits", logits, image)
    labels = logits.shape[1]
    _check.require_choice("normalization", normalization, NORMALIZATIONS)
    _check.require_choice("method", method, METHODS)
    _check.require_choice("spatial", spatial, SPATIAL)
    iterations = _check.require_count("iterations", iterations)
    _check.require_bool("return_steps", return_steps)
    _check.require_bool("return_belief", return_belief)
    color_sigma = _dense_crf_check.color_sigma_of(color_sigma, image, MEAN_FIELD_COLOR_SIGMA)
    sigma_tensor = _dense_crf_check.sigma_tensor
    sigmas = (
        sigma_tensor("spatial_sigma", spatial_sigma, 2, logits).expand(2),
        sigma_tensor("bilateral_sigma", bilateral_sigma, 2, logits).expand(2),
        sigma_tensor("color_sigma", color_sigma, image.shape[1], logits),
    )
    tolerance = _check.not_negative("tolerance", tolerance)
    weights = [
        _dense_crf_check.weight_tensor(name, weight, labels, logits)
        for name, weight in (
            ("spatial_weight", spatial_weight),
            ("bilateral_weight", bilateral_weight),
        )
    ]
    _dense_crf_check.require_compatibility(compatibility, labels, logits)
    capacity = _dense_crf_check.require_capacity(capacity)
    mixings = [_mixing(weight, compatibility) for weight in weights]
    method = resolve_method(method, logits.shape[2] * logits.shape[3], normalization)
    options = Options(
        iterations, normalization, method, spatial, tolerance, return_steps,
        return_belief and not return_steps, capacity,
    )  # fmt: skip
    tensors = (logits, image, *mixings, *sigmas)
    steps = _dense_crf_grad.mean_field(tensors, options)  # [S, B, L, H, W]
    if unbatched:
        steps = steps[:, 0]
    if not return_steps:
        return steps[0]
    beliefs = call(_dense_crf_grad.Belief, steps)
    scores = steps[-1] if iterations > 0 else (logits[0] if unbatched else logits).clone()
    if return_belief:
        scores = beliefs[-1] if iterations > 0 else torch.softmax(scores, dim=-3)
    return scores, list(zip(steps, beliefs, strict=True))


def resolve_method(method: str, positions: int, normalization: str) -> str:
    """What ``"auto"`` stands for. Never decided by device or training mode.

    =====================================  =========
    normalization "none" or "before"       exact (the lattice's raw mass is half the true one)
    at most 16384 positions                exact
    else                                   lattice
    =====================================  =========
    """
    if method != "auto":
        return method
    if normalization in ("none", "before") or positions <= AUTO_EXACT_PIXELS:
        return "exact"
    return "lattice"


def served_by() -> dict[str, str]:
    """Which kernel serves the operator, per device."""
    module = native()
    cpu = (
        "PyTorch reference (kernels/dense_crf/reference.py)"
        if module is None
        else f"mean_field_cpu.cpp, lattice_cpu.cpp, exact_cpu.cpp ({module.instruction_set()})"
    )
    copied = f"copied to the CPU: {cpu}"
    exact = exact_served_by() if has_triton() else copied
    lattice = "mean_field.cu, lattice.cu" if available() else copied
    cuda = copied if exact == lattice else f"exact: {exact}; lattice: {lattice}"
    return {"cpu": cpu, "cuda": cuda}


def _mixing(weight: Tensor, compatibility: Tensor | None) -> Tensor:
    """-mu W as one scalar, vector or matrix, float64; it is differentiated as it stands."""
    w = weight.double()
    if compatibility is None:
        return w
    mu = compatibility.double()  # [L, L]
    # (a matrix product would sum in an order of its own; mu diag(w) scales mu's columns)
    return -mix(mu, w) if w.dim() == 2 else -(mu * w)
