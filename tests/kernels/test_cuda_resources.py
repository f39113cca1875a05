"""Every .cu compiles for every architecture, and keeps its values in registers."""

from __future__ import annotations

import os
import shutil
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


def architectures(source: Path, every: bool) -> tuple[str, ...]:
    """Those that the build was asked for; all, too, where nvcc did not build this source."""
    of_build = {kernel.architecture for kernel in ptxas.built(source)}
    return tuple(a for a in ptxas.ARCHITECTURES if every or not of_build or a in of_build)


def check(source: Path, architecture: str) -> None:
    kernels = ptxas.kernels(source, architecture)
    assert kernels, f"no kernel in the report for {architecture}"
    for kernel in kernels:
        assert (kernel.spills, kernel.stack) == (0, 0), kernel


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize("source", KERNELS, ids=name)
def test_kernels_stay_in_registers(source: Path, request: pytest.FixtureRequest) -> None:
    for architecture in architectures(source, request.config.getoption("--all")):
        check(source, architecture)


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize("source", DEMOS, ids=name)
def test_demos_stay_in_registers(source: Path, request: pytest.FixtureRequest) -> None:
    """They are for the tests of the host run alone: one architecture each, but with --all."""
    every = ptxas.ARCHITECTURES
    one = every[DEMOS.index(source) % len(every)]
    for architecture in every if request.config.getoption("--all") else (one,):
        check(source, architecture)


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


def test_the_build_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a source, a header or setup.py is newer than what it said."""
    monkeypatch.setattr(ptxas, "ROOT", tmp_path)
    for file in ("kernels/fold/fold.cu", "kernels/include/launch.cuh", "setup.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    source = tmp_path / "kernels/fold/fold.cu"
    assert ptxas.built.__wrapped__(source) == []
    report = tmp_path / "build/temp.linux/kernels/fold/fold.ptxas"
    report.parent.mkdir(parents=True)
    report.write_text(REPORT)
    now = source.stat().st_mtime
    os.utime(report, (now + 10, now + 10))
    assert [k.architecture for k in ptxas.built.__wrapped__(source)] == ["90a", "75"]
    for newer in ("kernels/fold/fold.cu", "kernels/include/launch.cuh", "setup.py"):
        os.utime(tmp_path / newer, (now + 20, now + 20))
        assert ptxas.built.__wrapped__(source) == []
        os.utime(tmp_path / newer, (now, now))


def test_the_report_is_read() -> None:
    assert ptxas.parse(REPORT) == [
        ptxas.Kernel("_Z4foldPf", "90a", registers=255, stack=24, spills=20, shared=512),
        ptxas.Kernel("_Z5plainPf", "75", registers=18, stack=0, spills=0, shared=0),
    ]
