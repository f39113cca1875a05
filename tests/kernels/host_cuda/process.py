"""A running program: one call after the other through its pipes."""

from __future__ import annotations

import atexit
import os
import struct
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from host_cuda import build

OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


class KernelFault(Exception):
    """The program ended while it ran a kernel; str() is what it said."""


class Process:
    """Starts at the first call, and again after a fault."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process: subprocess.Popen[bytes] | None = None
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        atexit.register(self.close)

    def call(self, message: bytes, spans: list[np.ndarray], timeout: float) -> int:
        """Sends a call; what comes back for the arrays is written into `spans`."""
        process = self._start()
        overdue = threading.Timer(timeout, process.kill)
        overdue.start()
        try:
            return self._talk(process, message, spans)
        except (BrokenPipeError, EOFError):
            raise KernelFault(self._report(process.wait(), timeout)) from None
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

    def _report(self, code: int, timeout: float) -> str:
        self.said.seek(0)
        text = build.lines(self.path, self.said.read().decode(errors="replace"))
        if code == -9:
            text += f"\nkilled, after {timeout} s or by the system"
        self.close()
        return f"ended with {code}\n{text}"

    @staticmethod
    def _talk(process: subprocess.Popen[bytes], message: bytes, spans: list[np.ndarray]) -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = process.stdout

        def read(count: int) -> bytes:
            data = answers.read(count)
            if len(data) != count:
                raise EOFError
            return data

        def number(layout: str) -> Any:
            return struct.unpack(layout, read(struct.calcsize(layout)))[0]

        process.stdin.write(message)
        process.stdin.flush()
        if number("<c") == b"x":
            raise TypeError(read(number("<I")).decode())
        code = int(number("<q"))
        for span in spans:
            if number("<?"):
                span[:] = np.frombuffer(read(span.nbytes), np.uint8)
        return code
