"""Triton's kernels without a GPU: interpreted against the oracle; compiled for three targets."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from segfast import _triton_resources as resources

ROOT = Path(__file__).parents[2]
INTERPRETED = ROOT / "tests/kernels/interpreted"

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@needs_triton
@pytest.mark.slow
def test_interpreted() -> None:
    """In a process of its own: Triton interprets or compiles for all of a process."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "ignore::DeprecationWarning", str(INTERPRETED)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
    for path in INTERPRETED.glob("test_*.py"):
        assert f"{path.name} ." in done.stdout


@needs_triton
@pytest.mark.slow
def test_configurations_stay_in_registers(request: pytest.FixtureRequest) -> None:
    """A sample of pairs of operation, dtype, variant and target; all of them with --all."""
    sample = not request.config.getoption("--all")
    found = resources.report(sample=sample)
    assert len(found) == len(resources.selected(sample))
    assert not [resources.line(r) for r in found if r.problem]


@needs_triton
def test_the_sample_leaves_nothing_out() -> None:
    """Every operation in each of its dtypes and variants, products on every target, many tiles."""
    cases = resources.cases()
    sample = [(cases[i], target) for i, target in resources.selected(sample=True)]

    def words(case: resources.Case, *places: int) -> tuple[str, ...]:
        return tuple((case.name.split() * 2)[place] for place in places)  # "exact_list" has one

    for places in ((0, 1), (0, -1), (1, -1)):  # operation, dtype, ..., variant
        assert {words(c, *places) for c, _ in sample} == {words(c, *places) for c in cases}
    assert {case.kernel for case, _ in sample} == {case.kernel for case in cases}
    for place in (0, 1):
        for word in {words(case, place) for case in cases if case.matrix}:
            found = {t for case, t in sample if case.matrix and words(case, place) == word}
            assert found == set(resources.SHARED_KIB), word
    assert len({case.name.split()[2] for case, _ in sample if case.matrix}) > 20  # tiles


USAGE = """
Resource usage:
 Function state_kernel:
  REG:255 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:992 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
CODE = """
        /*0990*/                   LDGSTS.E.BYPASS.LTC128B.128 [R159], desc[UR12][R8.64], P5 ;
        /*0a10*/                   STL [R1+0x4], R23 ;
        /*0b20*/                   LDL.LU R23, [R1+0x4] ;
        /*1650*/                   HGMMA.64x32x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*1660*/                   UTCHMMA gdesc[UR12], gdesc[UR14], tmem[UR9] ;
"""


def case(matrix: bool = True) -> resources.Case:
    return resources.Case("state", None, {}, {}, frozenset(), {}, matrix)


def test_the_tools_are_read() -> None:
    found = resources.read(case(), 90, USAGE, CODE, 4096)
    numbers = (found.registers, found.stack, found.local, found.shared)
    assert numbers == (255, 16, 0, 4096)
    assert (found.matrix, found.copies, found.spills) == (2, 1, 2)
    assert found.problem == "stack 16, spills 2"


def test_problems_are_seen() -> None:
    fine = "REG:32 STACK:0 SHARED:0 LOCAL:0"
    assert resources.read(case(matrix=False), 80, fine, "", 0).problem == ""
    assert resources.read(case(), 80, fine, "", 0).problem == "no matrix instructions"
    large = resources.read(case(), 80, fine, "HMMA", 200 * 1024)
    assert large.problem == "shared memory above 163 KiB"
    assert resources.read(case(), 90, fine, "HMMA", 200 * 1024).problem == ""
    assert resources.read(case(), 90, "nothing", "", 0).problem
    two = replace(case(), resident=2)  # of four warps
    for registers, shared, columns, room in (
        (128, 0, 0, 4), (248, 0, 0, 2), (255, 0, 0, 2), (32, 100 * 1024, 0, 2),
        (32, 0, 256, 2), (32, 120 * 1024, 0, 1), (32, 0, 512, 1),
    ):  # fmt: skip
        usage = f"REG:{registers} STACK:0 SHARED:0 LOCAL:0"
        found = resources.read(two, 100, usage, "HMMA", shared, columns)
        assert found.resident == room
        assert found.problem == ("" if room > 1 else "room for 1 programs, not 2")
