"""README.md has every model; docs/models.md the backbones, and what images networks expect."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from segfast.cli.models import table
from segfast.models import _ENTRIES, create_backbone, list_backbones, list_models
from segfast.models.layouts.backbones import layouts_of
from tests.models.networks import layouts

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGE = (ROOT / "docs/models.md").read_text("utf-8")


def test_the_readme_has_the_table_that_the_command_writes() -> None:
    head, rule, *rows = table(list_models())
    assert f"\n{head}\n{rule}\n" + "\n".join(rows) + "\n\n" in README
    assert [row.split("`")[1] for row in rows] == list_models()


def test_the_families_name_the_default_layouts() -> None:
    """The short table beside it: full names of a family with one default layout, at least."""
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 3 or ";" in cells[2]:
            continue
        for name in re.findall(r"`(\w+)`", cells[1]):
            if name in _ENTRIES:
                assert layouts(name)[0] == cells[2], name


def test_every_backbone_has_its_row() -> None:
    """With the files that it reads."""
    section = PAGE.split("## Starting from ImageNet weights")[1].split("\n## ")[0]
    found = re.findall(r"^\| (`.*) \| (.*) \| .* \|$", section, re.MULTILINE)
    rows = [(re.findall(r"`(\w+)`", names), files) for names, files in found]
    assert sorted(name for names, _ in rows for name in names) == list_backbones()
    for names, files in rows:
        said = re.sub(r"\([^)]*\)|with stems of three convolutions|;|,", " ", files).split()
        for name in names:
            with torch.device("meta"):
                readable = layouts_of(create_backbone(name))
            assert readable is not None
            assert sorted(said) == sorted(readable), name


def test_expected_images() -> None:
    """The page has a row for every preprocessing, and no other."""
    expected = {
        str(entry.preprocessing(layout) or "not published")
        for name, entry in _ENTRIES.items()
        for layout in layouts(name)
    }
    (body,) = re.findall(r"^\| images: .*\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert sorted(row.split(" | ")[0].strip("| ") for row in body.splitlines()) == sorted(expected)


def test_layouts_without_published_images() -> None:
    """Everything else has been read somewhere."""
    unknown = {
        (name, layout)
        for name, entry in _ENTRIES.items()
        for layout in layouts(name)
        if entry.preprocessing(layout) is None
    }
    assert {layout for _, layout in unknown} == {
        "caffe", "lironui", "mateuszbuda", "paper", "ptsemseg", "released", "yassouali",
    }  # fmt: skip
    assert [name for name, layout in unknown if layout == "caffe"] == ["attention_to_scale_vgg16"]
