"""What the documentation shows, runs: Python blocks of the pages, examples of the docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import segfast

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("kernels/*/README.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(segfast.__path__, "segfast.")
    if not info.name.startswith("segfast._C") and not info.name.endswith("__main__")
)


def python_blocks(text: str) -> list[tuple[int, str]]:
    """(line where it starts, source) of every block marked python."""
    return [(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in BLOCK.finditer(text)]


def examples(module: ModuleType) -> list[doctest.DocTest]:
    """With no names but those that they import: they run where they are copied to."""
    return [test for test in doctest.DocTestFinder().find(module, globs={}) if test.examples]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.filterwarnings("error")
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace, in an empty folder, without a warning."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, source in python_blocks(page.read_text(encoding="utf-8")):
        code = compile("\n" * (line - 1) + source, str(page), "exec")  # lines as in the page
        exec(code, namespace)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    if name.startswith("segfast.cli"):
        pytest.importorskip("PIL", reason="the command line is an extra")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in examples(importlib.import_module(name)):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_there_is_something_to_run() -> None:
    """Names and blocks are found: the tests above are not empty."""
    assert [line for line, _ in python_blocks("a\n```python\nx = 1\n```\n```sh\nls\n```\n")] == [3]
    assert examples(importlib.import_module("segfast.testing"))
    assert examples(importlib.import_module("segfast.ops.dense_crf"))


@pytest.mark.parametrize("name", segfast.ops.__all__)
def test_public_operators_have_an_example(name: str) -> None:
    assert ">>>" in (getattr(segfast.ops, name).__doc__ or "")
