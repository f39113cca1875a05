"""The launchers of one operator, called with tensors."""

from __future__ import annotations

import struct
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from host_cuda import build
from host_cuda.process import KernelFault, Process

ALIGNMENT = 256  # of what a device allocates: kAlignment in driver.cpp

# What a launcher takes: a tensor or array, a number, the bytes of a struct, None for null.
Argument = Any


def memory(tensor: Tensor) -> tuple[np.ndarray, int]:
    """The bytes from a tensor's first element to its last, and the offset of the first.

    They are the tensor's own: strided tensors include what lies between their elements.
    """
    if tensor.device.type != "cpu":
        raise ValueError(f"expected tensors on the CPU, got one on {tensor.device}")
    item = tensor.element_size()
    extent = 0
    if tensor.numel() > 0:
        extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    data = tensor.as_strided((extent,), (1,)).view(torch.uint8).numpy()
    return data, int(tensor.storage_offset() * item % ALIGNMENT)


def as_tensor(value: Tensor | np.ndarray) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.from_numpy(value)


def check_overlap(spans: list[np.ndarray]) -> None:
    """Each goes to memory of its own: what two share would be two things there."""
    ranges = sorted((s.ctypes.data, s.ctypes.data + s.nbytes) for s in spans if s.nbytes)
    for (_, end), (start, _) in pairwise(ranges):
        if start < end:
            raise ValueError("two of the tensors share memory")


class Run(NamedTuple):
    """One of the ways to run a kernel: what is watched, and the seed of the order."""

    watch: str  # "memory" or "races"
    seed: int

    def __str__(self) -> str:
        return f"{self.watch}-{self.seed}"


PLAIN = Run("memory", 0)


class Program:
    """The launchers of an operator. What is watched decides which executable calls them."""

    def __init__(self, name: str, kernels: list[Path]) -> None:
        self.name = name
        self.kernels = kernels
        self.processes: dict[str, Process] = {}

    def __call__(
        self, launcher: str, *args: Argument, run: Run = PLAIN, timeout: float = 120
    ) -> int:
        """The code that the launcher returned. Arrays it takes as T* are written in place."""
        if run.watch not in self.processes:
            path = build.program(self.name, self.kernels, run.watch)
            self.processes[run.watch] = Process(path)
        message = [_text(launcher), struct.pack("<QI", run.seed, len(args))]
        spans = []
        for arg in args:
            if isinstance(arg, Tensor | np.ndarray):
                tensor = as_tensor(arg)
                span, offset = memory(tensor)
                head = (b"a", tensor.element_size(), offset, span.nbytes)
                message += [struct.pack("<cIQQ", *head), span.tobytes()]
                spans.append(span)
            else:
                message.append(_plain(arg))
        check_overlap(spans)
        try:
            return self.processes[run.watch].call(b"".join(message), spans, timeout)
        except KernelFault as fault:
            raise KernelFault(f"{launcher} ({run}) {fault}") from None


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def _plain(arg: Argument) -> bytes:
    if arg is None:
        return b"n"
    if isinstance(arg, int):
        return struct.pack("<cq", b"i", arg)
    if isinstance(arg, float):
        return struct.pack("<cd", b"f", arg)
    data = bytes(arg)  # bytes, or what has them: a ctypes.Structure
    return struct.pack("<cIQQ", b"b", 1, 0, len(data)) + data


@cache
def _program(name: str, pattern: str) -> Program:
    return Program(name, sorted(build.ROOT.glob(pattern)))


def _or_skip(name: str, pattern: str) -> Program:
    if reason := build.why_not():
        pytest.skip(reason)
    return _program(name, pattern)


def operator(op: str) -> Program:
    """The launchers of kernels/<op>/*.cu, by the names that drivers/<op>.cpp gives them."""
    return _or_skip(op, f"kernels/{op}/*.cu")


def demos() -> Program:
    """Kernels that are right and wrong, to see that the difference shows."""
    return _or_skip("demos", "tests/kernels/host_cuda/demos/*.cu")
