"""The house rules that can be checked by looking: one name per operator, imports one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("kernels", "csrc", "segfast", "benchmarks", "tests")

OPERATOR_FILES = (
    "kernels/{op}/README.md",
    "kernels/{op}/reference.py",
    "csrc/cpu/{op}.cpp",
    "segfast/ops/{op}.py",
    "segfast/nn/{op}.py",
    "tests/ops/test_{op}.py",
    "benchmarks/{op}.py",
)

# No file of the folder may import these (a package means all that is in it).
FORBIDDEN = {
    "kernels": ("segfast",),
    "segfast/ops": (
        "segfast.nn",
        "segfast.losses",
        "segfast.models",
        "segfast.compat",
        "segfast.cli",
    ),
    "segfast/nn": ("segfast.losses", "segfast.models", "segfast.compat", "segfast.cli"),
    "segfast/losses": ("segfast.nn", "segfast.models", "segfast.compat", "segfast.cli"),
    "segfast/models": ("segfast.compat", "segfast.cli"),
    "segfast/_swap": ("segfast.losses", "segfast.models", "segfast.compat", "segfast.cli"),
    "segfast/compat": ("segfast.models", "segfast.cli"),
}

FRAMEWORK = re.compile(r'^\s*#\s*include\s*[<"]((?:torch|ATen|c10|pybind11)/[^>"]*)', re.MULTILINE)


def operators(root: Path) -> list[str]:
    files = (root / "segfast/ops").glob("*.py")
    return sorted(path.stem for path in files if not path.stem.startswith("_"))


def missing_files(root: Path, op: str) -> list[str]:
    wanted = [pattern.format(op=op) for pattern in OPERATOR_FILES]
    return [path for path in wanted if not (root / path).is_file()]


def untested_cuda(root: Path) -> list[str]:
    """Every .cu is run on the processor, by a test with the operator's name."""
    found = []
    for path in sorted((root / "kernels").rglob("*.cu")):
        op = path.parent.name
        driver = root / f"tests/kernels/host_cuda/drivers/{op}.cpp"
        test = root / f"tests/kernels/test_{op}_cuda.py"
        runs = test.is_file() and f'host_cuda.operator("{op}")' in test.read_text()
        if not (driver.is_file() and runs):
            found.append(str(path.relative_to(root)))
    return found


def imported_modules(path: Path, package: str) -> Iterator[str]:
    """Absolute names of everything that `path`, a module of `package`, imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def wrong_imports(root: Path) -> list[str]:
    found = []
    for folder, forbidden in FORBIDDEN.items():
        for path in sorted((root / folder).rglob("*.py")):
            package = ".".join(path.relative_to(root).parent.parts)
            for name in dict.fromkeys(imported_modules(path, package)):
                if any(name == bad or name.startswith(bad + ".") for bad in forbidden):
                    found.append(f"{path.relative_to(root)} imports {name}")
    return found


def framework_headers(root: Path) -> list[str]:
    """Only csrc/ may include torch's headers."""
    files = (p for p in (root / "kernels").rglob("*") if p.suffix in {".h", ".cuh", ".cpp", ".cu"})
    return [
        f"{path.relative_to(root)} includes {header}"
        for path in sorted(files)
        for header in FRAMEWORK.findall(path.read_text())
    ]


def test_operators_are_found() -> None:
    assert {"dense_crf", "max_unpool"} <= set(operators(ROOT))


@pytest.mark.parametrize("op", operators(ROOT))
def test_an_operator_has_one_name_everywhere(op: str) -> None:
    assert not missing_files(ROOT, op)


def test_imports_run_one_way() -> None:
    assert not wrong_imports(ROOT)


def test_kernels_know_no_framework() -> None:
    assert not framework_headers(ROOT)


def test_cuda_kernels_are_run_on_the_processor() -> None:
    assert not untested_cuda(ROOT)


@pytest.mark.parametrize("folder", SOURCES)
def test_files_stay_readable(folder: str) -> None:
    ceiling = 500 if folder == "tests" else 400
    suffixes = {".py", ".h", ".cpp", ".cu", ".cuh"}
    files = [p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert not {path: n for path, n in lengths.items() if n > ceiling}


# ------------------------------------------------------------------------------ of the checks


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository that breaks every rule."""
    files = {
        "segfast/ops/__init__.py": "from .fold import fold",
        "segfast/ops/fold.py": "def fold():\n    from ..nn import Fold",
        "segfast/nn/fold.py": "import segfast.models.net as net",
        "segfast/models/net.py": "from segfast import cli",
        "kernels/fold/reference.py": "import torch\nfrom segfast import ops",
        "kernels/fold/fold.cpp": '#include "fold.h"\n#  include <ATen/core/Tensor.h>\n',
        "kernels/fold/fold.cu": "__global__ void fold_kernel() {}",
        "kernels/tested/tested.cu": "__global__ void tested_kernel() {}",
        "tests/kernels/host_cuda/drivers/fold.cpp": "int main() {}",
        "tests/kernels/test_fold_cuda.py": "import pytest",
        "tests/kernels/host_cuda/drivers/tested.cpp": "int main() {}",
        "tests/kernels/test_tested_cuda.py": 'tested = host_cuda.operator("tested")',
        "kernels/include/fold.cuh": "// #include <torch/all.h> is not for here\n",
        "csrc/cpu/fold.cpp": "#include <torch/all.h>\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_checks_see_what_they_look_for(tree: Path) -> None:
    assert operators(tree) == ["fold"]
    assert missing_files(tree, "fold") == [
        "kernels/fold/README.md",
        "tests/ops/test_fold.py",
        "benchmarks/fold.py",
    ]
    assert wrong_imports(tree) == [
        "kernels/fold/reference.py imports segfast",
        "kernels/fold/reference.py imports segfast.ops",
        "segfast/ops/fold.py imports segfast.nn",
        "segfast/ops/fold.py imports segfast.nn.Fold",
        "segfast/nn/fold.py imports segfast.models.net",
        "segfast/models/net.py imports segfast.cli",
    ]
    assert framework_headers(tree) == ["kernels/fold/fold.cpp includes ATen/core/Tensor.h"]
    assert untested_cuda(tree) == ["kernels/fold/fold.cu"]
