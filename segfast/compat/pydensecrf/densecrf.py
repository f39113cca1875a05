"""Fully connected CRFs with Gaussian pairwise terms, under pydensecrf's names and conventions.

    K_ij  = exp(-|f_i - f_j|^2 / 2)        f: features; K~: K normalised, self-message kept
    E(Q)  = -w K~Q | +v * (K~Q) | +1/2 (A + A^T) K~Q        compat: number | vector | matrix
    Q     = softmax(-U - sum E(Q of the step before)),      Q before the first step: softmax(-U)

Mind the signs: a number is a Potts weight, larger is smoother; a vector or matrix is an *energy*,
so the Potts model is `-w` per label, or `-w * I`. Source: Kraehenbuehl and Koltun, NIPS 2011
(mean field) and ICML 2013 (symmetric normalisation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segfast.compat.pydensecrf import eigen
from segfast.compat.pydensecrf._arguments import (
    Float32,
    as_array,
    as_count,
    as_finite_float32,
    as_sigmas,
    describe,
    divided,
    require_finite,
)
from segfast.compat.pydensecrf._terms import (
    OPERATOR_NAMES,
    ConstUnary,
    KernelType,
    LogisticUnary,
    NormalizationType,
    Unary,
    as_member,
    as_mixing,
)
from segfast.ops._dense_crf_check import MAX_FEATURES
from segfast.ops._dense_crf_engine import Engine, warn_if_slow
from segfast.ops._dense_crf_look import warn_about_span
from segfast.ops._dense_crf_terms import PairwiseTerm

__all__ = [
    "CONST_KERNEL",
    "DIAG_KERNEL",
    "FULL_KERNEL",
    "NORMALIZE_AFTER",
    "NORMALIZE_BEFORE",
    "NORMALIZE_SYMMETRIC",
    "NO_NORMALIZATION",
    "ConstUnary",
    "DenseCRF",
    "DenseCRF2D",
    "KernelType",
    "LogisticUnary",
    "NormalizationType",
    "Unary",
    "eigen",
]

Numbers = float | Sequence[float] | npt.NDArray[Any]

CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType

SMALLEST = 1e-20  # belief below which klDivergence cuts the logarithm off, as pydensecrf does


class DenseCRF:
    """A CRF over `nvar` variables, each pair connected, with `nlabels` labels.

    Args:
        nvar, nlabels: whole numbers >= 1.

    Arrays may be of any real dtype and memory order, read-only, or torch tensors; they are copied
    and computed in float32. Without a unary term all energies are 0. Computing releases the GIL;
    results have the same bits for any number of threads.

    Example:
        >>> import numpy as np
        >>> from segfast.compat.pydensecrf.densecrf import DenseCRF
        >>> crf = DenseCRF(4, 2)
        >>> crf.setUnaryEnergy(np.array([[0.1, 0.2, 2.0, 0.1], [2.0, 1.0, 1.9, 3.0]]))
        >>> crf.addPairwiseEnergy(np.arange(4.0)[None], compat=3)
        >>> np.argmax(crf.inference(5), axis=0)
        array([0, 0, 0, 0])
    """

    def __init__(self, nvar: int, nlabels: int) -> None:
        self._nvar = as_count(nvar, "nvar", 1)
        self._nlabels = as_count(nlabels, "nlabels", 1)
        self._shape: tuple[int, int] | None = None
        self._logits: Tensor | None = None  # -U [L, N]
        self._terms: list[PairwiseTerm] = []
        self._engine: Engine | None = None

    def setUnary(self, u: Unary) -> None:
        """Sets the unary term, a `ConstUnary` or `LogisticUnary` of this CRF's size.

        `u` may be set on several CRFs. Raises TypeError for anything else, ValueError for a size
        that does not fit.
        """
        if not isinstance(u, Unary):
            raise TypeError(f"u must be a ConstUnary or LogisticUnary, got {describe(u)}")
        self._set_energy(u.energy(), "u")

    def setUnaryEnergy(self, u: object, f: object = None) -> None:
        """Sets the unary energies -log p(label), or with `f` the logistic ones `u @ f`.

        Args:
            u: energies [nlabels, nvar], or any shape [nlabels, ...] with nvar pixels (for a
                `DenseCRF2D`: [nlabels, h, w]); with `f` weights [nlabels, d].
            f: None, or features [d, nvar].

        Raises:
            ValueError: another shape, or values that are not finite. TypeError: no real numbers.
        """
        self.setUnary(ConstUnary(u) if f is None else LogisticUnary(u, f))

    def addPairwiseEnergy(
        self,
        features: object,
        compat: Numbers,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
        *,
        method: str = "lattice",
    ) -> None:
        """Adds a Gaussian pairwise term over any features.

        Args:
            features: f [d, nvar], already divided by the standard deviations; d up to 32 with
                the lattice.
            compat: Potts weight, or an energy per label [nlabels] or pair [nlabels, nlabels]
                (symmetrised); mind the signs, see the module's description.
            kernel: one of the kernel types; without effect.
            normalization: one of the normalisation types.
            method: "lattice" (pydensecrf's approximation) or "exact" (every pair is summed).

        Raises:
            ValueError: a wrong shape, values that are not finite, an unknown kernel,
            normalisation or method. TypeError: something that is no real number.
        """
        array = as_finite_float32(features, "features", f"features [d, {self._nvar}]")
        if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] != self._nvar:
            raise ValueError(
                f"features must be [d, nvar] = [d, {self._nvar}] with d >= 1, got {describe(array)}"
            )
        self._add_term(array, compat, kernel, normalization, method, ("lattice", "exact"))

    def inference(self, n_iterations: int) -> Float32:
        """Mean field: the belief Q [nlabels, nvar] after so many parallel updates (0: softmax(-U)).

        Returns float32 probabilities with strides (4, 4 * nlabels), as pydensecrf lays them out.
        Raises ValueError for a negative or fractional number.
        """
        count = as_count(n_iterations, "n_iterations", 0)
        self._warn_if_slow(count)
        return _label_last(self._prepared().run(count, softmax=True))

    def startInference(self) -> tuple[Float32, Float32, Float32]:
        """Q = softmax(-U), and two empty matrices that `stepInference` asks for and never uses."""
        return self.inference(0), np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def stepInference(self, Q: Float32, tmp1: object, tmp2: object) -> None:
        """One update of Q, in place.

        Args:
            Q: what `startInference` returned, or any writable float32 array [nlabels, nvar].
            tmp1, tmp2: ignored; they are arguments so that loops run unchanged.

        Raises:
            TypeError, ValueError: Q is no such array or holds values that are not finite.
        """
        belief = self._checked_belief(Q)
        if not Q.flags.writeable:
            raise ValueError("Q is updated in place: it must be writable, got a read-only array")
        self._warn_if_slow(1)
        engine = self._prepared()
        np.copyto(Q, engine.belief(engine.step(belief)))

    def klDivergence(self, Q: Float32) -> float:
        """What mean field minimises, up to constants; falls from step to step, may be negative.

            sum Q log Q + sum U Q + sum_m sum Q E_m(Q)

        As in pydensecrf it is not KL(Q || P): the partition function is missing and pairwise
        energies count twice. Compare values of one CRF. Q and errors as in `stepInference`.
        """
        belief = self._checked_belief(Q)
        scores = self._prepared().step(belief)  # -U - sum E_m(Q) [L, N]
        energy = belief.clamp_min(SMALLEST).log_().sub_(scores)
        return float(energy.mul_(belief).sum(dtype=torch.float64))

    def _set_energy(self, energy: Float32, name: str) -> None:
        pixels = (self._nvar,) if self._shape is None else self._shape
        fits = energy.ndim >= 2 and energy.shape[0] == self._nlabels
        fits = fits and int(np.prod(energy.shape[1:])) == self._nvar
        if self._shape is not None and energy.ndim != 2:
            fits = fits and energy.shape[1:] == self._shape  # [L, w, h] would scramble the pixels
        if not fits:
            more = (
                "" if self._shape is None else f" or [nlabels, h, w] = {(self._nlabels, *pixels)}"
            )
            raise ValueError(
                f"{name} must be energies [nlabels, nvar] = {(self._nlabels, self._nvar)}{more}, "
                f"got shape {energy.shape}"
            )
        self._logits = -torch.from_numpy(energy.reshape(self._nlabels, self._nvar))
        if self._engine is not None:
            self._engine.logits = self._logits  # lattices and normalisations stay valid

    def _add_term(
        self,
        features: Float32 | None,
        compat: Numbers,
        kernel: int,
        normalization: int,
        method: str,
        methods: Sequence[str],
        sigma: tuple[float, float] | None = None,
    ) -> None:
        as_member(KernelType, kernel, "kernel")
        name = OPERATOR_NAMES[as_member(NormalizationType, normalization, "normalization")]
        if method not in methods:
            raise ValueError(f"method must be one of {', '.join(methods)}, got {method!r}")
        if method == "lattice" and features is not None and len(features) > MAX_FEATURES:
            raise ValueError(
                f"features must have at most {MAX_FEATURES} dimensions, positions included, with "
                f"method='lattice', got {len(features)}; method='exact' takes more"
            )
        self._terms.append(
            PairwiseTerm(
                None if features is None else torch.from_numpy(features),
                as_mixing(compat, self._nlabels),
                name,
                method,
                sigma,
            )
        )
        self._engine = None

    def _checked_belief(self, Q: object) -> Tensor:
        """A copy, [L, N], whatever the strides of Q are."""
        wanted = f"a float32 array [nlabels, nvar] = {(self._nlabels, self._nvar)}"
        if not isinstance(Q, np.ndarray):
            raise TypeError(f"Q must be {wanted}, got {describe(Q)}")
        if Q.dtype != np.float32 or Q.shape != (self._nlabels, self._nvar):
            error = ValueError if Q.dtype == np.float32 else TypeError
            raise error(f"Q must be {wanted}, got {describe(Q)}")
        require_finite(Q, "Q")
        return torch.from_numpy(np.array(Q, order="C"))

    def _warn_if_slow(self, iterations: int) -> None:
        exact = any(term.method == "exact" for term in self._terms)
        shape = torch.Size((self._nlabels, self._nvar))
        warn_if_slow(f"dense CRF, {iterations} iterations,", shape, exact, iterations)

    def _prepared(self) -> Engine:
        """The terms with what is computed from them once (lattices, normalisations)."""
        if self._engine is None:
            logits = self._logits
            if logits is None:
                logits = torch.zeros(self._nlabels, self._nvar)
            self._engine = Engine(logits, self._terms, self._shape)
        return self._engine


class DenseCRF2D(DenseCRF):
    """A CRF over the pixels of an image, **width first**: nvar = h * w, rows one after another.

    Args:
        w, h, nlabels: whole numbers >= 1.

    Example:
        >>> import numpy as np
        >>> from segfast.compat.pydensecrf.densecrf import DenseCRF2D
        >>> image = np.zeros((48, 64, 3), np.uint8)
        >>> image[:, 32:] = 200
        >>> crf = DenseCRF2D(64, 48, 2)
        >>> crf.setUnaryEnergy(np.random.default_rng(0).random((2, 48 * 64), np.float32))
        >>> crf.addPairwiseGaussian(sxy=3, compat=3)
        >>> crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
        >>> np.argmax(crf.inference(5), axis=0).reshape(48, 64).shape
        (48, 64)
    """

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        width, height = as_count(w, "w", 1), as_count(h, "h", 1)
        super().__init__(width * height, nlabels)
        self._shape = (height, width)

    def addPairwiseGaussian(
        self,
        sxy: Numbers,
        compat: Numbers,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
        *,
        method: str = "lattice",
    ) -> None:
        """Adds the smoothness term, f = (x / sx, y / sy).

        Args:
            sxy: standard deviation in pixels, one number or (sx, sy).
            compat, kernel, normalization: as in `addPairwiseEnergy`.
            method: "lattice" (pydensecrf's result), "conv" (separable convolution: exact) or
                "exact" (every pair is summed: the slow way to the same).

        Raises as `addPairwiseEnergy`, and ValueError for deviations that are not positive.
        """
        sx, sy = as_sigmas(sxy, "sxy", 2, "sx, sy")
        features = None if method == "conv" else self._positions(sx, sy)
        methods = ("lattice", "conv", "exact")
        self._add_term(features, compat, kernel, normalization, method, methods, (sy, sx))

    def addPairwiseBilateral(
        self,
        sxy: Numbers,
        srgb: Numbers,
        rgbim: object,
        compat: Numbers,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
        *,
        method: str = "lattice",
    ) -> None:
        """Adds the appearance term, f = (x / sx, y / sy, I_c / s_c).

        Args:
            sxy: standard deviation in pixels, one number or (sx, sy).
            srgb: standard deviation in image units, one number or one per channel.
            rgbim: image [h, w, channels] or [h, w]; any real dtype and number of channels.
            compat, kernel, normalization, method: as in `addPairwiseEnergy`.

        Raises as `addPairwiseEnergy`, and ValueError for deviations that are not positive or an
        image of another size. Warns when a float image spans less than two srgb: 13 on a [0, 1]
        image switches colour off.
        """
        assert self._shape is not None
        height, width = self._shape
        wanted = f"an image [h, w, channels] = [{height}, {width}, channels]"
        image = as_array(rgbim, "rgbim", wanted)
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim != 3 or image.shape[:2] != (height, width) or image.shape[2] < 1:
            raise ValueError(
                f"rgbim must be {wanted}, got {describe(rgbim)}; "
                f"the constructor takes the width first: DenseCRF2D(w, h, nlabels)"
            )
        colours = np.ascontiguousarray(image.reshape(-1, image.shape[2]).T)  # [C, N]
        channels = len(colours)
        deviations = as_sigmas(srgb, "srgb", channels, f"one per channel of rgbim: {channels}")
        if image.dtype.kind == "f":
            require_finite(colours, "rgbim")
            warn_about_span(float(np.ptp(colours)), deviations, "rgbim", "srgb")
        positions = self._positions(*as_sigmas(sxy, "sxy", 2, "sx, sy"))
        features = np.concatenate([positions, divided(colours, deviations, ["srgb"] * channels)])
        self._add_term(features, compat, kernel, normalization, method, ("lattice", "exact"))

    def _positions(self, sx: float, sy: float) -> Float32:
        """(x / sx, y / sy), [2, h * w]: x first, which the lattice (not the model) depends on."""
        assert self._shape is not None
        y, x = np.indices(self._shape, np.float32).reshape(2, -1)
        return divided(np.stack([x, y]), (sx, sy), ("sxy", "sxy"))


def _label_last(belief: Tensor) -> Float32:
    """[L, N] as a label-first view of a label-last buffer: pydensecrf's layout."""
    return belief.t().contiguous().t().numpy()
