"""Derivatives of the Gaussian filters with respect to where the pixels stand, in plain PyTorch.

    y = A K B q,   A = diag(after), B = diag(before): powers of n = K 1
    V = B q,  G = A dL/dy:   dL/dK_ij = G_i . V_j,   dL/dq = B K^T G

Equations: README.md, "Gradients". Every function computes in the dtype it is given.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .reference import CHUNK, TINY, Filter, gaussian_kernel, kernel_rows


def feature_gradient(g: Tensor, v: Tensor, features: Tensor) -> Tensor:
    """What moves the features, for G and V [C, N] -> [F + 2, N].

    df_i    = sum_j K_ij (G_i . V_j + V_i . G_j) (f_j - f_i)        rows 0 to F - 1
    rho_i   = sum_j K_ij G_i . V_j                                  row F
    kappa_i = sum_j K_ij V_i . G_j                                  row F + 1
    """
    rows = max(1, CHUNK // max(1, features.shape[1]))
    parts = []
    for f, g_i, v_i in zip(*(x.split(rows, dim=1) for x in (features, g, v)), strict=True):
        kernel = kernel_rows(f, features)  # [R, N]
        forth, back = kernel * (g_i.T @ v), kernel * (v_i.T @ g)
        # Differences axis by axis: far from the origin sum K f_j - f_i sum K would cancel.
        axes = zip(f, features, strict=True)
        moved = [((forth + back) * (axis - f_i[:, None])).sum(1) for f_i, axis in axes]
        parts.append(torch.stack([*moved, forth.sum(1), back.sum(1)]))
    return torch.cat(parts, dim=1)


def norm_gradient(normalization: str, norm: Tensor, rho: Tensor, kappa: Tensor | float) -> Tensor:
    """dL/dn [..., 1, N] through A and B, with rho_i = G_i . (K V)_i and kappa_i = V_i . (K G)_i."""
    half = {"before": kappa, "after": rho, "symmetric": (rho + kappa) / 2}[normalization]
    return -half / (norm + TINY)


def sigma_gradient(
    g: Tensor, v: Tensor, kernel: Filter, slopes: Sequence[Filter], normalization: str
) -> Tensor:
    """dL/dsigma of a kernel K without features, from G and V [C, N], `slopes` being dK/dsigma.

    <G, dK V>, and through n = K 1 the same of dL/dn and 1.
    """
    if normalization != "none":
        ones = torch.ones_like(v[:1])
        rho, kappa = (channel_sum(a * kernel(b))[None] for a, b in ((g, v), (v, g)))
        g = torch.cat([g, norm_gradient(normalization, kernel(ones), rho, kappa)])
        v = torch.cat([v, ones])
    return torch.stack([pixel_sum(channel_sum(g * slope(v))) for slope in slopes])


def separable_slopes(
    like: Tensor, size: tuple[int, int], sigma: tuple[float, float]
) -> list[Filter]:
    """dK/dsigma_y and dK/dsigma_x of the spatial kernel K = Gy (x) Gx, in `like`'s dtype.

    dK / dsigma_x = Gy (x) dGx,   dGx_ij = Gx_ij (i - j)^2 / sigma_x^3.
    """
    kernels, slopes = [], []
    for length, deviation in zip(size, sigma, strict=True):
        x = torch.arange(length, dtype=like.dtype, device=like.device)
        kernels.append(gaussian_kernel(x[None] / deviation))
        slopes.append(kernels[-1] * ((x[:, None] - x) / deviation).square() / deviation)

    def filtered(gy: Tensor, gx: Tensor) -> Filter:
        return lambda values: (gy @ values.reshape(-1, *size) @ gx).reshape(values.shape)

    return [filtered(slopes[0], kernels[1]), filtered(kernels[0], slopes[1])]


def channel_sum(x: Tensor) -> Tensor:
    """[C, N] -> [N], the channels in their order: the same bits for any number of threads."""
    return functools.reduce(torch.add, x.unbind(0))


def pixel_sum(x: Tensor) -> Tensor:
    """[..., N] -> [...] in float64: the same bits for any number of threads."""
    if x.is_cuda or x.shape[-1] == 0:  # sums are in one order there, cumsum is not
        return x.double().sum(-1)
    return x.double().cumsum(-1)[..., -1]


def belief_gradient(belief: Tensor, grad: Tensor) -> Tensor:
    """Through Q = softmax(scores) over labels: Q (dL/dQ - <dL/dQ, Q>), [..., L, N]."""
    return belief * (grad - (grad * belief).sum(-2, keepdim=True))


def image_gradients(
    grad: Tensor, features: Tensor, bilateral_sigma: Tensor, color_sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From dL/df [2 + C, N] of f = (x / sx, y / sy, colours / sigma): to image, (sy, sx), sigma.

    Args:
        grad, features: [2 + C, N].
        bilateral_sigma: (sy, sx), [2].
        color_sigma: [1] or [C].
    """
    by_log = -pixel_sum(grad * features)  # dL/dlog sigma of every feature, [2 + C]
    position = by_log[:2].flip(0) / bilateral_sigma
    if len(color_sigma) == 1:
        return grad[2:] / color_sigma, position, pixel_sum(by_log[None, 2:]) / color_sigma
    return grad[2:] / color_sigma[:, None], position, by_log[2:] / color_sigma
