"""Every .cu compiles for every architecture, and keeps its values in registers."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ptxas

KERNELS = sorted((ptxas.ROOT / "kernels").rglob("*.cu"))
DEMOS = sorted((ptxas.ROOT / "tests/kernels/host_cuda/demos").glob("*.cu"))

REPORT = """
ptxas info    : Compiling entry function '_Z4foldPf' for 'sm_90a'
ptxas info    : Function properties for _Z4foldPf
    24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 512 bytes smem
ptxas info    : Compile time = 31.609 ms
ptxas info    : Compiling entry function '_Z5plainPf' for 'sm_75'
ptxas info    : Function properties for _Z5plainPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, 356 bytes cmem[0]
"""


def name(path: Path) -> str:
    return str(path.relative_to(ptxas.ROOT))


@pytest.fixture
def nvcc() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize("source", [*KERNELS, *DEMOS], ids=name)
def test_kernels_stay_in_registers(source: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda a: ptxas.kernels(source, a), ptxas.ARCHITECTURES)
        for architecture, kernels in zip(ptxas.ARCHITECTURES, reports, strict=True):
            assert kernels, f"no kernel in the report for {architecture}"
            for kernel in kernels:
                assert (kernel.spills, kernel.stack) == (0, 0), kernel


@pytest.mark.usefixtures("nvcc")
def test_spills_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "big.cu"
    source.write_text("""
        __global__ void __launch_bounds__(1024, 2) big(float* x, int n) {
          float v[64];
          for (int i = 0; i < 64; ++i) v[i] = x[i * n];
          for (int r = 0; r < n; ++r)
            for (int i = 0; i < 64; ++i) v[i] = v[i] * v[(i + 1) % 64] + x[r];
          for (int i = 0; i < 64; ++i) x[i * n] = v[i];
        }
    """)
    (kernel,) = ptxas.kernels(source, ptxas.ARCHITECTURES[0])
    assert kernel.spills > 0
    assert kernel.stack > 0


def test_the_report_is_read() -> None:
    assert ptxas.parse(REPORT) == [
        ptxas.Kernel("_Z4foldPf", "90a", registers=255, stack=24, spills=20, shared=512),
        ptxas.Kernel("_Z5plainPf", "75", registers=18, stack=0, spills=0, shared=0),
    ]
