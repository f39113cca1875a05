"""Dense CRF in plain PyTorch: the oracle in float64, and what serves where nothing was compiled.

    K_ij   = exp(-|f_i - f_j|^2 / 2), i = j included;   n = K 1
    K~ Q   = K Q | K (Q / n) | (K Q) / n | n^-1/2 K (n^-1/2 Q)    (none, before, after, symmetric)
    scores = logits - mu sum_m W_m K~_m Q,   Q = softmax(scores of the iteration before)

K is summed over all pairs (`gaussian_filter`), over rows and columns (`spatial_filter`), or
approximated by the permutohedral lattice (`Lattice`). Every function computes in the dtype it is
given. Equations, constants and sources: README.md in this folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

NORMALIZATIONS = ("none", "before", "after", "symmetric")
TINY = 1e-20  # added to n inside reciprocals, so that an empty neighbourhood divides by no zero
CHUNK = 1 << 22  # kernel entries held at once by the exact filter

Filter = Callable[[Tensor], Tensor]  # [C, N] -> [C, N], linear
Deviation = float | tuple[float, float] | Tensor  # once, or (sy, sx)


# ------------------------------------------------------------------------------ filters


def gaussian_kernel(features: Tensor) -> Tensor:
    """K_ij = exp(-|f_i - f_j|^2 / 2) in full: `features` [F, N] to K [N, N]."""
    return kernel_rows(features, features)


def kernel_rows(rows: Tensor, features: Tensor) -> Tensor:
    """Rows of K: `rows` [F, R] against `features` [F, N] to [R, N].

    Sums squared differences axis by axis: |a|^2 + |b|^2 - 2ab cancels catastrophically when pixels
    far from the origin are near each other, and would need an [F, R, N] temporary otherwise.
    """
    squared = rows.new_zeros(rows.shape[1], features.shape[1])  # [R, N]
    for row_axis, axis in zip(rows, features, strict=True):
        squared = squared + (row_axis[:, None] - axis[None, :]).square()
    return torch.exp(-0.5 * squared)


def gaussian_filter(values: Tensor, features: Tensor, normalization: str = "none") -> Tensor:
    """Sum over every pair: y_i = sum_j K_ij v_j, normalised.

    Args:
        values: v, [C, N].
        features: f, [F, N], already divided by the standard deviations.
        normalization: "none", "before", "after" or "symmetric".

    Returns:
        y, [C, N]. N^2 work; memory stays bounded, because K is formed a few rows at a time.
    """
    return normalized(exact_kernel(features), values, normalization)(values)


def exact_kernel(features: Tensor) -> Filter:
    """v -> v K over `features` [F, N]."""

    def kernel(values: Tensor) -> Tensor:
        rows = max(1, CHUNK // max(1, features.shape[1]))
        parts = [values @ kernel_rows(part, features).T for part in features.split(rows, dim=1)]
        return torch.cat(parts, dim=1)

    return kernel


def spatial_filter(
    values: Tensor, sigma: tuple[float, float], normalization: str = "none"
) -> Tensor:
    """Gaussian blur over the image plane: y = Gy v Gx^T, normalised; nothing is truncated.

    Args:
        values: v, [C, H, W].
        sigma: standard deviations (sy, sx) in pixels.
        normalization: "none", "before", "after" or "symmetric".
    """
    flat = values.flatten(1)  # [C, H W]
    kernel = separable_kernel(flat, (values.shape[1], values.shape[2]), sigma)
    return normalized(kernel, flat, normalization)(flat).reshape(values.shape)


def separable_kernel(
    like: Tensor, size: tuple[int, int], sigma: tuple[float | Tensor, float | Tensor]
) -> Filter:
    """v [C, H W] -> Gy v Gx^T, in `like`'s dtype; the Gaussian of a grid is a product of two."""

    def axis(length: int, deviation: float | Tensor) -> Tensor:
        position = torch.arange(length, dtype=like.dtype, device=like.device) / deviation
        return gaussian_kernel(position[None])

    gy, gx = axis(size[0], sigma[0]), axis(size[1], sigma[1])  # [H, H], [W, W]
    return lambda values: (gy @ values.reshape(-1, *size) @ gx.T).reshape(values.shape)


def lattice_filter(values: Tensor, features: Tensor, normalization: str = "none") -> Tensor:
    """`gaussian_filter` approximated by a permutohedral lattice: [C, N], [F, N] to [C, N]."""
    return normalized(Lattice(features).filter, values, normalization)(values)


