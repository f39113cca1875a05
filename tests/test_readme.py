"""What a newcomer reads and runs first: README.md, CONTRIBUTING.md, Makefile, constraints.txt.

Python blocks are run by test_documentation.py.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

import segfast
from segfast import _native

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md")}
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = [
    words
    for page in PAGES.values()
    for block in BLOCK.findall(page)
    for line in block.splitlines()
    if (words := shlex.split(line, comments=True))
]
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


def commands(program: str) -> list[list[str]]:
    return [words[1:] for words in COMMANDS if words[0] == program]


# ---------------------------------------------------------------------------------- commands


def test_every_line_is_known() -> None:
    programs = {words[0] for words in COMMANDS}
    assert programs == {"make", "pip", "segfast", "python", ".venv/bin/pre-commit"}


def test_modules_that_are_run_exist() -> None:
    """segfast.benchmarks is benchmarks/ in a checkout, installed or not."""
    modules = [words[1] for words in commands("python") if words[0] == "-m"]
    assert len(modules) == len(commands("python")) > 0
    paths = [name.removeprefix("segfast.").replace(".", "/") + ".py" for name in modules]
    assert [path for path in paths if not (ROOT / path).is_file()] == []


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What README's lines find: the user's own photo, scribbles, a network's logits, folders."""
    pillow = pytest.importorskip("PIL.Image", reason="the command line is an extra")
    pytest.importorskip("skimage", reason="the demo is an extra")
    monkeypatch.chdir(tmp_path)
    height, width = 40, 60
    photo = np.full((height, width, 3), 40, np.uint8)
    photo[:, 30:] = 200
    strokes = np.zeros((height, width), np.uint8)
    strokes[10, 5:20], strokes[30, 40:55] = 1, 2
    for folder in (".", "photos", "labels"):
        Path(folder).mkdir(exist_ok=True)
    pillow.fromarray(photo).save("photo.jpg")
    pillow.fromarray(photo).save("photos/one.jpg")
    pillow.fromarray(strokes).save("scribbles.png")
    pillow.fromarray(strokes).save("labels/one.png")
    np.save("net.npy", np.random.default_rng(0).normal(size=(3, height, width)).astype(np.float32))
    return tmp_path


def test_the_command_lines_run_one_after_the_other(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from segfast.cli import main

    lines = [words for words in commands("segfast") if words[0] != "bench"]
    assert {words[0] for words in lines} == {"demo", "crf", "info"}
    for words in lines:
        assert main(words) == 0, (words, capsys.readouterr().err)
    written = {path.name for path in files.iterdir()}
    assert {"refined.png", "overlay.png", "probs.npz", "steps.png", "labels.png"} <= written
    mask = np.array(Image.open("mask.png"))
    assert (mask[:, :28] == 1).all()  # each stroke fills its side of the edge, JPEG's blur aside
    assert (mask[:, 32:] == 2).all()
    said = " ".join(README.split())
    for number in re.findall(r"mean IU +(0\.\d+) -> (0\.\d+)", capsys.readouterr().out)[0]:
        assert f"mean IU {float(number):.2f}" in said


def test_the_benchmark_line_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    from segfast.cli import main

    pytest.importorskip("pytest_benchmark", reason="benchmarks are an extra")
    calls: list[list[str]] = []

    def call(command: list[str]) -> int:
        calls.append(command)
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    (words,) = [words for words in commands("segfast") if words[0] == "bench"]
    assert main(words) == 0
    assert Path(calls[0][3]).is_file()


def test_pip_lines_name_extras_that_exist() -> None:
    extras = importlib.metadata.metadata("segfast").get_all("Provides-Extra") or []
    asked = [
        extra for words in commands("pip") for extra in re.findall(r"\.\[(.+)\]", " ".join(words))
    ]
    assert asked
    assert {each for extra in asked for each in extra.split(",")} <= set(extras)


@needs_make
def test_make_lines_name_targets_that_exist() -> None:
    targets = {words[0] for words in commands("make")}
    targets |= {verb for page in PAGES.values() for verb in re.findall(r"`make ([a-z-]+)", page)}
    assert {"demo", "test"} <= targets
    listed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert targets <= set(re.findall(r"^  make ([a-z-]+) ", listed, re.MULTILINE))


# ------------------------------------------------------------------------------------- facts


def test_links_lead_somewhere() -> None:
    for name, page in PAGES.items():
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page):
            assert (ROOT / link).exists(), f"{name} links to {link}"


def test_variables_are_the_ones_that_are_read() -> None:
    """Each SEGFAST_ variable of the code is explained, and none that does not exist."""
    sources = [ROOT / "setup.py", *(ROOT / "segfast").rglob("*.py")]
    read = re.compile(r"environ(?:\.get\(|\[)\"(SEGFAST_[A-Z_]+)\"")
    found = {name for path in sources for name in read.findall(path.read_text("utf-8"))}
    assert set(re.findall(r"SEGFAST_[A-Z_]+", README)) == found


def test_every_public_operator_is_in_the_table() -> None:
    rows = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    assert [name for name in segfast.ops.__all__ if f"`{name}`" not in rows] == []


def test_versions_agree_with_the_package() -> None:
    meta = importlib.metadata.metadata("segfast")
    (torch,) = [r for r in meta.get_all("Requires-Dist") or [] if r.startswith("torch")]
    assert f"Python {meta['Requires-Python'].replace('>=', '>= ')}" in README
    assert f"PyTorch {torch.removeprefix('torch').replace('>=', '>= ')}" in README
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## .*\b{re.escape(segfast.__version__)}\b", changes, re.MULTILINE)


# ------------------------------------------------------------------------------------- setup


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name.lower(): requirement for requirement in wanted}


def test_everything_the_package_may_ask_for_is_pinned_within_its_bounds() -> None:
    requires = [Requirement(text) for text in importlib.metadata.requires("segfast") or []]
    asked = [requirement for requirement in requires if requirement.name != "segfast"]
    assert {"torch", "numpy", "pytest", "pybind11"} <= {r.name for r in asked}
    for requirement in asked:
        (pin,) = pins()[requirement.name.lower()].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
@pytest.mark.skipif("SEGFAST_NATIVE" in os.environ, reason="SEGFAST_NATIVE is set")
def test_kernels_were_compiled() -> None:
    """Else most tests would skip the kernels and look green."""
    assert _native.why_not_native() is None


@needs_make
@pytest.mark.parametrize(
    ("python", "says"),
    [
        ('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.18\nexit 1\n', "is Python 3.9.18"),
        (None, "not found"),
    ],
    ids=["old", "missing"],
)
def test_make_says_which_python_it_needs(tmp_path: Path, python: str | None, says: str) -> None:
    """In a folder with a space, with a Python whose path has one."""
    folder = tmp_path / "a copy"
    folder.mkdir()
    for name in ("Makefile", "constraints.txt", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("kernels", "csrc"):
        (folder / name).mkdir()
    interpreter = folder / "old python"
    if python is not None:
        interpreter.write_text(python)
        interpreter.chmod(0o755)
    done = subprocess.run(
        ["make", f"PYTHON={interpreter}", "demo"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "segfast needs Python >= 3.10" in done.stderr
    assert says in done.stderr
    assert not (folder / ".venv").exists()
