"""Tensors before a page that must not be touched: what is read behind them ends the process."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor, frombuffer

ROOT = Path(__file__).parents[2]


def at_the_end(x: Tensor) -> Tensor:
    """The same tensor before such a page."""
    size, page = x.numel() * x.element_size(), mmap.PAGESIZE
    whole = -(-size // page) * page
    memory = mmap.mmap(-1, whole + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + whole), page, 0) == 0
    flat = frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=whole - size)
    return flat.view(x.shape).copy_(x)


def in_a_process(module: str, call: str) -> str:
    """What `call` of a module of tests prints, in a process that it may end."""
    if not sys.platform.startswith("linux"):
        pytest.skip("calls mprotect")
    program = f"import {module}; {module}.{call}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