def normalized(kernel: Filter, like: Tensor, normalization: str) -> Filter:
    """The filter Q -> K~ Q; n = K 1 is computed here, once, in `like`'s [C, N] width and dtype."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {normalization!r}")
    if normalization == "none":
        return kernel
    mass = kernel(like.new_ones(1, like.shape[1])) + TINY  # [1, N]
    if normalization == "before":
        return lambda values: kernel(values / mass)
    if normalization == "after":
        return lambda values: kernel(values) / mass
    root = mass.rsqrt()
    return lambda values: kernel(values * root) * root


# ------------------------------------------------------------------------------ lattice


class Lattice:
    """Permutohedral lattice over N feature vectors (Adams, Baek and Davis 2010), d = F.

    Each pixel lies in a simplex of d + 1 vertices. Filtering splats values onto those vertices
    with barycentric weights, blurs along the d + 1 lattice directions, and slices back. Vertices
    that no pixel touches do not exist: they hold 0 and receive nothing.

    Attributes:
        num_vertices: V.
        vertices: lattice coordinates, int64 [V, d]; the last of d + 1 is minus the others' sum.
        index: the vertices of each pixel's simplex, int64 [d + 1, N].
        weight: barycentric weights, [d + 1, N], each column summing to 1.
        neighbours: per direction the vertex before and after, int64 [d + 1, 2, V]; V if absent.
    """

    def __init__(self, features: Tensor) -> None:
        dims, pixels = features.shape  # [F, N]
        if dims == 0:
            raise ValueError("features must have at least one row, got shape [0, N]")
        keys, self.weight = _enclosing_simplices(features)  # [d + 1, N, d], [d + 1, N]
        keys = keys.reshape(-1, dims)
        index, self.num_vertices = _number_rows(keys)
        self.vertices = keys.new_empty(self.num_vertices, dims)
        self.vertices[index] = keys  # equal rows write equal values
        self.index = index.reshape(dims + 1, pixels)
        self.neighbours = _neighbours(self.vertices)

    def filter(self, values: Tensor, transpose: bool = False) -> Tensor:
        """y = alpha S B_d ... B_0 S^T v, [C, N] to [C, N]; `transpose` blurs in reverse order.

        The blurs do not commute where vertices are missing, so the operator is symmetric only
        nearly, and its transpose is the reversed one.
        """
        pixel_major = values.T  # [N, C]
        table = values.new_zeros(self.num_vertices + 1, len(values))  # [V + 1, C], last row absent
        for index, weight in zip(self.index, self.weight, strict=True):
            table = table.index_add(0, index, pixel_major * weight[:, None])
        axes = list(self.neighbours)
        for before, after in reversed(axes) if transpose else axes:
            blurred = table[:-1] + 0.5 * (table[before] + table[after])
            table = torch.cat([blurred, table[-1:]])
        alpha = 1.0 / (1.0 + 2.0 ** -len(self.vertices.T))
        sliced = torch.zeros_like(pixel_major)
        for index, weight in zip(self.index, self.weight, strict=True):
            sliced = sliced + table[index] * weight[:, None]
        return (alpha * sliced).T


def _enclosing_simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """`features` [d, N] to vertex keys [d + 1, N, d] (int64) and barycentric weights [d + 1, N]."""
    dims = len(features)
    period = dims + 1
    elevated = _elevate(features)  # [d + 1, N], columns sum to 0
    limit = 0.5 / torch.finfo(features.dtype).eps  # integers beyond it are not all representable
    if not bool((elevated.abs() < limit).all()):  # NaN compares false
        raise ValueError(
            f"features must be finite and within about {limit:.0e} of 0 to have a place on a "
            f"lattice in {features.dtype}: use larger sigmas or float64"
        )

    # The nearest lattice point of remainder 0, and the order of what is left over: the k-th
    # largest leftover has rank k, of equal ones the earlier axis comes first.
    quotient = torch.round(elevated / period)
    leftover = elevated - quotient * period
    order = torch.argsort(leftover, dim=0, descending=True, stable=True)
    rank = torch.argsort(order, dim=0)

    # Rounding axis by axis may leave the plane sum = 0: walk back along the most extreme axes.
    quotient = quotient.long()
    rank = rank + quotient.sum(0)
    shift = (rank < 0).long() - (rank > dims).long()
    rank = rank + shift * period
    origin = (quotient + shift) * period  # [d + 1, N]

    # Barycentric weights are differences of consecutive leftovers (recomputed after the walk).
    leftover = (elevated - origin.to(elevated.dtype)) / period
    falling = torch.zeros_like(leftover).scatter(0, rank, leftover).flip(0)
    weight = falling - falling.roll(1, 0)
    weight[0] += 1.0

    # Vertex r of the simplex: origin + r, minus the period on the r axes of the highest rank.
    remainder = torch.arange(period, device=features.device)[:, None, None]  # [d + 1, 1, 1]
    keys = origin[:dims] + remainder - period * (rank[:dims] > dims - remainder)
    return keys.transpose(1, 2), weight


def _elevate(features: Tensor) -> Tensor:
    """[d, N] onto the hyperplane sum = 0 of R^(d+1), scaled so that the blur has variance 1.

    e_0 = sum_i c_i and e_j = sum_{i > j} c_i - j c_j for j = 1..d,
    where c_i = f_i (d + 1) sqrt(2/3) / sqrt(i (i + 1)).
    """
    dims = len(features)
    step = features.new_tensor((dims + 1) * math.sqrt(2 / 3)).item()  # rounded as published
    scale = features.new_tensor([step * (1 / math.sqrt(i * (i + 1))) for i in range(1, dims + 1)])
    scaled = features * scale[:, None]  # c, [d, N]
    suffix = scaled.flip(0).cumsum(0).flip(0)  # sum_{i >= j} c_i
    beyond = torch.cat([suffix[1:], torch.zeros_like(suffix[:1])])
    j = torch.arange(1, dims + 1, dtype=features.dtype, device=features.device)[:, None]
    return torch.cat([suffix[:1], beyond - j * scaled])


def _neighbours(vertices: Tensor) -> Tensor:
    """[V, d] keys to [d + 1, 2, V]: the vertex before and after along each direction, V if absent.

    One step along direction j adds 1 to every coordinate and takes d + 1 from the j-th.
    """
    count, dims = vertices.shape
    step = torch.ones(dims + 1, 1, dims, dtype=vertices.dtype, device=vertices.device)
    step[:dims, 0] -= (dims + 1) * torch.eye(dims, dtype=vertices.dtype, device=vertices.device)
    stepped = (vertices + step).reshape(-1, dims)  # [(d + 1) V, d]

    number, distinct = _number_rows(torch.cat([vertices, stepped]))
    own = torch.arange(count, device=vertices.device)
    vertex_of = own.new_full((distinct,), count)
    vertex_of[number[:count]] = own
    after = vertex_of[number[count:]].reshape(dims + 1, count)

    before = own.new_full((dims + 1, count + 1), count)
    before = before.scatter(1, after, own.expand_as(after))[:, :count]  # column V took the absent
    return torch.stack([before, after], dim=1)


def _number_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Number the distinct rows of int64 [M, d]: (number of each row [M], how many there are).

    Columns are packed into one integer; it is renumbered whenever it would outgrow 62 bits, so
    keys of any width are told apart exactly.
    """
    code = torch.zeros_like(rows[:, 0])
    size = 1  # codes lie in [0, size)
    for column in rows.T if len(rows) else ():
        column = column - column.min()
        extent = int(column.max()) + 1
        if size * extent >= 1 << 62:
            code, size = _renumber(code)
            column, extent = _renumber(column)
        code = code * extent + column
        size = size * extent
    return _renumber(code)


