"""The pairwise terms of mean field, compiled and in plain PyTorch, and their transposes.

    scores = logits + sum_m M_m K~_m Q,     Q = softmax(scores)

M_m is the mixing of term m: -mu W_m (a scalar, one weight per label, or a matrix). The compiled
kernels serve where they are there, kernels/dense_crf/reference.py elsewhere.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from segfast._native import native
from segfast.kernels.dense_crf import reference, reference_grad

Filter = Callable[[Tensor], Tensor]  # [C, N] -> [C, N], linear
# Radius of the spatial convolution in sigmas: what is cut off is below the dtype's rounding.
CONV_RADIUS = {torch.float32: 5.5, torch.float64: 8.5}
WIDE = (torch.float64, torch.int64, torch.int32, torch.uint64, torch.uint32)  # than float32
COORDINATE_LIMIT = {torch.float32: 2.0**22, torch.float64: 2.0**30}  # lattice_build's, too
LINE = 1024  # pixels per "line" where there is no image shape

torch.library.define("segfast::_feature_range", "(Tensor features) -> Tensor")
torch.library.define(
    "segfast::_lattice_build", "(Tensor features, Tensor range, int width) -> Tensor[]"
)
torch.library.define(
    "segfast::_mean_field",
    "(Tensor logits, Tensor? belief, Tensor(a!)? states, int width, Tensor[] lattices,"
    " Tensor[] convs, int iterations, bool softmax, bool transposed) -> Tensor",
)
torch.library.define(
    "segfast::_mean_field_run_backward",
    "(Tensor upstream, Tensor? belief, Tensor logits, Tensor? states, int width, Tensor[] lattices,"
    " Tensor[] convs, Tensor[] planes, Tensor[] mixings, int iterations, bool start, bool weights)"
    " -> Tensor[]",
)
torch.library.define("segfast::_exact_order", "(Tensor features) -> Tensor")
torch.library.define("segfast::_softmax", "(Tensor scores) -> Tensor")
for _name in ("_exact_filter", "_exact_gradient"):
    torch.library.define(
        f"segfast::{_name}",
        "(Tensor values, Tensor features, Tensor order, float tolerance) -> Tensor",
    )


@dataclass(frozen=True)
class PairwiseTerm:
    """One pairwise kernel of the model.

    Attributes:
        features: [F, N] divided by the bandwidths; None for ``method="conv"``.
        mixing: [] | [L] | [L, L]; the scores gain ``mixing @ (K~ Q)``.
        normalization: "none" | "before" | "after" | "symmetric".
        method: "lattice" | "exact" | "conv" (separable Gaussian on the pixel grid).
        sigma: (sigma_y, sigma_x) in pixels, for "conv".
    """

    features: Tensor | None
    mixing: Tensor
    normalization: str = "symmetric"
    method: str = "lattice"
    sigma: tuple[float, float] | None = None

    @cached_property
    def span(self) -> Tensor:
        """:func:`feature_range` of the features."""
        assert self.features is not None
        return feature_range(self.features)


def mix(mixing: Tensor, message: Tensor) -> Tensor:
    """mixing ([] | [L] | [L, L]) applied to [..., L, N]; same bits for any thread count."""
    if mixing.dim() < 2:
        return mixing.reshape(-1, 1) * message
    total = mixing[:, :1] * message[..., :1, :]
    for k in range(1, message.shape[-2]):  # a matrix product would sum in an order of its own
        total = torch.addcmul(total, mixing[:, k : k + 1], message[..., k : k + 1, :])
    return total


def feature_range(features: Tensor) -> Tensor:
    """Lowest and highest of each feature [F, N] -> [2, F] float64; not finite if a value is not."""
    if native() is None:
        return torch.stack(torch.aminmax(features, dim=1)).double()
    return torch.ops.segfast._feature_range(features.contiguous())


def require_reach(span: Tensor, dtype: torch.dtype) -> None:
    """Refuses features (span [2, F]) whose lattice coordinates the dtype cannot round exactly."""
    far = span.abs().amax(0)  # [F]
    i = torch.arange(len(far), dtype=torch.float64)
    c = far * math.sqrt(2 / 3) * (len(far) + 1) / ((i + 1) * (i + 2)).sqrt()
    coordinate = c.sum() + ((i + 1) * c).max()  # bounds sum_{k > j} c_k - j c_j
    if coordinate > COORDINATE_LIMIT[dtype]:
        raise ValueError(
            f"features (positions and colours divided by their sigmas) reach {far.max():.3g}, too "
            f"far for {dtype}: use larger sigmas or float64"
        )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def placed(image: Tensor, method: str, dtype: torch.dtype) -> Tensor:
    """The image [..., H, W] in `dtype`.

    The exact kernel depends on differences alone: large numbers of a wider dtype lose what all
    pixels of a channel share before they are rounded. A lattice stands where it stands.
    """
    if method == "exact" and dtype == torch.float32 and image.dtype in WIDE and image.numel():
        image = image.double()
        image = image - image.detach().amin((-2, -1), keepdim=True)
    return image.to(dtype)


def require_finite_quotients(
    image: Tensor,
    bilateral_sigma: Sequence[float],
    color_sigma: Sequence[float],
    dtype: torch.dtype,
) -> None:
    """Refuses sigmas so small that a finite image overflows; NaN in the image may pass on."""
    if image.isfinite().all():
        raise ValueError(
            f"bilateral_sigma and color_sigma must be larger, or the image smaller: positions and "
            f"colours divided by {min(bilateral_sigma):.3g} and "
            f"{min(color_sigma, default=math.inf):.3g} overflow {dtype}"
        )


def in_out_scales(norm: Tensor, normalization: str) -> tuple[Tensor | None, Tensor | None]:
    """What multiplies the values before and after the kernel, for n = K 1; None is one."""
    inverse = (norm + reference.TINY).reciprocal()
    before = {"before": inverse, "symmetric": inverse.sqrt()}.get(normalization)
    after = {"after": inverse, "symmetric": inverse.sqrt()}.get(normalization)
    return before, after


class Kernel:
    """K~ of one term, [..., C, N] -> [..., C, N], from K and its transpose.

    Attributes:
        raw, transposed: K and its transpose.
        ones: [..., 1, N]
        moments: (G, V) [C, N] -> [F + 2, N], reference_grad.feature_gradient; exact kernels only.
        norm: n = K 1, [..., 1, N]; None where nothing is normalised.
        before, after: what multiplies the values before and after K; None is one.
    """

    def __init__(
        self,
        raw: Filter,
        transposed: Filter,
        ones: Tensor,
        normalization: str,
        moments: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.raw, self.transposed, self.moments = raw, transposed, moments
        self.norm: Tensor | None = None
        self.before: Tensor | None = None
        self.after: Tensor | None = None
        if normalization != "none":
            self.norm = raw(ones)
            self.before, self.after = in_out_scales(self.norm, normalization)

    def __call__(self, values: Tensor) -> Tensor:
        return scaled(self.raw(scaled(values, self.before)), self.after)

    def transpose(self, values: Tensor) -> Tensor:
        return scaled(self.transposed(scaled(values, self.after)), self.before)


def scaled(values: Tensor, scale: Tensor | None) -> Tensor:
    return values if scale is None else values * scale


def exact_kernel(features: Tensor, normalization: str, tolerance: float) -> Kernel:
    """K~ by summing every pair, compiled."""
    features = features.contiguous()
    order = torch.ops.segfast._exact_order(features)

    def raw(values: Tensor) -> Tensor:
        return torch.ops.segfast._exact_filter(values.contiguous(), features, order, tolerance)

    def moments(g: Tensor, v: Tensor) -> Tensor:
        values = torch.cat([g, v])
        return torch.ops.segfast._exact_gradient(values, features, order, tolerance)

    return Kernel(raw, raw, torch.ones_like(features[:1]), normalization, moments)


def running_sum(x: Tensor) -> Tensor:
    """x_0, x_0 + x_1, ... [n]; by doubling, since cumsum on CUDA is not deterministic."""
    step = 1
    while step < len(x):
        x = x + pad(x[:-step], (step, 0))
        step *= 2
    return x


def gaussian_taps(
    size: int, sigma: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """exp(-r^2 / 2 sigma^2) and its derivative by sigma, r = 0, 1, ...: float64, for sums in dtype.

    They end where a line of `size` ends, or what is cut off is below the dtype's rounding.
    """
    radius = int(min(CONV_RADIUS[dtype] * sigma, size - 1))  # the product may be inf
    t = torch.arange(radius + 1, dtype=torch.float64, device=device) / sigma
    tap = torch.exp(-0.5 * t**2)
    return tap, tap * t**2 / sigma


def separable_gaussian(
    shape: tuple[int, int], sigma: tuple[float, float], normalization: str, dtype: torch.dtype,
    device: torch.device, slope: int | None = None,
) -> list[Tensor]:  # fmt: skip
    """What `NativeTerms.convolution` gives."""
    taps: list[Tensor] = []
    before: list[Tensor] = []
    after: list[Tensor] = []
    for axis, (size, s) in enumerate(zip(shape, sigma, strict=True)):
        tap, tap_slope = gaussian_taps(size, s, dtype, device)
        # n = K 1 is an outer product: per axis, the taps that stay inside.
        sums = running_sum(torch.cat([tap, tap.new_zeros(size - len(tap))]))  # [size]
        norm = sums + sums.flip(0) - 1
        scales = in_out_scales(norm, normalization)
        for kept, scale in zip((before, after), scales, strict=True):
            kept.append(torch.ones_like(norm) if scale is None else scale)
        taps.append(tap_slope if axis == slope else tap)
    return [x.to(dtype) for x in (*taps, *before, *after)]


class NativeTerms:
    """Lattice and convolution terms as the tensor lists that segfast::_mean_field takes."""

    def __init__(self, like: Tensor, shape: tuple[int, int] | None) -> None:
        self.like, self.shape = like, shape
        self.width = LINE if shape is None else shape[1]
        self.lattices: list[Tensor] = []
        self.convs: list[Tensor] = []

    def mean_field(
        self,
        logits: Tensor,
        belief: Tensor | None,
        iterations: int,
        softmax: bool = False,
        states: Tensor | None = None,
        transposed: bool = False,
    ) -> Tensor:
        """``states`` [S < iterations, L, N] takes the scores of the first S iterations.

        ``transposed``: K~^T in place of K~, for terms whose mixing is 1.
        """
        return torch.ops.segfast._mean_field(
            logits, belief, states, self.width, self.lattices, self.convs, iterations, softmax,
            transposed,
        )  # fmt: skip

    def run_backward(
        self,
        upstream: Tensor,
        belief: Tensor | None,
        logits: Tensor,
        states: Tensor | None,
        iterations: int,
        *,
        planes: Sequence[Tensor] = (),
        mixings: Sequence[Tensor] = (),
        start: bool = True,
        weights: bool = True,
    ) -> list[Tensor]:
        """The same run backwards: [sum of dL/dscores], then dL/dM of each term if ``weights``.

        Args:
            upstream: dL/dscores after every iteration or the last, [U, L, N].
            belief: the last iteration's, if ``upstream`` is its gradient.
            planes: R of terms that are not among these, [L, N]; ``iterations`` must be 1.
            mixings: theirs.
            start: whether the sum includes the gradient of the last scores.
        """
        return torch.ops.segfast._mean_field_run_backward(
            upstream, belief, logits, states, self.width, self.lattices, self.convs,
            planes, mixings, iterations, start, weights,
        )  # fmt: skip

    def add(self, term: PairwiseTerm) -> None:
        mixing = term.mixing.to(self.like.dtype).contiguous()
        if term.method == "conv":
            assert term.sigma is not None
            self.convs += [*self.convolution(term.sigma, term.normalization), mixing]
        else:
            self.lattices += [*self._lattice(term), mixing]

    def convolution(
        self, sigma: tuple[float, float], normalization: str, slope: int | None = None
    ) -> list[Tensor]:
        """[taps_y, taps_x, before_y, before_x, after_y, after_x].

        ``slope``: the taps of the derivative by the sigma of that axis instead.
        """
        assert self.shape is not None
        return separable_gaussian(
            self.shape, sigma, normalization, self.like.dtype, self.like.device, slope
        )

    def _lattice(self, term: PairwiseTerm) -> list[Tensor]:
        assert term.features is not None
        features = term.features.contiguous()
        *lattice, weight = torch.ops.segfast._lattice_build(features, term.span, self.width)
        if term.normalization == "none":
            return [*lattice, weight, weight]
        ones = features.new_ones(1, features.shape[1])
        plain = NativeTerms(self.like, self.shape)
        plain.lattices = [*lattice, weight, weight, features.new_ones(())]
        norm = plain.mean_field(torch.zeros_like(ones), ones, 1).squeeze(0)  # [N]
        before, after = in_out_scales(norm, term.normalization)
        if term.normalization == "symmetric":
            assert before is not None
            weight *= before[:, None]
            return [*lattice, weight, weight]
        scales = (weight if s is None else weight * s[:, None] for s in (before, after))
        return [*lattice, *scales]


def reference_kernel(term: PairwiseTerm, like: Tensor, shape: tuple[int, int] | None) -> Kernel:
    """K~ of a term in plain PyTorch, [L, N] -> [L, N]."""
    ones = torch.ones_like(like[:1])
    if term.method == "conv":
        assert shape is not None
        assert term.sigma is not None
        separable = reference.separable_kernel(like, shape, term.sigma)
        return Kernel(separable, separable, ones, term.normalization)
    assert term.features is not None
    if term.method == "exact":
        pairs = reference.exact_kernel(term.features)
        moments = functools.partial(reference_grad.feature_gradient, features=term.features)
        return Kernel(pairs, pairs, ones, term.normalization, moments)
    lattice = reference.Lattice(term.features)
    transposed = functools.partial(lattice.filter, transpose=True)
    return Kernel(lattice.filter, transposed, ones, term.normalization)


@dataclass(frozen=True)
class SpatialParts:
    """A convolution taken apart, for the gradient of its sigmas.

    Attributes:
        kernel, slopes: K, and dK by sigma_y and sigma_x, [C, N] -> [C, N].
        before, after: what multiplies before and after K, [N]; None is one.
    """

    kernel: Filter
    slopes: list[Filter]
    before: Tensor | None
    after: Tensor | None


def spatial(term: PairwiseTerm, like: Tensor, shape: tuple[int, int]) -> SpatialParts:
    """Of a "conv" term, for values like `like`."""
    assert term.sigma is not None
    sigma = term.sigma
    if native() is None:
        whole = reference_kernel(term, like, shape)
        slopes = reference_grad.separable_slopes(like, shape, sigma)
        return SpatialParts(whole.raw, slopes, whole.before, whole.after)

    def filtered(slope: int | None) -> Filter:
        terms = NativeTerms(like, shape)
        terms.convs = [*terms.convolution(sigma, "none", slope), like.new_ones(())]
        return lambda values: terms.mean_field(torch.zeros_like(values), values.contiguous(), 1)

    scales = NativeTerms(like, shape).convolution(sigma, term.normalization)[2:]
    before, after = (torch.outer(y, x).flatten() for y, x in (scales[:2], scales[2:]))
    return SpatialParts(filtered(None), [filtered(0), filtered(1)], before, after)
