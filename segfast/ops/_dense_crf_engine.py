"""Mean-field inference for one image, prepared once and stepped as often as wanted.

    scores = logits + sum_m M_m K~_m Q,     Q = softmax(scores)

M_m is the mixing of term m: -mu W_m (a scalar, one weight per label, or a matrix). The compiled
kernels serve where they are there, kernels/dense_crf/reference.py elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segfast._native import native
from segfast.kernels.dense_crf import reference

StepCallback = Callable[[Tensor], None]
TINY = 1e-20  # added to the norm before its reciprocal
# Radius of the spatial convolution in sigmas: what is cut off is below the dtype's rounding.
CONV_RADIUS = {torch.float32: 5.5, torch.float64: 8.5}
COORDINATE_LIMIT = {torch.float32: 2.0**22, torch.float64: 2.0**30}
LINE = 1024  # pixels per "line" where there is no image shape

torch.library.define("segfast::_feature_range", "(Tensor features) -> Tensor")
torch.library.define(
    "segfast::_lattice_build", "(Tensor features, Tensor range, int width) -> Tensor[]"
)
torch.library.define(
    "segfast::_mean_field",
    "(Tensor logits, Tensor? belief, int width, Tensor[] lattices, Tensor[] convs, int iterations)"
    " -> Tensor",
)
torch.library.define("segfast::_softmax", "(Tensor scores) -> Tensor")
torch.library.define(
    "segfast::_exact_filter", "(Tensor values, Tensor features, float tolerance) -> Tensor"
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


def mix(mixing: Tensor, message: Tensor) -> Tensor:
    """mixing ([] | [L] | [L, L]) applied to a message [L, N]; same bits for any thread count."""
    if mixing.dim() == 2:  # a matrix product would sum in an order of its own
        return sum(mixing[:, k, None] * row for k, row in enumerate(message))
    return mixing.reshape(-1, 1) * message


def feature_range(features: Tensor) -> Tensor:
    """Lowest and highest of each feature [F, N] -> [2, F] float64; not finite if any value is not."""
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
    inverse = (norm + TINY).reciprocal()
    before = {"before": inverse, "symmetric": inverse.sqrt()}.get(normalization)
    after = {"after": inverse, "symmetric": inverse.sqrt()}.get(normalization)
    return before, after


class _ExactKernel:
    """K~ by summing every pair."""

    def __init__(self, features: Tensor, normalization: str, tolerance: float) -> None:
        self.features = features.contiguous()
        self.tolerance = tolerance
        self.before: Tensor | None = None
        self.after: Tensor | None = None
        if normalization != "none":
            norm = self._raw(features.new_ones(1, features.shape[1]))  # [1, N]
            self.before, self.after = in_out_scales(norm, normalization)

    def _raw(self, values: Tensor) -> Tensor:
        return torch.ops.segfast._exact_filter(values.contiguous(), self.features, self.tolerance)

    def __call__(self, values: Tensor) -> Tensor:
        """[C, N] -> [C, N]"""
        y = self._raw(values if self.before is None else values * self.before)
        return y if self.after is None else y * self.after


class _NativeTerms:
    """Lattice and convolution terms as the tensor lists that segfast::_mean_field takes."""

    def __init__(self, like: Tensor, shape: tuple[int, int] | None) -> None:
        self.like, self.shape = like, shape
        self.width = LINE if shape is None else shape[1]
        self.lattices: list[Tensor] = []
        self.convs: list[Tensor] = []

    def mean_field(self, logits: Tensor, belief: Tensor | None, iterations: int) -> Tensor:
        return torch.ops.segfast._mean_field(
            logits, belief, self.width, self.lattices, self.convs, iterations
        )

    def add(self, term: PairwiseTerm) -> None:
        mixing = term.mixing.to(self.like.dtype).contiguous()
        if term.method == "conv":
            assert term.sigma is not None
            self.convs += [*self._conv(term.sigma, term.normalization), mixing]
        else:
            assert term.features is not None
            self.lattices += [*self._lattice(term.features, term.normalization), mixing]

    def _conv(self, sigma: tuple[float, float], normalization: str) -> list[Tensor]:
        assert self.shape is not None
        taps: list[Tensor] = []
        before: list[Tensor] = []
        after: list[Tensor] = []
        for size, s in zip(self.shape, sigma, strict=True):
            radius = min(math.ceil(CONV_RADIUS[self.like.dtype] * s), size - 1)
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

    def _lattice(self, features: Tensor, normalization: str) -> list[Tensor]:
        features = features.contiguous()
        *lattice, weight = torch.ops.segfast._lattice_build(
            features, feature_range(features), self.width
        )
        if normalization == "none":
            return [*lattice, weight, weight]
        ones = features.new_ones(1, features.shape[1])
        plain = _NativeTerms(self.like, self.shape)
        plain.lattices = [*lattice, weight, weight, features.new_ones(())]
        norm = plain.mean_field(torch.zeros_like(ones), ones, 1).squeeze(0)  # [N]
        before, after = in_out_scales(norm, normalization)
        if normalization == "symmetric":
            return [*lattice, *[weight * before[:, None]] * 2]
        scales = (weight if s is None else weight * s[:, None] for s in (before, after))
        return [*lattice, *scales]


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
        self.tolerance = tolerance
        self.empty = self.logits.numel() == 0
        # A NaN or infinite position has a NaN or no distance to everything: so has the message.
        self.poisoned = False
        for term in () if self.empty else terms:
            if term.method == "lattice" and term.features is not None:
                span = feature_range(term.features)
                self.poisoned |= not bool(span.isfinite().all())
                if not self.poisoned:
                    require_reach(span, term.features.dtype)
        self.native = native() is not None and not self.empty and not self.poisoned
        if self.native:
            self.group = self._native_terms([t for t in terms if t.method != "exact"])
            self.exact = [
                (t.mixing.to(logits.dtype), _ExactKernel(t.features, t.normalization, tolerance))
                for t in terms
                if t.method == "exact" and t.features is not None
            ]

    def _native_terms(self, terms: Sequence[PairwiseTerm]) -> _NativeTerms:
        group = _NativeTerms(self.logits, self.shape)
        for term in terms:
            group.add(term)
        return group

    def messages(self, belief: Tensor) -> list[Tensor]:
        """Per term mixing_m (K~_m belief), each [L, N]."""
        return [
            Engine(torch.zeros_like(self.logits), [term], self.shape, self.tolerance).step(belief)
            for term in self.terms
        ]

    def step(self, belief: Tensor) -> Tensor:
        """logits + sum of the messages sent by ``belief`` [L, N] -> scores [L, N]."""
        if self.empty or self.poisoned:
            return torch.full_like(self.logits, math.nan)
        if not self.native:
            messages = [mix(t.mixing, self._reference(t, belief)) for t in self.terms]
            return sum(messages, self.logits)
        belief = belief.contiguous()
        scores = self.group.mean_field(self.logits, belief, 1)
        for mixing, kernel in self.exact:
            scores += mix(mixing, kernel(belief))
        return scores

    def belief(self, scores: Tensor) -> Tensor:
        """softmax over labels [L, N], bit for bit what ``run`` computes between iterations."""
        if native() is None or scores.numel() == 0:
            return torch.softmax(scores, 0)
        return torch.ops.segfast._softmax(scores.contiguous())

    def run(self, iterations: int, on_step: StepCallback | None = None) -> Tensor:
        """Mean field from softmax(logits); ``on_step(scores)`` after each iteration."""
        if self.native and not self.exact and on_step is None:
            return self.group.mean_field(self.logits, None, iterations)
        scores = self.logits
        for _ in range(iterations):
            scores = self.step(self.belief(scores))
            if on_step is not None:
                on_step(scores)
        return scores

    def _reference(self, term: PairwiseTerm, values: Tensor) -> Tensor:
        if term.method == "conv":
            assert self.shape is not None
            assert term.sigma is not None
            planes = values.reshape(-1, *self.shape)  # [L, H, W]
            y = reference.spatial_filter(planes, term.sigma, term.normalization)
            return y.reshape_as(values)
        assert term.features is not None
        filter_ = (
            reference.lattice_filter if term.method == "lattice" else reference.gaussian_filter
        )
        return filter_(values, term.features, term.normalization)


def filter_features(
    values: Tensor, features: Tensor, method: str, normalization: str, tolerance: float
) -> Tensor:
    """K~ values for values [C, N] and features [F, N] -> [C, N]."""
    term = PairwiseTerm(features, torch.ones((), dtype=values.dtype), normalization, method)
    return Engine(torch.zeros_like(values), [term], None, tolerance).step(values)