def _renumber(code: Tensor) -> tuple[Tensor, int]:
    distinct, number = torch.unique(code, return_inverse=True)
    return number, len(distinct)


# ------------------------------------------------------------------------------ mean field


def image_features(
    image: Tensor,
    bilateral_sigma: Deviation,
    color_sigma: float | tuple[float, ...] | Tensor,
) -> Tensor:
    """Bilateral features (x / sx, y / sy, channels / color_sigma): [C, H, W] to [2 + C, H W].

    Args:
        image: any number of channels; integers are computed in the default float dtype.
        bilateral_sigma: standard deviation in pixels; a pair is (sy, sx).
        color_sigma: standard deviation in image units; one number, or one per channel.
    """
    if not image.is_floating_point():
        image = image.to(torch.get_default_dtype())
    sigma = torch.as_tensor(color_sigma, dtype=image.dtype, device=image.device).reshape(-1, 1)
    colors = image.flatten(1) / sigma  # [C, H W]
    return torch.cat([position_features(image, bilateral_sigma), colors])


def position_features(image: Tensor, sigma: Deviation) -> Tensor:
    """(x / sx, y / sy) of every pixel of `image` [..., H, W] in row-major order: [2, H W].

    The order of the axes is part of the model: another order is another lattice.
    """
    height, width = image.shape[-2:]
    sy, sx = as_pair(sigma)
    y = torch.arange(height, dtype=image.dtype, device=image.device) / sy
    x = torch.arange(width, dtype=image.dtype, device=image.device) / sx
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).flatten(1)


