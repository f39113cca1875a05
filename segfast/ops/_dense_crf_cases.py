"""Every configuration of the exact filter's Triton kernels, to be compiled without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton.language as tl

from segfast._triton_resources import Case
from segfast.kernels.dense_crf import triton_configurations as tiles
from segfast.kernels.dense_crf.triton_exact import (
    filter_kernel,
    list_kernel,
    pack_kernel,
    reach_kernel,
    unpack_kernel,
)
from segfast.ops._dense_crf_triton import PACK_CHANNELS, PACK_PIXELS, REACH_BLOCK

TYPES = {
    "packed": "*fp16",
    "left": "*fp16",
    "right": "*fp16",
    "order": "*i64",
    "lists": "*i32",
    "counts": "*i32",
    "tolerance": "fp32",
}
POINTERS = {"features", "values", "sums", "out", "boxes", "reach", "scale", "unscale", "special"}
POINTERS |= {"centred", "centres"}
MULTIPLES = {"slots", "width"}  # of 16
DIMENSIONS = (5, 2, 32)  # a colour image's, positions alone, the most


def cases() -> Iterator[Case]:
    for chosen in tiles.FILTER:
        for dims in DIMENSIONS:
            constants = {
                "F": dims,
                "AXES": tiles.axes(dims),
                "DEPTH": tiles.depth(dims),
                "INDEX": tl.int64 if dims == 2 else tl.int32,
                "BLOCK_M": chosen.block_m,
                "BLOCK_C": chosen.block_c,
            }
            tile = f"{chosen.block_m}x{chosen.block_c}x{tiles.TILE}"
            name = (
                f"exact_filter float32 {tile} warps {chosen.num_warps} "
                f"stages {chosen.num_stages} dims {dims}"
            )
            options = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages}
            yield _case(name, filter_kernel, constants, options, True)
    for moment in (False, True):
        constants = {"MOMENT": moment, "BLOCK": REACH_BLOCK}
        yield _case(f"exact_reach moment {moment}", reach_kernel, constants, {}, False)
    yield _case("exact_list", list_kernel, {"BLOCK": REACH_BLOCK}, {}, False)
    block = {"BLOCK": PACK_PIXELS, "BLOCK_C": PACK_CHANNELS}
    yield _case("exact_pack", pack_kernel, {**block, "values_pixel": 1}, {}, False)
    yield _case("exact_unpack", unpack_kernel, block, {}, False)


def _case(
    name: str, kernel: Any, constants: dict[str, Any], options: dict[str, int], matrix: bool
) -> Case:
    types = {
        argument: TYPES.get(argument, "*fp32" if argument in POINTERS else "i32")
        for argument in kernel.arg_names
        if argument not in constants
    }
    pointers = {argument for argument, kind in types.items() if kind.startswith("*")}
    aligned = frozenset(pointers | (MULTIPLES & set(types)))
    return Case(name, kernel, types, constants, aligned, options, matrix)
