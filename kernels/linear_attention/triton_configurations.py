"""Tile sizes of the Triton kernels: a table and pure functions of shapes; no tuning at run time.

A tile holds all rows of the state (R = D, taylor: D + 1), padded to BLOCK_R, so that keys and
queries are read with their norms in one piece; channels of values come in blocks of BLOCK_E.

float32 is multiplied as three products of tf32: an error near 2^-22, which the sums of float32
outweigh. (One tf32 product is 2^-11 off; exact float32 products use no matrix unit.) float16 is
multiplied as tf32, which holds every float16 and has the range that phi and sums over positions
need. bfloat16 has float32's range and is multiplied as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS = (16, 32, 64, 128, 256)
KERNELS = ("state", "state_backward", "grad_v", "read", "read_backward", "grad_state")
DOT = {"bfloat16": "bfloat16", "float16": "tf32", "float32": "float32"}
OLDEST = (8, 0)  # compute capability
# Two for each of the 132 multiprocessors of an H100; sums must not depend on the GPU.
PROGRAMS = 264
# Positions of a split per row of the state, at least: what is read, against what is written.
STATE_ROWS = 4


@dataclass(frozen=True)
class Configuration:
    dot: str  # what the matrix units multiply
    block_r: int
    block_e: int
    block_n: int
    num_warps: int
    num_stages: int


# (kernel, dtype) -> for each of ROWS: BLOCK_E, BLOCK_N, warps, stages. float32 ends at 128 rows:
# beyond, the parts of its products do not fit the registers.
TABLE: dict[tuple[str, str], tuple[tuple[int, int, int, int], ...]] = {
    ("state", "bfloat16"): (
        (64, 64, 4, 2),
        (128, 64, 8, 2),
        (256, 32, 8, 3),
        (128, 32, 8, 3),
        (64, 32, 8, 2),
    ),
    ("state", "float16"): (
        (64, 64, 4, 2),
        (128, 32, 4, 2),
        (64, 32, 8, 2),
        (128, 32, 8, 2),
        (32, 32, 8, 3),
    ),
    ("state", "float32"): ((64, 32, 4, 2), (32, 32, 8, 2), (64, 32, 8, 2), (64, 16, 8, 2)),
    ("state_backward", "bfloat16"): (
        (64, 64, 4, 2),
        (64, 64, 8, 2),
        (32, 64, 8, 2),
        (32, 32, 8, 2),
        (16, 16, 8, 2),
    ),
    ("state_backward", "float16"): (
        (32, 64, 4, 2),
        (32, 64, 8, 2),
        (32, 64, 8, 2),
        (16, 32, 8, 2),
        (16, 16, 8, 2),
    ),
    ("state_backward", "float32"): ((32, 64, 4, 2), (32, 64, 8, 2), (32, 32, 8, 2), (16, 32, 8, 2)),
    ("grad_v", "bfloat16"): (
        (64, 32, 4, 2),
        (128, 64, 8, 2),
        (128, 64, 8, 2),
        (128, 32, 8, 2),
        (64, 32, 8, 2),
    ),
    ("grad_v", "float16"): (
        (64, 32, 4, 2),
        (128, 64, 8, 2),
        (128, 32, 8, 2),
        (64, 32, 8, 2),
        (32, 16, 8, 2),
    ),
    ("grad_v", "float32"): ((64, 64, 8, 2), (64, 64, 8, 2), (64, 32, 8, 2), (64, 16, 8, 2)),
    ("read", "bfloat16"): (
        (64, 64, 4, 2),
        (128, 64, 8, 2),
        (128, 64, 8, 2),
        (128, 32, 8, 2),
        (32, 32, 8, 2),
    ),
    ("read", "float16"): (
        (64, 64, 4, 2),
        (128, 64, 8, 2),
        (128, 32, 8, 2),
        (64, 32, 8, 2),
        (64, 32, 8, 2),
    ),
    ("read", "float32"): ((64, 64, 8, 2), (64, 64, 8, 2), (64, 32, 8, 2), (64, 16, 8, 2)),
    ("read_backward", "bfloat16"): (
        (32, 64, 4, 2),
        (32, 64, 8, 2),
        (32, 32, 8, 2),
        (16, 32, 8, 2),
        (16, 16, 8, 1),
    ),
    ("read_backward", "float16"): (
        (32, 64, 4, 2),
        (32, 64, 8, 2),
        (32, 32, 8, 2),
        (16, 32, 8, 2),
        (16, 16, 8, 1),
    ),
    ("read_backward", "float32"): ((32, 64, 4, 2), (32, 64, 8, 2), (32, 32, 8, 2), (16, 32, 8, 2)),
    ("grad_state", "bfloat16"): (
        (64, 64, 8, 2),
        (128, 64, 8, 2),
        (256, 32, 8, 3),
        (128, 32, 8, 3),
        (32, 32, 8, 2),
    ),
    ("grad_state", "float16"): (
        (64, 64, 4, 2),
        (128, 32, 4, 2),
        (64, 64, 8, 2),
        (128, 32, 8, 2),
        (64, 16, 8, 2),
    ),
    ("grad_state", "float32"): ((64, 32, 4, 2), (64, 32, 4, 2), (64, 32, 8, 2), (64, 16, 8, 2)),
}


def choose(kernel: str, dtype: str, rows: int, capability: tuple[int, int]) -> Configuration | None:
    """The tiles for a state of that many rows; None where the kernels do not serve."""
    if dtype not in DOT or rows > most_rows(dtype) or capability < OLDEST:
        return None
    at = next(i for i, most in enumerate(ROWS) if rows <= most)
    return Configuration(DOT[dtype], ROWS[at], *TABLE[kernel, dtype][at])


def most_rows(dtype: str) -> int:
    return ROWS[len(TABLE[KERNELS[0], dtype]) - 1]


def splits(chosen: Configuration, positions: int, programs: int, least: int = 0) -> tuple[int, int]:
    """(positions of a split, number of splits) so that `programs` times that fill a GPU.

    A split has at least `least` positions and is a multiple of BLOCK_N.
    """
    wanted = max(1, PROGRAMS // programs)
    span = max(-(-positions // wanted), least)
    span = -(-span // chosen.block_n) * chosen.block_n
    return span, -(-positions // span)
