"""What people install: the sdist, the wheel built from it, and both kinds of installation."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segfast import _native

ROOT = Path(__file__).parents[2]
SOURCES = ("kernels", "csrc", "segfast")

pytestmark = [pytest.mark.packaging, pytest.mark.slow]

needs_compiler = pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("c++")), reason="there is no C++ compiler"
)


def call(*command: str | Path, check: bool = True, **options: object) -> str:
    """Runs the command without any SEGFAST_ setting of ours; its stdout and stderr."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SEGFAST_", "PYTHON"))}
    environment |= options.pop("env", {})  # type: ignore[call-overload]
    done = subprocess.run(
        [str(part) for part in command], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # type: ignore[call-overload]  # fmt: skip
    assert not check or done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return str(done.stdout)


def tracked(*folders: str) -> list[Path]:
    """Files of the checkout, relative: what git knows or would add."""
    listed = call(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", *folders, cwd=ROOT
    )
    return sorted({Path(line) for line in listed.splitlines() if (ROOT / line).is_file()})


def build_wheel(source: Path, target: Path, **settings: str) -> str:
    """What pip says while it builds a wheel of the tree, without reaching for a network."""
    return call(
        sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps",
        "--no-index", "--wheel-dir", target, source, env=settings,
    )  # fmt: skip


def like_the_checkout() -> dict[str, str]:
    """Settings by which setup.py runs the commands that made the checkout's objects."""
    module = _native.native()
    architectures = module.build_info()["cuda_architectures"] if module else ""
    if not architectures:
        return {"SEGFAST_CUDA": "0"}
    return {"SEGFAST_CUDA": "1", "SEGFAST_CUDA_ARCHITECTURES": architectures}


def only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("segfast-*.whl")
    return wheel


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from a clean copy of the checkout whose path has a space in it."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    checkout = tmp_path_factory.mktemp("packaging") / "the checkout"
    for path in tracked():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, checkout / path)
    hook = "from setuptools import build_meta; build_meta.build_sdist('the dist')"
    call(sys.executable, "-c", hook, cwd=checkout)
    (archive,) = (checkout / "the dist").glob("segfast-*.tar.gz")
    return archive


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Unpacks the sdist once more under a name."""
    careful: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from 3.11.4 on

    def unpack(name: str) -> Path:
        target = tmp_path_factory.mktemp(name)
        with tarfile.open(sdist) as archive:
            archive.extractall(target, **careful)
        (tree,) = target.iterdir()
        return tree

    return unpack


@pytest.fixture(scope="session")
def built(unpacked: Callable[[str], Path]) -> Path:
    """The unpacked sdist with its wheel under dist/ and the objects it was linked from.

    All takes minutes to compile: the build takes over what the checkout's made of the same
    sources by the same command, but for the binding that is younger here.
    """
    tree = unpacked("built")
    for objects in (ROOT / "build").glob("temp.*"):
        shutil.copytree(objects, tree / objects.relative_to(ROOT))
    (tree / "csrc/cpu/linear_attention.cpp").touch()
    build_wheel(tree, tree / "dist", **like_the_checkout())
    return tree


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A fresh virtual environment with the wheel; torch comes from the one that runs the tests.

    A path named in a .pth file has its own .pth files left alone: the editable segfast of this
    environment is not seen.
    """

    def into_fresh_environment(wheel: Path) -> Path:
        home = tmp_path_factory.mktemp("environment") / "fresh venv"
        call(sys.executable, "-m", "venv", "--without-pip", home)
        python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
        purelib = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        (Path(purelib.strip()) / "torch.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
        call(
            sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
            wheel,
        )  # fmt: skip
        return python

    return into_fresh_environment


SMOKE = """
import sys, torch
before = set(sys.modules)  # torch itself takes tqdm where it finds it
import segfast
from segfast import _native
from segfast.kernels.dense_crf import reference

extra = {"PIL", "tqdm", "skimage", "matplotlib", "pytest"} & (set(sys.modules) - before)
assert not extra, f"import segfast imports {extra}"
generator = torch.Generator().manual_seed(0)
logits = torch.randn(1, 4, 20, 30, generator=generator)
image = torch.randint(0, 256, (1, 3, 20, 30), generator=generator, dtype=torch.uint8)
for method in ("exact", "lattice"):
    options = {"method": method, "iterations": 1}
    scores = segfast.ops.mean_field(logits, image, **options)[0]
    truth = reference.mean_field(logits[0].double(), image[0], **options)
    # what the project promises after one iteration
    assert (scores.softmax(0) - truth.softmax(0)).abs().max() <= 1e-5, method
print("home:", segfast.__file__)
print("kernels:", _native.why_not_native() or f"compiled, {_native.instruction_sets()}")
from segfast.cli import main
main(["info"])
"""


def test_sdist_holds_the_sources(unpacked: Callable[[str], Path]) -> None:
    tree = unpacked("sources")
    sources = [*tracked(*SOURCES), "setup.py", "pyproject.toml", "LICENSE"]
    _, different, missing = filecmp.cmpfiles(ROOT, tree, sources, shallow=False)
    assert not missing
    assert not different


@needs_compiler
def test_wheel_holds_what_runs(built: Path) -> None:
    with zipfile.ZipFile(only_wheel(built / "dist")) as wheel:
        names = set(wheel.namelist())
    modules = {str(path) for path in tracked("segfast")}
    mapped = {
        f"segfast/{path}" for path in tracked("kernels", "benchmarks") if path.suffix == ".py"
    }
    assert not (modules | mapped) - names
    assert any(name.startswith("segfast/_C.") for name in names)
    strays = {n for n in names if not n.startswith(("segfast/", "segfast-")) or "test_" in n}
    assert not strays
    assert "segfast/py.typed" in names
    assert not {n for n in names if n.endswith((".h", ".cpp", ".cu", ".cuh"))}


@needs_compiler
def test_wheel_serves_a_fresh_environment(
    built: Path, install: Callable[[Path], Path], tmp_path: Path
) -> None:
    python = install(only_wheel(built / "dist"))
    said = call(python, "-I", "-c", SMOKE, cwd=tmp_path)
    assert f"home: {python.parent.parent}" in said
    assert "kernels: compiled, ['baseline'" in said
    assert "exact_cpu.cpp" in said
    assert "dense_crf" in call(python.parent / "segfast", "bench", cwd=tmp_path).splitlines()


def test_installs_without_compiler(
    unpacked: Callable[[str], Path], install: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Asked for, or because there is none: the same wheel, whose reference serves."""
    contents = []
    for settings, why in (
        ({"SEGFAST_CPP": "0"}, "SEGFAST_CPP=0"),
        ({"PATH": str(tmp_path), "CXX": ""}, "no C++ compiler"),
    ):
        tree = unpacked("pure")
        said = build_wheel(tree, tree / "dist", **settings)
        assert "no compiled kernels" in said
        assert why in said
        with zipfile.ZipFile(only_wheel(tree / "dist")) as wheel:
            contents.append({entry.filename: entry.CRC for entry in wheel.infolist()})
    assert contents[0] == contents[1]
    python = install(only_wheel(tree / "dist"))
    said = call(python, "-I", "-c", SMOKE, cwd=tmp_path)
    assert "kernels: the compiled kernels were not built; install a C++ compiler" in said


def test_a_compiler_that_is_not_there(unpacked: Callable[[str], Path]) -> None:
    """Who names one wants compiled kernels: no reference in their place."""
    command = (sys.executable, "setup.py", "build_ext")
    for given in ("no-such-compiler", "no-such-cache g++"):
        said = call(*command, check=False, cwd=unpacked("pure"), env={"CXX": given})
        assert f"CXX='{given}' is set but there is no {given.split()[0]}" in said
        assert "Traceback" not in said


GATES = {
    "weak symbols": (
        "template <class T> [[gnu::noinline]] T twice(T x) { return x + x; }\n"
        "float call(float x) { return twice(x); }\n",
        "weak symbols",
    ),
    "torch in a kernel": ("#include <torch/csrc/stable/tensor.h>\n", "torch/csrc/stable/tensor.h"),
}


@needs_compiler
@pytest.mark.parametrize("gate", GATES)
def test_gates_stop_the_build(built: Path, tmp_path: Path, gate: str) -> None:
    """The objects are reused, which passed the gates: only the offending kernel is compiled."""
    source, message = GATES[gate]
    tree = tmp_path / "tree"
    shutil.copytree(built, tree, symlinks=True)
    (tree / "kernels/dense_crf/offending_cpu.cpp").write_text(source)
    said = call(
        sys.executable, "setup.py", "build_ext", check=False, cwd=tree, env=like_the_checkout()
    )
    assert "segfast: " in said
    assert message in said