def mean_field(
    logits: Tensor,
    image: Tensor,
    *,
    spatial_weight: float | Tensor = 3.0,
    spatial_sigma: Deviation = 3.0,
    bilateral_weight: float | Tensor = 10.0,
    bilateral_sigma: Deviation = 80.0,
    color_sigma: float | tuple[float, ...] | Tensor = 13.0,
    compatibility: Tensor | None = None,
    iterations: int = 10,
    normalization: str = "symmetric",
    method: str = "lattice",
    spatial: str = "conv",
) -> Tensor:
    """Mean-field inference in a fully connected CRF (Kraehenbuehl and Koltun 2011), one image.

    Args:
        logits: [L, H, W], log-probabilities up to a constant per pixel.
        image: [C, H, W]; computed in the logits' dtype.
        spatial_weight, bilateral_weight: W_m: a number, [L] (a diagonal) or [L, L].
        spatial_sigma, bilateral_sigma: pixels; a pair is (sy, sx).
        color_sigma: image units; a number or one per channel.
        compatibility: the penalty mu [L, L], used as given; None is Potts, mu = -I.
        iterations: 0 returns the logits.
        normalization: "none", "before", "after" or "symmetric".
        method: the bilateral kernel: "lattice" or "exact".
        spatial: the spatial kernel beside a bilateral lattice: "conv" (exact) or "lattice"; beside
            the exact method it is always the former.

    Returns:
        scores [L, H, W] before the softmax: the refined distribution is softmax(scores, 0).
    """
    if method not in ("lattice", "exact"):
        raise ValueError(f"method must be 'lattice' or 'exact', got {method!r}")
    if spatial not in ("conv", "lattice"):
        raise ValueError(f"spatial must be 'conv' or 'lattice', got {spatial!r}")
    image = image.to(logits.dtype)
    labels, height, width = logits.shape
    flat = logits.reshape(labels, height * width)  # [L, N]

    features = image_features(image, bilateral_sigma, color_sigma)  # [2 + C, N]
    bilateral = Lattice(features).filter if method == "lattice" else exact_kernel(features)
    if spatial == "conv" or method == "exact":
        smooth = separable_kernel(flat, (height, width), as_pair(spatial_sigma))
    else:
        smooth = Lattice(position_features(image, spatial_sigma)).filter

    mu = None if compatibility is None else compatibility.to(logits.dtype)
    terms = [
        (_as_mixing(spatial_weight, logits), normalized(smooth, flat, normalization)),
        (_as_mixing(bilateral_weight, logits), normalized(bilateral, flat, normalization)),
    ]
    scores = flat
    for _ in range(iterations):
        belief = torch.softmax(scores, dim=0)
        message = sum((_mix(w, kernel(belief)) for w, kernel in terms), torch.zeros_like(flat))
        scores = flat + message if mu is None else flat - mu @ message
    return scores.reshape(logits.shape)


def as_pair(sigma: Deviation) -> tuple[float | Tensor, float | Tensor]:
    """(sy, sx) of a standard deviation given once or per axis."""
    if isinstance(sigma, (int, float)) or (isinstance(sigma, Tensor) and sigma.ndim == 0):
        return sigma, sigma
    return sigma[0], sigma[1]


def _as_mixing(weight: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(weight, dtype=like.dtype, device=like.device)


def _mix(weight: Tensor, message: Tensor) -> Tensor:
    """W m for W a scalar, a diagonal [L] or a matrix [L, L]; m [L, N]."""
    if weight.ndim == 2:
        return weight @ message
    return (weight[:, None] if weight.ndim == 1 else weight) * message
