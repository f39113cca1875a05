"""Reads and writes outside of tensors: the operators' tests again, their kernels instrumented."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++") or ""
FOLDERS = "segfast", "kernels", "csrc", "benchmarks", "tests"
FILES = "setup.py", "pyproject.toml", "README.md"
NOT_HERE = "cuda", "torch"  # programs that PyTorch compiles; GPUs
TESTS = [
    str(path.relative_to(ROOT))
    for folder in ("tests/ops", "tests/kernels")
    for path in sorted((ROOT / folder).glob("test_*.py"))
    if path.stem.split("_")[1] in ("dense", "dilated", "linear", "max")  # the operators
    and path.stem.split("_")[-1] not in NOT_HERE
]


def library(name: str) -> str:
    found = subprocess.run(
        [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux" or not COMPILER, reason="g++ on Linux")
def test_operators_stay_in_their_tensors(tmp_path: Path) -> None:
    """Built in a copy, for the instruction sets of the checkout; five minutes on two cores."""
    ignored = shutil.ignore_patterns("_C.*", "__pycache__", "results")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    for file in FILES:
        shutil.copy(ROOT / file, tmp_path)
    flags = {"CXX": COMPILER, "CXXFLAGS": "-fsanitize=address -O1", "SEGFAST_CUDA": "0"}
    preload = {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
        "ASAN_OPTIONS": f"detect_leaks=0:verify_asan_link_order=0:log_path={tmp_path}/sanitizer",
    }

    def python(*arguments: str, **settings: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=os.environ | settings, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        reports = [path.read_text() for path in tmp_path.glob("sanitizer.*")]
        assert done.returncode == 0, "".join([done.stdout[-10000:], *reports])
        assert not reports
        return done.stdout

    python("setup.py", "--quiet", "build_ext", "--inplace", **flags)
    where = "import segfast._C; print(segfast._C.__file__)"
    built = Path(python("-c", where, **preload).strip())
    assert built.is_relative_to(tmp_path)
    assert b"__asan_report" in built.read_bytes()
    said = python("-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *TESTS, **preload)
    assert " passed" in said
