"""Mean field and the lattice filter on CUDA, for a whole batch at once.

    scores^(t+1) = logits + sum_m M_m K~_m Q^t,   Q^t = softmax(scores^t),   g^t = dL/dscores^t
    R_m = K~_m^T g^(t+1);   dM_m += R_m (Q^t)^T;   dQ = sum_m M_m^T R_m
    g^t = Q^t (dQ - <dQ, Q^t>);   dlogits = sum_t g^t

Between calls labels lie in rows [B N, row] of whole 16 bytes. The kernels are in
kernels/dense_crf/*.cu; what they are called with is checked in csrc/cuda/dense_crf.cpp.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from segfast.ops._dense_crf_look import Look, Seen, is_recording
from segfast.ops._dense_crf_terms import in_out_scales, require_reach, separable_gaussian

# As in dense_crf_cuda.h.
VERTICES, WORDS, STATUS, FINITE = range(4)  # of a lattice's state
TOO_FAR = 4
TILE = 64
MAX_LABELS = {torch.float32: 6136, torch.float64: 3064}
MOST_ENTRIES = 2**31 - 1
CHUNK_PIXELS, MOST_CHUNKS = 1024, 256

_LATTICE = "Tensor[] lattice"  # Lattice.tensors()
_TERMS = "Tensor[] terms, float[] gains"  # Message, one after the other
_SCHEMAS = {
    "_crf_features": "(Tensor image, float[] sigma) -> Tensor",
    "_crf_embed": "(Tensor features, int words) -> Tensor[]",
    "_crf_number": "(Tensor keys, Tensor(a!) state, int dims, int capacity) -> Tensor[]",
    "_crf_link": "(Tensor keys, Tensor order, Tensor[] tiles, Tensor weight, Tensor plan,"
    " Tensor state, int capacity) -> Tensor[]",
    "_crf_deliver": f"({_LATTICE}, Tensor scale, Tensor values, Tensor(a!) partial,"
    " Tensor(b!) tables, bool reverse) -> ()",
    "_crf_convolve": "(Tensor[] axes, Tensor values, Tensor(a!) between, Tensor(b!) out) -> ()",
    "_crf_update": "(Tensor logits, Tensor(a!) scores, Tensor(b!) result, Tensor(c!) belief,"
    f" int[] size, bool normalize, {_TERMS}) -> ()",
    "_crf_update_backward": "(Tensor belief, Tensor upstream, Tensor(a!) gradient,"
    f" Tensor(b!) total, {_TERMS}) -> ()",
    "_crf_products": "(Tensor a, Tensor b, Tensor(a!) partial, int labels) -> ()",
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"segfast::{_name}", _schema)


def row_of(labels: int, dtype: torch.dtype) -> int:
    lanes = 16 // dtype.itemsize
    return (labels + lanes - 1) // lanes * lanes


# ---------------------------------------------------------------------------------------- lattice


@dataclass(frozen=True)
class Lattice:
    """The permutohedral lattices of B images, vertices numbered through in the order of their keys.

    Entries are the K = d + 1 vertices of every pixel: M = B N K.
    """

    vertex: Tensor  # [B N, K] int32
    weight: Tensor  # [B N, K] barycentric
    pixel: Tensor  # [M] int32, entry by entry in the order of the keys
    list_weight: Tensor  # [M] likewise
    neighbours: Tensor  # [K, 2, capacity] int32; -1: none
    heads: Tensor  # [tiles] int64, a bit per entry: the first of its vertex
    base: Tensor  # [tiles] int32: the vertex before
    state: Tensor  # [3 + B] int64: vertices, words of a key, status, whether images are finite
    finite: bool  # no feature is NaN or infinite (not known with a `capacity`)

    def tensors(self) -> list[Tensor]:
        """As the kernels that deliver take them."""
        return [self.pixel, self.list_weight, self.neighbours, self.heads, self.base, self.state]

    @property
    def gain(self) -> float:
        """alpha = 1 / (1 + 2^-d)"""
        return 1 / (1 + 2.0 ** (1 - self.vertex.shape[1]))


def sorted_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of `keys` [words, M] in ascending order, the last word first to count; and whence."""
    first, order = torch.sort(keys[0], stable=True)
    if len(keys) == 1:
        return first[None], order
    for word in keys[1:]:
        order = order[torch.sort(word[order], stable=True).indices]
    return keys[:, order], order


