"""A tiny photo with a labelling, and the command run in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segfast.cli import main

# A CRF small enough for tiny pictures: the default spatial sigma would span them.
SMALL = ("--spatial-sigma", "1", "--bilateral-sigma", "8", "--iterations", "3")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*args: object) -> Outcome:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture
def refuse(run: Run) -> Callable[..., str]:
    """Runs what must be refused: exit code 2, one line on stderr (returned), nothing on stdout."""

    def call(*args: object) -> str:
        outcome = run(*args)
        assert (outcome.code, outcome.out) == (2, ""), outcome
        assert outcome.err.startswith("segfast: error: ")
        assert outcome.err.count("\n") == 1
        return outcome.err

    return call


class Scene:
    """photo.png: dark left, bright right, 14 x 10; labels.png: the halves with wrong pixels."""

    width, height = 14, 10

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photo = folder / "photo.png"
        self.labels = folder / "labels.png"
        self.out = folder / "out.png"
        self.truth = np.zeros((self.height, self.width), np.uint8)
        self.truth[:, self.width // 2 :] = 1
        random = np.random.default_rng(0)
        grey = 40 + 170 * self.truth[..., None] + random.integers(0, 6, (*self.truth.shape, 3))
        self.pixels = grey.astype(np.uint8)
        self.noisy = self.truth.copy()
        for y, x in ((2, 2), (7, 4), (4, 9), (8, 12), (0, 13)):
            self.noisy[y, x] ^= 1
        Image.fromarray(self.pixels).save(self.photo)
        Image.fromarray(self.noisy).save(self.labels)

    def before(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    def read(self, path: Path | None = None) -> np.ndarray:
        return np.array(Image.open(path or self.out))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    folder = tmp_path / "a folder"  # a space, as users have
    folder.mkdir()
    return Scene(folder)
