"""Tensors beside what must not be read: guard values, or a page that ends the process."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, frombuffer

ROOT = Path(__file__).parents[2]


def guarded(x: Tensor) -> Tensor:
    """The same tensor between NaN (or the largest integers) in one block of memory."""
    guard = 64
    fill = torch.nan if x.is_floating_point() else torch.iinfo(x.dtype).max
    block = torch.full((x.numel() + 2 * guard,), fill, dtype=x.dtype)
    return block.as_strided(x.shape, x.stride(), guard).copy_(x)


def at_the_end(x: Tensor) -> Tensor:
    """The same tensor before a page that must not be touched."""
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
