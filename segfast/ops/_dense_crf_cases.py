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
from segfast.kernels.dense_crf.triton_exact_grad import feature_gradient_kernel
from segfast.kernels.dense_crf.triton_spatial import convolve_kernel
from segfast.ops._dense_crf_exact_triton import (
    CONVOLVE_BLOCK,
    PACK_CHANNELS,
    PACK_PIXELS,
    REACH_BLOCK,
)

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
POINTERS |= {"centred", "centres", "grads", "x", "y", "taps"}
MULTIPLES = {"slots", "width"}  # of 16
DIMENSIONS = (5, tiles.PRODUCT_DIMS, 32)  # a colour image's; the most by products; the most


def cases() -> Iterator[Case]:
    for kernel, table in (
        (filter_kernel, tiles.FILTER),
        (feature_gradient_kernel, (tiles.GRADIENT,)),
    ):
        for chosen in table:
            for dims in DIMENSIONS:
                yield _configured(kernel, chosen, dims)
    for moment in (False, True):
        constants = {"MOMENT": moment, "BLOCK": REACH_BLOCK}
        yield _case(f"exact_reach moment {moment}", reach_kernel, constants, {}, False)
    yield _case("exact_list", list_kernel, {"BLOCK": REACH_BLOCK}, {}, False)
    block = {"BLOCK": PACK_PIXELS, "BLOCK_C": PACK_CHANNELS}
    yield _case("exact_pack", pack_kernel, {**block, "values_pixel": 1}, {}, False)
    yield _case("exact_unpack", unpack_kernel, block, {}, False)
    for index in (tl.int32, tl.int64):
        constants = {"BLOCK": CONVOLVE_BLOCK, "INDEX": index}
        yield _case(f"spatial {index}", convolve_kernel, constants, {}, False)


def _configured(kernel: Any, chosen: tiles.Configuration, dims: int) -> Case:
    constants = {
        "F": dims,
        "AXES": tiles.axes(dims) if kernel is filter_kernel else tiles.moments(dims),
        "INDEX": tl.int64 if dims == 32 else tl.int32,
        "BLOCK_M": chosen.block_m,
        "BLOCK_C": chosen.block_c,
    }
    if "DEPTH" in kernel.arg_names:
        constants["DEPTH"] = tiles.depth(dims)
    tile = f"{chosen.block_m}x{chosen.block_c}x{tiles.TILE}"
    title = kernel.__name__.removesuffix("_kernel")
    name = (
        f"exact_{title} float32 {tile} warps {chosen.num_warps} stages {chosen.num_stages} "
        f"dims {dims}"
    )
    options = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages}
    return _case(name, kernel, constants, options, True)


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
