"""Finds the compiled kernels (``segfast._C``), says why when they are not there; finds Triton."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import torch

REMEDY = (
    "install a C++ compiler (g++ >= 11 or clang >= 15), then "
    "`pip install setuptools pybind11` and "
    "`pip install --no-build-isolation --force-reinstall --no-deps .` in segfast's source folder"
)


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    if os.environ.get("SEGFAST_NATIVE") == "0":
        return None, "switched off by SEGFAST_NATIVE=0"
    try:
        module = importlib.import_module("segfast._C")
    except ModuleNotFoundError:
        return None, f"the compiled kernels were not built; {REMEDY}"
    except ImportError as error:  # a library is missing, or torch is older than the one built for
        return None, f"the compiled kernels do not load with torch {torch.__version__}: {error}"
    if (forced := os.environ.get("SEGFAST_ISA")) is not None:
        _select(module, forced)
    return module, None


def _select(module: ModuleType, name: str) -> None:
    if not module.select_instruction_set(name):
        available = ", ".join(module.instruction_sets())
        raise ValueError(f"instruction set {name!r} is not available here; available: {available}")


def native() -> ModuleType | None:
    """The extension module, or None when it was not built or does not load."""
    return _load()[0]


def why_not_native() -> str | None:
    """None when the compiled kernels are there, else one sentence with the remedy."""
    return _load()[1]


def instruction_sets() -> list[str]:
    """Instruction sets that were compiled and run here, narrowest first ([] without kernels)."""
    module = native()
    return [] if module is None else list(module.instruction_sets())


@contextlib.contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Runs the CPU kernels compiled for ``name`` ("baseline", "avx2", "avx512") inside the block.

    The choice is the process's, not the thread's. Raises ValueError when it is not available.
    """
    module = native()
    if module is None:
        raise ValueError(f"no instruction set to choose: {why_not_native()}")
    before = module.instruction_set()
    _select(module, name)
    try:
        yield
    finally:
        module.select_instruction_set(before)
