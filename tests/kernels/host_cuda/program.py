"""A running program with the launchers of one operator, called with tensors."""

from __future__ import annotations

import atexit
import os
import struct
import subprocess
import tempfile
import threading
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from host_cuda import build

ALIGNMENT = 256  # of what a device allocates: kAlignment in driver.cpp

OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:allocator_may_return_null=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}

# What a launcher takes: a tensor or array, a number, the bytes of a struct, None for null.
Argument = Any


class KernelFault(Exception):
    """The program ended while it ran a kernel; str() is what it said."""


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


class Program:
    """Starts at the first call, and again after a fault."""

    def __init__(self, name: str, kernels: list[Path]) -> None:
        self.name = name
        self.path = build.program(name, kernels)
        self.process: subprocess.Popen[bytes] | None = None
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        atexit.register(self.close)

    def __call__(self, launcher: str, *args: Argument, seed: int = 0, timeout: float = 120) -> int:
        """The code that the launcher returned. Arrays it takes as T* are written in place."""
        message = [self._text(launcher), struct.pack("<QI", seed, len(args))]
        spans: dict[int, np.ndarray] = {}
        kept = []  # alive until their bytes have come back
        for i, arg in enumerate(args):
            if isinstance(arg, Tensor | np.ndarray):
                tensor = as_tensor(arg)
                kept.append(tensor)
                spans[i], offset = memory(tensor)
                head = (b"a", tensor.element_size(), offset, spans[i].nbytes)
                message += [struct.pack("<cIQQ", *head), spans[i].tobytes()]
            else:
                message.append(self._plain(arg))
        check_overlap(list(spans.values()))
        process = self._start()
        overdue = threading.Timer(timeout, process.kill)
        overdue.start()
        try:
            return self._talk(process, b"".join(message), list(spans.values()))
        except (BrokenPipeError, EOFError):
            code = process.wait()
            self.said.seek(0)
            report = self.said.read().decode(errors="replace")
            if code == -9:
                report += f"\n{self.name} {launcher}: killed, after {timeout} s or by the system"
            self.close()
            raise KernelFault(f"{launcher} (seed {seed}) ended with {code}\n{report}") from None
        finally:
            overdue.cancel()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            self.said.seek(0)
            self.said.truncate()
            self.process = subprocess.Popen(
                [str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.said,
                env=os.environ | OPTIONS,
            )
        return self.process

    @staticmethod
    def _text(text: str) -> bytes:
        return struct.pack("<I", len(text.encode())) + text.encode()

    @staticmethod
    def _plain(arg: Argument) -> bytes:
        if arg is None:
            return b"n"
        if isinstance(arg, int):
            return struct.pack("<cq", b"i", arg)
        if isinstance(arg, float):
            return struct.pack("<cd", b"f", arg)
        data = bytes(arg)  # bytes, or what has them: a ctypes.Structure
        return struct.pack("<cIQQ", b"b", 1, 0, len(data)) + data

    @staticmethod
    def _talk(process: subprocess.Popen[bytes], message: bytes, spans: list[np.ndarray]) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = process.stdout

        def read(layout: str) -> Any:
            data = answers.read(struct.calcsize(layout))
            if len(data) != struct.calcsize(layout):
                raise EOFError
            return struct.unpack(layout, data)[0]

        process.stdin.write(message)
        process.stdin.flush()
        if read("<c") == b"x":
            raise TypeError(answers.read(read("<I")).decode())
        code = read("<q")
        for span in spans:
            if read("<?"):
                data = answers.read(span.nbytes)
                if len(data) != span.nbytes:
                    raise EOFError
                span[:] = np.frombuffer(data, np.uint8)
        return int(code)


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
