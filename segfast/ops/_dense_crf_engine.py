"""Mean-field inference for one image, prepared once and stepped as often as wanted.

    scores = logits + sum_m M_m K~_m Q,     Q = softmax(scores)

M_m is the mixing of term m: -mu W_m (a scalar, one weight per label, or a matrix). The compiled
kernels serve where they are there, kernels/dense_crf/reference.py elsewhere.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from segfast._native import native, why_not_native
from segfast.kernels.dense_crf import reference

Filter = Callable[[Tensor], Tensor]  # [C, N] -> [C, N], linear
# Radius of the spatial convolution in sigmas: what is cut off is below the dtype's rounding.
CONV_RADIUS = {torch.float32: 5.5, torch.float64: 8.5}
COORDINATE_LIMIT = {torch.float32: 2.0**22, torch.float64: 2.0**30}  # lattice_build's, too
LINE = 1024  # pixels per "line" where there is no image shape

torch.library.define("segfast::_feature_range", "(Tensor features) -> Tensor")
torch.library.define(
    "segfast::_lattice_build", "(Tensor features, Tensor range, int width) -> Tensor[]"
)
torch.library.define(
    "segfast::_mean_field",
    "(Tensor logits, Tensor? belief, int width, Tensor[] lattices, Tensor[] convs, int iterations,"
    " bool softmax) -> Tensor",
)
torch.library.define("segfast::_exact_order", "(Tensor features) -> Tensor")
torch.library.define("segfast::_softmax", "(Tensor scores) -> Tensor")
torch.library.define(
    "segfast::_exact_filter",
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
    """mixing ([] | [L] | [L, L]) applied to a message [L, N]; same bits for any thread count."""
    if mixing.dim() == 2:  # a matrix product would sum in an order of its own
        return sum(mixing[:, k, None] * row for k, row in enumerate(message))
    return mixing.reshape(-1, 1) * message


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


def in_out_scales(norm: Tensor, normalization: str) -> tuple[Tensor | None, Tensor | None]:
    """What multiplies the values before and after the kernel, for n = K 1; None is one."""
    inverse = (norm + reference.TINY).reciprocal()
    before = {"before": inverse, "symmetric": inverse.sqrt()}.get(normalization)
    after = {"after": inverse, "symmetric": inverse.sqrt()}.get(normalization)
    return before, after


class Kernel:
    """K~ of one term, [C, N] -> [C, N], from K and its transpose.

    Attributes:
        norm: n = K 1, [1, N]; None where nothing is normalised.
        before, after: what multiplies the values before and after K; None is one.
    """

    def __init__(self, raw: Filter, transposed: Filter, like: Tensor, normalization: str) -> None:
        self.raw, self.transposed = raw, transposed
        self.norm: Tensor | None = None
        self.before: Tensor | None = None
        self.after: Tensor | None = None
        if normalization != "none":
            self.norm = raw(like.new_ones(1, like.shape[1]))
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

    return Kernel(raw, raw, features, normalization)


class _NativeTerms:
    """Lattice and convolution terms as the tensor lists that segfast::_mean_field takes."""

    def __init__(self, like: Tensor, shape: tuple[int, int] | None) -> None:
        self.like, self.shape = like, shape
        self.width = LINE if shape is None else shape[1]
        self.lattices: list[Tensor] = []
        self.convs: list[Tensor] = []

    def mean_field(
        self, logits: Tensor, belief: Tensor | None, iterations: int, softmax: bool = False
    ) -> Tensor:
        return torch.ops.segfast._mean_field(
            logits, belief, self.width, self.lattices, self.convs, iterations, softmax
        )

    def add(self, term: PairwiseTerm) -> None:
        mixing = term.mixing.to(self.like.dtype).contiguous()
        if term.method == "conv":
            assert term.sigma is not None
            self.convs += [*self._conv(term.sigma, term.normalization), mixing]
        else:
            self.lattices += [*self._lattice(term), mixing]

    def _conv(self, sigma: tuple[float, float], normalization: str) -> list[Tensor]:
        assert self.shape is not None
        taps: list[Tensor] = []
        before: list[Tensor] = []
        after: list[Tensor] = []
        for size, s in zip(self.shape, sigma, strict=True):
            radius = int(min(CONV_RADIUS[self.like.dtype] * s, size - 1))  # the product may be inf
            r = torch.arange(radius + 1, dtype=torch.float64)
            tap = torch.exp(-0.5 * (r / s) ** 2)
            # n = K 1 is an outer product: per axis, the taps that stay inside.
            sums = torch.cat([tap, tap.new_zeros(max(0, size - 1 - radius))]).cumsum(0)  # [size]
            norm = sums + sums.flip(0) - 1
            scales = in_out_scales(norm, normalization)
            for kept, scale in zip((before, after), scales, strict=True):
                kept.append(torch.ones(size) if scale is None else scale)
            taps.append(tap)
        return [x.to(self.like.dtype) for x in (*taps, *before, *after)]

    def _lattice(self, term: PairwiseTerm) -> list[Tensor]:
        assert term.features is not None
        features = term.features.contiguous()
        *lattice, weight = torch.ops.segfast._lattice_build(features, term.span, self.width)
        if term.normalization == "none":
            return [*lattice, weight, weight]
        ones = features.new_ones(1, features.shape[1])
        plain = _NativeTerms(self.like, self.shape)
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
    if term.method == "conv":
        assert shape is not None
        assert term.sigma is not None
        raw = transposed = reference.separable_kernel(like, shape, term.sigma)
    else:
        assert term.features is not None
        if term.method == "exact":
            raw = transposed = reference.exact_kernel(term.features)
        else:
            lattice = reference.Lattice(term.features)
            raw, transposed = lattice.filter, functools.partial(lattice.filter, transpose=True)
    return Kernel(raw, transposed, like, term.normalization)


# Measured on one core, in seconds per pixel and label (lattice) or per pair of pixels (exact).
SECONDS = {
    ("reference", "lattice"): 8e-8,
    ("reference", "exact"): 2e-8,
    ("native", "lattice"): 5e-9,
    ("native", "exact"): 4e-10,
}


def warn_if_slow(logits: Tensor, terms: Sequence[PairwiseTerm], iterations: int) -> None:
    """Says so, with the remedy, before a job that will take more than a minute."""
    kind = "reference" if native() is None else "native"
    labels, pixels = logits.shape
    exact = any(term.method == "exact" for term in terms)
    work = pixels * (pixels if exact else labels)
    seconds = SECONDS[kind, "exact" if exact else "lattice"] * work * iterations
    if seconds < 60:
        return
    remedies = [f"compiled kernels are missing: {why_not_native()}"] if native() is None else []
    if exact:
        remedies.append('method="lattice" takes time in proportion to the pixels')
    warnings.warn(
        f"dense CRF of {pixels} pixels, {labels} labels, {iterations} iterations: about "
        f"{seconds / 60:.0f} minutes. {'; '.join(remedies) or 'Use a smaller image'}.",
        stacklevel=2,
    )


class Engine:
    """Mean field over one image: ``run`` all iterations, or ``step`` from a given belief.

    Args:
        logits: [L, N], float32 or float64, on the CPU.
        terms: the pairwise kernels.
        shape: (H, W) with H * W = N; "conv" terms need it.
        tolerance: of the exact method.
    """

    def __init__(
        self,
        logits: Tensor,
        terms: Sequence[PairwiseTerm],
        shape: tuple[int, int] | None = None,
        tolerance: float = 1e-7,
    ) -> None:
        self.logits = logits.contiguous()
        self.terms = terms
        self.shape = shape
        # Terms that one native call fuses, and terms whose messages are added to them.
        self.fused: _NativeTerms | None = None
        self.separate: list[tuple[Tensor, Kernel]] = []
        # A NaN or infinite position has a NaN or no distance to everything: so has the message.
        self.undefined = self.logits.numel() == 0 or not self._positions_are_finite()
        if self.undefined:
            return
        if native() is not None:
            self.fused = _NativeTerms(self.logits, shape)
        for term in terms:
            if self.fused is not None and term.method != "exact":
                self.fused.add(term)
                continue
            if self.fused is not None and term.features is not None:
                kernel = exact_kernel(term.features, term.normalization, tolerance)
            else:
                kernel = reference_kernel(term, self.logits, shape)
            self.separate.append((term.mixing.to(logits.dtype), kernel))

    def _positions_are_finite(self) -> bool:
        for term in self.terms:
            if term.method == "lattice" and term.features is not None:
                if not term.span.isfinite().all():
                    return False
                require_reach(term.span, term.features.dtype)
        return True

    def kernels(self) -> list[Kernel]:
        """K~ of every term, with its transpose."""
        separate = iter(self.separate)
        return [
            reference_kernel(term, self.logits, self.shape)
            if self.fused is not None and term.method != "exact"
            else next(separate)[1]
            for term in self.terms
        ]

    def step(self, belief: Tensor) -> Tensor:
        """logits + sum of the messages sent by ``belief`` [L, N] -> scores [L, N]."""
        if self.undefined:
            return torch.full_like(self.logits, math.nan)
        belief = belief.contiguous()
        if self.fused is None:
            scores = self.logits.clone()
        else:
            scores = self.fused.mean_field(self.logits, belief, 1)
        for mixing, kernel in self.separate:
            scores += mix(mixing, kernel(belief))
        return scores

    def belief(self, scores: Tensor) -> Tensor:
        """softmax over labels [L, N], bit for bit what ``run`` computes between iterations."""
        if native() is None or scores.numel() == 0:
            # Down the columns PyTorch's chunks, and so the bits, depend on the number of threads.
            return torch.softmax(scores.t().contiguous(), 1).t()
        return torch.ops.segfast._softmax(scores.contiguous())

    def run(self, iterations: int, states: Tensor | None = None, softmax: bool = False) -> Tensor:
        """Mean field from softmax(logits) -> scores, or belief if ``softmax``.

        ``states`` [S, L, N] takes the scores after iterations 1 to S <= ``iterations``.
        """
        if self.fused is not None and not self.separate and states is None:
            return self.fused.mean_field(self.logits, None, iterations, softmax)
        scores = self.logits.clone()
        for i in range(iterations):
            scores = self.step(self.belief(scores))
            if states is not None and i < len(states):
                states[i] = scores
        return self.belief(scores) if softmax else scores


def filter_features(
    values: Tensor, features: Tensor, method: str, normalization: str, tolerance: float
) -> Tensor:
    """K~ values for values [C, N] and features [F, N] -> [C, N]."""
    term = PairwiseTerm(features, torch.ones((), dtype=values.dtype), normalization, method)
    warn_if_slow(values, [term], 1)
    return Engine(torch.zeros_like(values), [term], None, tolerance).step(values)
