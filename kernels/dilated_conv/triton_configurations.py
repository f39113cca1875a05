"""Tiles of the Triton kernels, and how work is cut: pure functions of sizes; no tuning at run time.

A dense convolution and its gradients are products of matrices [m, k] x [k, n], one for each
rectangle of constant live taps (m: positions, k: taps times channels) or for each tap of the weight
gradient (m, n: channels, k: live positions). A product is cut into tiles of BLOCK_M x BLOCK_N, and
where these do not fill a GPU, its k into pieces, which a second kernel sums in their order.

float32 is multiplied as three products of tf32: an error near 2^-22, which the sums of float32
outweigh. float16 and bfloat16 are multiplied as they are, and summed in float32.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple

# The plan leaves dense float32 to cuDNN until it is measured on a GPU. Its tiles, for one launch of
# all layers, too, are tested and compiled as the others are, so that it can be.
DTYPES = ("bfloat16", "float16", "float32")
OLDEST = (8, 0)  # compute capability
SUM_ROWS = 16  # rows of a tile that a program of the second kernel sums


@dataclass(frozen=True)
class Configuration:
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    speed: float  # of the matrix units with these tiles, against the largest in half precision
    resident: int = 1  # programs of a multiprocessor that are to run at once; proven by compiling


_HALF = (
    Configuration(128, 128, 64, 8, 3, 1.0),
    Configuration(64, 128, 64, 4, 4, 0.75),
    Configuration(128, 64, 64, 4, 4, 0.75),
    Configuration(64, 64, 64, 4, 4, 0.55),
    Configuration(128, 32, 64, 4, 4, 0.4),
    Configuration(64, 32, 64, 4, 4, 0.3),
    Configuration(64, 64, 32, 4, 4, 0.45),  # few channels
    Configuration(64, 32, 32, 4, 4, 0.25),
)
_SINGLE = (
    Configuration(128, 64, 32, 8, 3, 0.15),
    Configuration(64, 64, 32, 4, 3, 0.12),
    Configuration(64, 32, 32, 4, 3, 0.07),
)
TABLE: dict[tuple[str, str], tuple[Configuration, ...]] = {
    ("dense", "bfloat16"): _HALF,
    ("dense", "float16"): _HALF,
    ("dense", "float32"): _SINGLE,
    ("grad_weight", "bfloat16"): _HALF[:6],
    ("grad_weight", "float16"): _HALF[:6],
    ("grad_weight", "float32"): _SINGLE,
}
# Of one launch for all layers of a context module; block_k divides block_n.
_CONTEXT = (
    Configuration(64, 32, 32, 4, 4, 0.25, resident=4),
    Configuration(64, 64, 64, 4, 4, 0.55, resident=2),
    Configuration(128, 64, 64, 4, 4, 0.75),
    Configuration(128, 128, 64, 8, 3, 1.0),
)
CONTEXT: dict[str, tuple[Configuration, ...]] = {
    "bfloat16": _CONTEXT,
    "float16": _CONTEXT,
    "float32": (
        Configuration(64, 32, 32, 4, 3, 0.07, resident=2),
        Configuration(64, 64, 32, 4, 3, 0.12, resident=2),
    ),
}


class Product(NamedTuple):
    """[m, k] x [k, n], where k is `parts` stretches of `length`."""

    m: int
    n: int
    parts: int
    length: int

    def tiles(self, c: Configuration) -> int:
        return -(-self.m // c.block_m) * -(-self.n // c.block_n)

    def steps(self, c: Configuration) -> int:
        """Products of tiles that follow one another."""
        return self.parts * -(-self.length // c.block_k)


class Cut(NamedTuple):
    configuration: Configuration
    pieces: tuple[int, ...]  # of each product's k


ALIGNMENT = 16  # of channels: an even number of 16-byte vectors
# Where it does not divide the output channels, every element is stored alone: larger tiles spill.
MOST_UNALIGNED = 64 * 64

# A model of time that only ranks: its unit is one multiplication and addition at speed 1.
_PROGRAM = 4e6  # starting, filling the pipeline, storing a tile: while neighbours multiply
_PARTIAL = 400  # an element of a tile written in float32, and read
LAUNCH = 9e6  # another one


def cut(kind: str, dtype: str, products: tuple[Product, ...], programs: int) -> Cut:
    """The tiles and pieces that take least time where `programs` tiles are multiplied at once."""
    return _best(kind, dtype, products, programs)[1]


def least_time(kind: str, dtype: str, products: tuple[Product, ...], programs: int) -> float:
    return _best(kind, dtype, products, programs)[0]


def _best(kind: str, dtype: str, products: tuple[Product, ...], programs: int) -> tuple[float, Cut]:
    best: tuple[float, Cut] | None = None
    for c in TABLE[kind, dtype]:
        if not fits(c, products):
            continue
        whole = tuple(1 for _ in products)
        options = [whole]
        if sum(p.tiles(c) for p in products) < 2 * programs:
            total = sum(p.tiles(c) * p.steps(c) for p in products)
            for rounds in (1, 2, 3, 4):
                span = max(8, -(-total // (rounds * programs)))
                options.append(tuple(max(1, -(-p.steps(c) // span)) for p in products))
        for pieces in dict.fromkeys(options):
            time = modelled(products, c, pieces, programs)
            if best is None or time < best[0]:
                best = time, Cut(c, pieces)
    assert best is not None
    return best


def fits(c: Configuration, products: tuple[Product, ...]) -> bool:
    unaligned = any(p.n % ALIGNMENT for p in products)
    return not (unaligned and c.block_m * c.block_n > MOST_UNALIGNED)


def modelled(
    products: tuple[Product, ...], c: Configuration, pieces: tuple[int, ...], programs: int
) -> float:
    area = c.block_m * c.block_n
    step, start = area * c.block_k / c.speed, _PROGRAM / c.resident
    items = [
        (-(-p.steps(c) // s) * step + start + (_PARTIAL * area if s > 1 else 0), p.tiles(c) * s)
        for p, s in zip(products, pieces, strict=True)
    ]
    second = LAUNCH if max(pieces, default=1) > 1 else 0.0
    return makespan(items, programs) + second


def makespan(items: list[tuple[float, int]], workers: int) -> float:
    """When the last of (time, count) items is done, the longest being started first."""
    items = sorted(items, reverse=True)
    total, number = sum(time * count for time, count in items), sum(count for _, count in items)
    if number > 8 * workers:
        return total / workers + items[-1][0] / 2
    free = [0.0] * workers
    for time, count in items:
        for _ in range(count):
            heapq.heapreplace(free, free[0] + time)
    return max(free)


# ------------------------------------------------------------------------------ depthwise


@dataclass(frozen=True)
class Block:
    """Positions and channels that a program holds at once."""

    positions: int
    channels: int
    num_warps: int


# (kernel, channels_last)
DEPTHWISE: dict[tuple[str, bool], Block] = {
    ("depthwise", False): Block(512, 1, 4),
    ("depthwise", True): Block(32, 64, 4),
    ("grad_weight", False): Block(128, 1, 4),
    ("grad_weight", True): Block(8, 32, 4),
}
MOST_TAPS = 16  # that a program of the weight gradient sums


def spans(positions: int, block: int, programs: int, wanted: int) -> tuple[int, int]:
    """(positions of a split, splits) so that `programs` times that come near `wanted`."""
    splits = max(1, wanted // max(1, programs))
    span = max(8, -(-positions // splits // block)) * block
    return span, max(1, -(-positions // span))