def build(
    features: Tensor, capacity: int | None = None, ops: Any = None, look: Look | None = None
) -> tuple[Lattice, Seen | None]:
    """The lattices of `features` [B, d, N], d >= 1, B and N not 0.

    Waits once for the number of vertices, and reads `look` along; twice where keys are wider than
    63 bits. Not with `capacity`, which says for how many vertices there is room: results are NaN
    where it does not suffice, or where keys are that wide.

    Raises:
        ValueError: features reach too far for their dtype (without `capacity`: else NaN).
    """
    ops = torch.ops.segfast if ops is None else ops
    images, dims, pixels = features.shape
    entries = images * pixels * (dims + 1)
    if entries > MOST_ENTRIES:
        raise ValueError(
            f"{images} images of {pixels} pixels in {dims} dimensions have {entries} entries on "
            f"the lattice, more than 2^31: pass fewer images at a time"
        )
    words, finite, seen = 1, True, None
    while True:
        keys, weight, plan, state = ops._crf_embed(features, words)
        keys, order = sorted_keys(keys)
        room = 0 if capacity is None else max(1, min(capacity, entries))
        tiles = ops._crf_number(keys, state, dims, room)  # heads, base
        if capacity is not None:
            break
        looks = state.new_empty(0) if look is None else look.numbers
        numbers = torch.cat([state.double(), looks.double()]).tolist()  # the one wait
        found, along = [int(x) for x in numbers[: len(state)]], numbers[len(state) :]
        seen = None if look is None else look.read(along)
        if found[STATUS] & TOO_FAR:
            usable = features[torch.tensor(found[FINITE:], dtype=torch.bool)]
            require_reach(torch.stack(torch.aminmax(usable.transpose(0, 1).flatten(1), dim=1))
                          .double().cpu(), features.dtype)  # fmt: skip
        room, finite = found[VERTICES], all(found[FINITE:])
        if found[WORDS] <= words:
            break
        words = found[WORDS]
    linked = ops._crf_link(keys, order, tiles, weight, plan, state, room)
    vertex, pixel, list_weight, neighbours = linked
    heads, base = tiles
    lattice = Lattice(vertex, weight, pixel, list_weight, neighbours, heads, base, state, finite)
    return lattice, seen


# ------------------------------------------------------------------------------------------ terms


class Message(Protocol):
    """A pairwise kernel as the updates see it. Its tensors: vertex, weight, scale, rows, state."""

    gain: float

    def send(self, values: Tensor, transpose: bool) -> None:
        """K~ values, or K~^T values, of rows [B N, row], to where `receive` finds them."""

    def receive(self, transpose: bool) -> tuple[Tensor, ...]: ...


