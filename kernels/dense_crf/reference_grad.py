"""Derivatives of the Gaussian filters with respect to where the pixels stand, in plain PyTorch.

    y = A K B q,   A = diag(after), B = diag(before): powers of n = K 1
    V = B q,  G = A dL/dy:   dL/dK_ij = G_i . V_j,   dL/dq = B K^T G

Equations: README.md, "Gradients". Every function computes in the dtype it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import CHUNK, TINY, gaussian_kernel, kernel_rows


def feature_gradient(g: Tensor, v: Tensor, features: Tensor) -> Tensor:
    """What moves the features of y_i = sum_j K_ij v_j, for g = dL/dy: [C, N] twice -> [F + 1, N].

    df_i  = sum_j K_ij (g_i . v_j + v_i . g_j) (f_j - f_i)      rows 0 to F - 1
    rho_i = sum_j K_ij g_i . v_j                                row F, for `norm_gradient`
    """
    rows = max(1, CHUNK // max(1, features.shape[1]))
    parts = []
    for f, g_i, v_i in zip(*(x.split(rows, dim=1) for x in (features, g, v)), strict=True):
        kernel = kernel_rows(f, features)  # [R, N]
        forth = kernel * (g_i.T @ v)
        both = forth + kernel * (v_i.T @ g)
        # Differences axis by axis: far from the origin sum K f_j - f_i sum K would cancel.
        axes = zip(f, features, strict=True)
        moved = [(both * (axis - f_i[:, None])).sum(1) for f_i, axis in axes]
        parts.append(torch.stack([*moved, forth.sum(1)]))
    return torch.cat(parts, dim=1) if parts else features.new_zeros(len(features) + 1, 0)


def norm_gradient(normalization: str, norm: Tensor, rho: Tensor, kappa: Tensor) -> Tensor:
    """dL/dn [N] through A and B, with rho_i = G_i . (K V)_i and kappa_i = V_i . (K^T G)_i."""
    half = {"before": kappa, "after": rho, "symmetric": (rho + kappa) / 2}[normalization]
    return -half / (norm + TINY)


def sigma_gradient(
    g: Tensor, v: Tensor, size: tuple[int, int], sigma: tuple[float, float], normalization: str
) -> Tensor:
    """dL/d(sigma_y, sigma_x) [2] of the spatial kernel K = Gy (x) Gx, for G and V [C, H W].

    dK / dsigma_x = Gy (x) dGx,   dGx_ij = Gx_ij (i - j)^2 / sigma_x^3,   and through n = K 1.
    """
    kernels, slopes = [], []
    for length, deviation in zip(size, sigma, strict=True):
        x = torch.arange(length, dtype=v.dtype, device=v.device)
        kernels.append(gaussian_kernel(x[None] / deviation))
        slopes.append(kernels[-1] * ((x[:, None] - x) / deviation).square() / deviation)
    (gy, gx), (dy, dx) = kernels, slopes
    g, v = g.reshape(-1, *size), v.reshape(-1, *size)  # [C, H, W]
    if normalization != "none":
        norm = torch.outer(gy.sum(1), gx.sum(1))
        rho, kappa = (g * (gy @ v @ gx)).sum(0), (v * (gy @ g @ gx)).sum(0)
        g = torch.cat([g, norm_gradient(normalization, norm, rho, kappa)[None]])
        v = torch.cat([v, torch.ones_like(v[:1])])
    return torch.stack([(g * (dy @ v @ gx)).sum(), (g * (gy @ v @ dx)).sum()])


def belief_gradient(belief: Tensor, grad: Tensor) -> Tensor:
    """Through Q = softmax(scores) over labels: Q (dL/dQ - <dL/dQ, Q>), [L, N]."""
    return belief * (grad - (grad * belief).sum(0))


def image_gradients(
    grad: Tensor, features: Tensor, bilateral_sigma: Tensor, color_sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From dL/df [2 + C, N] of f = (x / sx, y / sy, colours / sigma): to image, (sy, sx), sigma.

    Args:
        grad, features: [2 + C, N].
        bilateral_sigma: (sy, sx), [2].
        color_sigma: [1] or [C].
    """
    by_log = -(grad * features).sum(1)  # dL/dlog sigma of every feature, [2 + C]
    position = by_log[:2].flip(0) / bilateral_sigma
    if len(color_sigma) == 1:
        return grad[2:] / color_sigma, position, by_log[2:].sum(0, keepdim=True) / color_sigma
    return grad[2:] / color_sigma[:, None], position, by_log[2:] / color_sigma
