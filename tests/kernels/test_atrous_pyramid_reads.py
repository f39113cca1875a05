"""The CPU's pyramid reads its input once per block: counted by pages that are closed until read."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import segfast.ops  # noqa: F401  (defines the operators)
from segfast._native import native
from tests.kernels.pages import in_a_process

HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "g++")
CHANNELS = 256  # of a block of the input: kSourceChannels of kernels/dilated_conv/dense.h
SIDE, BLOCKS, RATES = 16, 3, (1, 3, 6)


def print_orders(library: str) -> None:
    """The blocks that the pyramid, and one convolution, read, in their order."""
    native()  # registers the kernels
    torch.set_num_threads(1)
    reads, part = ctypes.CDLL(library), CHANNELS * SIDE**2 * 4
    memory = mmap.mmap(-1, (BLOCKS + 1) * part)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    x = torch.frombuffer(memory, dtype=torch.float32, count=BLOCKS * part // 4)
    x = x.view(1, BLOCKS * CHANNELS, SIDE, SIDE).normal_()
    weights = [torch.randn(8, BLOCKS * CHANNELS, 3, 3) for _ in RATES]
    operators = torch.ops.segfast

    def pyramid() -> torch.Tensor:
        result: torch.Tensor = operators._atrous_pyramid_dense(
            x, weights, None, RATES, None, None, False
        )
        return result

    def convolution() -> torch.Tensor:
        rest = (SIDE, SIDE, 1, 1, 1, 1, 1, 1, 1)
        result: torch.Tensor = operators._dilated_conv_dense(x, weights[0], None, *rest)
        return result

    found, into = {}, (ctypes.c_int * 1000)()
    for compute in (pyramid, convolution):
        expected = compute()
        reads.watch(
            ctypes.c_size_t(address), ctypes.c_size_t(part), BLOCKS,
            ctypes.c_size_t(mmap.PAGESIZE), into, len(into),
        )  # fmt: skip
        y = compute()
        found[compute.__name__] = list(into[: reads.stop()])
        assert torch.equal(y, expected)
    print(json.dumps(found))


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler")
def test_every_block_of_the_input_serves_all_branches_at_once(
    compiled_kernels: None, tmp_path: Path
) -> None:
    library = str(tmp_path / "page_reads.so")
    source = str(HERE / "page_reads.cpp")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    found = json.loads(in_a_process(__name__, f"print_orders({library!r})"))
    assert found["pyramid"] == list(range(BLOCKS))
    # One convolution reads all of them for each of its blocks of 96 positions: what counts counts.
    assert found["convolution"] == 3 * list(range(BLOCKS))