class LatticeMessage:
    """K~ = after S B S^T before."""

    def __init__(self, lattice: Lattice, row: int, normalization: str, ops: Any) -> None:
        self.lattice, self.ops, self.gain = lattice, ops, lattice.gain
        self.nothing = lattice.weight.new_empty(0)
        self.before = self.after = self.nothing
        if normalization != "none":
            scales = in_out_scales(self._mass(), normalization)
            self.before, self.after = (self.nothing if s is None else s for s in scales)
        self._reserve(row)

    def _reserve(self, row: int) -> None:
        weight, tiles = self.lattice.weight, len(self.lattice.heads)
        capacity = self.lattice.neighbours.shape[2]
        self.tables = weight.new_empty(2, capacity, row)
        self.partial = weight.new_empty(2, tiles, row)

    def _mass(self) -> Tensor:
        """n = K 1, [B N]."""
        weight, images = self.lattice.weight, len(self.lattice.state) - FINITE
        row = row_of(1, weight.dtype)
        self._reserve(row)
        self.send(weight.new_ones(len(weight), row), False)
        mass = weight.new_empty(images, 1, len(weight) // images)  # [B, 1, N]
        update(self.ops, [(self, weight.new_ones(1))], scores=mass)
        return mass.flatten()

    def send(self, values: Tensor, transpose: bool) -> None:
        scale = self.after if transpose else self.before
        self.ops._crf_deliver(
            self.lattice.tensors(), scale, values, self.partial, self.tables, transpose
        )

    def receive(self, transpose: bool) -> tuple[Tensor, ...]:
        lattice = self.lattice
        rows = self.tables[lattice.vertex.shape[1] % 2]
        scale = self.before if transpose else self.after
        return lattice.vertex, lattice.weight, scale, rows, lattice.state


@functools.lru_cache(maxsize=64)
def _kept_gaussian(
    shape: tuple[int, int], sigma: tuple[float, float], normalization: str, dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:  # fmt: skip
    """On the device for later calls, on whichever stream: hence the wait."""
    axes = separable_gaussian(shape, sigma, normalization, dtype, device)
    if device.type == "cuda" and not is_recording():
        torch.cuda.current_stream(device).synchronize()
    return axes


def _gaussian(*arguments: Any) -> list[Tensor]:
    # What is computed while a graph is recorded is not there before it runs.
    return (_kept_gaussian.__wrapped__ if is_recording() else _kept_gaussian)(*arguments)


class ConvMessage:
    """The separable Gaussian on the pixel grid."""

    gain = 1.0

    def __init__(
        self, like: Tensor, shape: tuple[int, int], sigma: Sequence[float], row: int,
        normalization: str, ops: Any,
    ) -> None:  # fmt: skip
        self.ops, self.nothing = ops, like.new_empty(0)
        axes = _gaussian(shape, (sigma[0], sigma[1]), normalization, like.dtype, like.device)
        self.taps, self.before, self.after = axes[:2], axes[2:4], axes[4:]  # (y, x) each
        self.between, self.out = (like.new_empty(len(like), *shape, row) for _ in range(2))

    def send(self, values: Tensor, transpose: bool) -> None:
        scales = (self.after, self.before) if transpose else (self.before, self.after)
        self.ops._crf_convolve([*self.taps, *scales[0], *scales[1]], values, self.between, self.out)

    def receive(self, transpose: bool) -> tuple[Tensor, ...]:
        nothing = self.nothing
        return nothing, nothing, nothing, self.out.flatten(0, 2), nothing


Term = tuple[Message, Tensor]  # and its mixing, padded: [1], [row] or [L, row]


def _flat(
    terms: Sequence[Term], transpose: bool = False, kept: Sequence[Tensor | None] = ()
) -> tuple[list[Tensor], list[float]]:
    tensors: list[Tensor] = []
    for i, (message, mixing) in enumerate(terms):
        keep = kept[i] if kept else None
        nothing = mixing.new_empty(0)
        tensors += [*message.receive(transpose), mixing, nothing if keep is None else keep]
    return tensors, [message.gain for message, _ in terms]


def update(
    ops: Any,
    terms: Sequence[Term],
    *,
    logits: Tensor | None = None,  # [B, L, N]
    scores: Tensor | None = None,  # [B, L, N]
    result: Tensor | None = None,  # [B, L, N] softmax(scores)
    belief: Tensor | None = None,  # [B N, row] the same
    normalize: bool = True,
    transpose: bool = False,
) -> None:
    """scores = logits + messages. Without `normalize` belief and result are the scores."""
    shaped = next(x for x in (logits, scores, result) if x is not None)
    nothing = shaped.new_empty(0)
    given = [nothing if x is None else x for x in (logits, scores, result, belief)]
    ops._crf_update(*given, list(shaped.shape), normalize, *_flat(terms, transpose))


def padded(mixing: Tensor, row: int) -> Tensor:
    """[] | [L] | [L, L] -> [1] | [row] | [L, row], the matrix transposed."""
    if mixing.dim() == 0:
        return mixing.reshape(1)
    return pad(mixing.t() if mixing.dim() == 2 else mixing, (0, row - len(mixing))).contiguous()


# ------------------------------------------------------------------------------------- mean field


class BatchEngine:
    """Mean field over a batch, prepared once.

    Args:
        logits: [B, L, N], contiguous, float32 or float64.
        messages: the pairwise kernels, for rows of ``row_of(L, dtype)``.
        mixings: M of each: [], [L] or [L, L].
    """

    def __init__(
        self, logits: Tensor, messages: Sequence[Message], mixings: Sequence[Tensor], ops: Any
    ) -> None:
        self.logits, self.ops, self.messages, self.mixings = logits, ops, messages, mixings
        images, labels, pixels = logits.shape
        self.points, self.row = images * pixels, row_of(labels, logits.dtype)
        self.terms = [(x, padded(m, self.row)) for x, m in zip(messages, mixings, strict=True)]

    def _rows(self) -> Tensor:
        return self.logits.new_empty(self.points, self.row)

    def _update(self, terms: Sequence[Term], **outputs: Any) -> None:
        update(self.ops, terms, logits=self.logits, **outputs)

    def run(self, iterations: int, keep_steps: bool = False, softmax: bool = False) -> Tensor:
        """Scores [S, B, L, N]: of every step if `keep_steps`, else the last, or its softmax."""
        steps = iterations if keep_steps else 1
        out = self.logits.new_empty(steps, *self.logits.shape)
        if iterations == 0 and not keep_steps:
            self._update([], **{"result" if softmax else "scores": out[0]})
        if iterations == 0:
            return out
        belief = self._rows()
        self._update([], belief=belief)
        for t in range(iterations):
            for message in self.messages:
                message.send(belief, False)
            last = t + 1 == iterations
            outputs: dict[str, Tensor] = {} if last else {"belief": belief}
            if keep_steps:
                outputs["scores"] = out[t]
            elif last:
                outputs["result" if softmax else "scores"] = out[0]
            self._update(self.terms, **outputs)
        return out

    def _beliefs(self, iterations: int, final: bool) -> list[Tensor]:
        """Q^0 to Q^(iterations - 1), and one more if `final`, in rows."""
        beliefs = [self._rows()]
        self._update([], belief=beliefs[0])
        for _ in range(iterations if final else iterations - 1):
            for message in self.messages:
                message.send(beliefs[-1], False)
            beliefs.append(self._rows())
            self._update(self.terms, belief=beliefs[-1])
        return beliefs

    def gradients(
        self, upstream: Tensor, iterations: int, softmax: bool, wanted: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """From dL/d(what `run` gave) [S, B, L, N] to the logits and the `wanted` mixings.

        Runs forward again, and keeps the belief of every iteration meanwhile.
        """
        labels = self.logits.shape[1]
        nothing = upstream.new_empty(0)
        total = torch.zeros_like(self.logits)
        if len(upstream) == 0:  # every step of no iteration
            return total, [None] * len(self.mixings)
        g = self._rows()
        beliefs = self._beliefs(iterations, softmax)
        if softmax:
            update(self.ops, [], logits=upstream[-1], belief=g, normalize=False)
            given = [nothing, nothing, nothing, g, nothing, upstream.new_ones(1), nothing]
            gradient = self._rows()
            self.ops._crf_update_backward(beliefs.pop(), nothing, gradient, total, given, [1.0])
            g = gradient
        else:
            self.ops._crf_update_backward(nothing, upstream[-1], g, total, [], [])
        transposed = [
            (x, padded(m.t() if m.dim() == 2 else m, self.row))
            for x, m in zip(self.messages, self.mixings, strict=True)
        ]
        # Sums over pixels in so many parts, by the size alone.
        chunks = min(MOST_CHUNKS, -(-self.points // CHUNK_PIXELS))
        products = [
            upstream.new_zeros(chunks, *[labels] * max(1, m.dim())) if w else None
            for m, w in zip(self.mixings, wanted, strict=True)
        ]
        kept = [None if p is None else self._rows() for p in products]
        for t in reversed(range(iterations)):
            for message in self.messages:
                message.send(g, True)
            step = upstream[t - 1] if t > 0 and len(upstream) > 1 else nothing
            tensors, gains = _flat(transposed, True, kept)
            self.ops._crf_update_backward(beliefs[t], step, g, total, tensors, gains)
            for partial, r in zip(products, kept, strict=True):
                if partial is not None and r is not None:
                    self.ops._crf_products(r, beliefs[t], partial, labels)
        sums = [None if p is None else p.double().sum(0) for p in products]
        return total, [
            s.sum() if s is not None and m.dim() == 0 else s
            for s, m in zip(sums, self.mixings, strict=True)
        ]
