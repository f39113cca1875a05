"""Tiles of the exact filter's Triton kernels: tables and pure functions of sizes; no tuning.

Pixels in k-d order form tiles of TILE, and pairs of tiles form rows of ROW. A program sums, for a
row (or a part of BLOCK_M pixels) and a block of channels, over the tiles that the row sees.
"""

from __future__ import annotations

from dataclasses import dataclass

TILE = 64  # pixels whose box decides whether they are seen
ROW = 128  # pixels that see the same tiles
# Distances are products of matrices (README.md, "Distances") between rows whose pixels are at most
# sqrt(RADIUS_SQUARED) from their centres, LARGEST_PART in each feature, and whose centres are at
# most NEAR_CENTRES apart, all in features times sqrt(log2 e).
RADIUS_SQUARED = 7.95
LARGEST_PART = 2.0
PART = 2.0**-10  # the high parts of a are multiples of it: 11 bits
CENTRE = 2.0**-5  # and centres of this
LARGEST_CENTRE = 2.0**18
NEAR_CENTRES = 100.0
PRODUCT_DIMS = 6  # features; with more, products would take more registers than there are
UNROLLED = 6  # features; longer loops stay loops
OLDEST = (8, 0)  # compute capability
# Four for each of the 132 multiprocessors of an H100; sums must not depend on the GPU.
PROGRAMS = 528
LEAST_TILES = 4  # of a split, on average, where nothing is skipped
LIST_BYTES = 1 << 28  # of lists of tiles held at once


@dataclass(frozen=True)
class Configuration:
    block_m: int  # pixels of a row; in the filter all of them
    block_c: int  # channels
    num_warps: int
    num_stages: int


FILTER = (
    Configuration(128, 16, 4, 2),
    Configuration(128, 32, 4, 2),
    Configuration(128, 64, 8, 2),
)
GRADIENT = Configuration(64, 16, 4, 2)


def choose(channels: int) -> Configuration:
    """The smallest that holds the channels, or an equal share of them in the fewest blocks."""
    blocks = -(-channels // FILTER[-1].block_c)
    share = -(-channels // blocks)
    return next(c for c in FILTER if share <= c.block_c)


def axes(dims: int) -> int:
    """Of a pixel about a centre: its features and the norm in two parts."""
    return 1 << (dims + 1).bit_length()


def moments(dims: int) -> int:
    """Of a pixel in sums of gradients: its features and rho."""
    return 1 << dims.bit_length()


def depth(dims: int) -> int:
    """Of the product that gives distances: three parts of each feature; 0: there is none."""
    return max(16, 1 << (3 * dims - 1).bit_length()) if dims <= PRODUCT_DIMS else 0


def splits(programs: int, tiles: int) -> int:
    """Into how many parts a row's sum is cut, so that `programs` times that fill a GPU."""
    return max(1, min(PROGRAMS // programs, tiles // LEAST_TILES))


def rounds(batch: int, rows: int, tiles: int) -> list[tuple[int, int]]:
    """(first row, rows) of each launch: lists of at most LIST_BYTES, or of one row."""
    most = max(1, LIST_BYTES // (4 * batch * tiles))
    return [(first, min(most, rows - first)) for first in range(0, rows, most)]
