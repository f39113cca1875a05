"""Every Python block of docs/pydensecrf.md runs, in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segfast.nn

PAGE = Path(__file__).parents[2] / "docs" / "pydensecrf.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)


def test_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) >= 5
    namespace: dict[str, Any] = {}
    for number, block in enumerate(found):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), namespace)
    # the example does what it is for: the CRF fills in nearly all that nobody knew
    truth = 1 + (namespace["image"][:, :, 0] > 100) + 2 * (namespace["image"][:, :, 2] > 100)
    assert (namespace["result"] + 1 == truth).mean() > 0.98
    assert not list(tmp_path.iterdir())


def test_the_import_lines_of_the_diff_work() -> None:
    (diff,) = blocks("diff")
    new = "\n".join(line[1:] for line in diff.splitlines() if line.startswith("+"))
    namespace: dict[str, Any] = {}
    exec(new, namespace)
    assert hasattr(namespace["dcrf"], "DenseCRF2D")
    assert hasattr(namespace["utils"], "unary_from_softmax")


@pytest.mark.parametrize("name", ["DenseCRF", "DenseCRF2D"])
def test_the_page_names_every_method(name: str) -> None:
    import segfast.compat.pydensecrf.densecrf as dcrf

    page = PAGE.read_text("utf-8")
    public = [m for m in vars(getattr(dcrf, name)) if not m.startswith("_")]
    assert public
    assert [m for m in public if m not in page] == []


def test_pydensecrf_and_the_module_give_the_same_belief() -> None:
    """The migration table, on anisotropic and non-Potts parameters."""
    import torch

    import segfast.compat.pydensecrf.densecrf as dcrf

    rng = np.random.default_rng(1)
    height, width, nlabels = 9, 14, 3
    energy = rng.random((nlabels, height * width), np.float32)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    vector = rng.normal(size=nlabels).astype(np.float32)
    matrix = rng.normal(size=(nlabels, nlabels)).astype(np.float32)
    crf = dcrf.DenseCRF2D(width, height, nlabels)
    crf.setUnaryEnergy(energy)
    crf.addPairwiseGaussian((2, 5), vector, normalization=dcrf.NORMALIZE_AFTER)
    crf.addPairwiseBilateral((30, 8), (13, 20, 40), image, matrix, 1, dcrf.NORMALIZE_AFTER)
    module = segfast.nn.DenseCRF(
        spatial_sigma=(5, 2),
        spatial_weight=-torch.from_numpy(vector),
        bilateral_sigma=(8, 30),
        color_sigma=(13, 20, 40),
        bilateral_weight=-torch.from_numpy(matrix + matrix.T) / 2,
        normalization="after",
        spatial="lattice",
        iterations=2,
    )
    logits = -torch.from_numpy(energy).reshape(1, nlabels, height, width)
    scores = module(logits, torch.from_numpy(image).permute(2, 0, 1)[None])
    belief = np.array(crf.inference(2)).reshape(nlabels, height, width)
    # the same kernels on the same float32 numbers; x / sigma may be rounded as x * (1 / sigma)
    np.testing.assert_allclose(scores.softmax(1)[0].numpy(), belief, rtol=0, atol=1e-5)
