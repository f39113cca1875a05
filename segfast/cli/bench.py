"""``segfast bench OP``: runs an operator's benchmark with pytest-benchmark."""

from __future__ import annotations

import argparse
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import segfast
from segfast import ops
from segfast.cli.files import UserError, require_extra


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="run an operator's benchmark (pytest-benchmark)",
        description="Runs the benchmark of operator OP; without OP lists the operators.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("op", nargs="?", metavar="OP", help="operator, e.g. dense_crf")
    parser.add_argument(
        "pytest_args", nargs=argparse.REMAINDER, metavar="...", help="passed on to pytest"
    )


def run(args: argparse.Namespace) -> int:
    folder = find_benchmarks()
    available = operators(folder)
    if args.op is None:
        print("\n".join(available))
        return 0
    if args.op not in available:
        raise UserError(f"no benchmark named {args.op}; there are: {', '.join(available)}")
    require_extra("pytest", "pytest")
    require_extra("pytest_benchmark", "pytest-benchmark")
    command = [sys.executable, "-m", "pytest", str(folder / f"{args.op}.py"), *args.pytest_args]
    return subprocess.call(command)


def find_benchmarks() -> Path:
    """The folder of benchmarks: in the package, else beside it (a checkout), else here."""
    package = Path(segfast.__file__).resolve().parent
    candidates = [package.parent / "benchmarks", Path.cwd() / "benchmarks"]
    spec = importlib.util.find_spec("segfast.benchmarks")
    if spec is not None and spec.submodule_search_locations:
        candidates = [Path(place) for place in spec.submodule_search_locations] + candidates
    for folder in candidates:
        if operators(folder):
            return folder
    raise UserError(
        "the benchmarks are not in this installation: run `segfast bench` in a checkout or an "
        "unpacked source distribution of segfast (folder benchmarks/)"
    )


def operators(folder: Path) -> list[str]:
    """Operators of segfast.ops that have a file in ``folder``, and whole networks: "models"."""
    names = [*(module.name for module in pkgutil.iter_modules(ops.__path__)), "models"]
    return [n for n in names if not n.startswith("_") and (folder / f"{n}.py").is_file()]
