"""What the launchers of dense dilated convolution share: tables on the device, dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import triton
import triton.language as tl
from torch import Tensor

# The interpreter's bfloat16 is wrong: it multiplies the rounded numbers in float32.
DOT_DTYPES = {
    torch.bfloat16: tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
}


def require_no_capture(device: torch.device) -> None:
    """Before a table is made that is to be kept."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "segfast: a dilated convolution of new sizes cannot be recorded in a CUDA graph; "
            "call it once before"
        )


def upload(device: torch.device, *tables: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """[rows, columns] int32 each."""

    def tensor(rows: Sequence[tuple[int, ...]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int32, device=device)

    # Inductor takes all that a thread allocates before its CUDA graphs from a pool of theirs, which
    # may hold nothing for good: another thread allocates.
    with ThreadPoolExecutor(1) as thread:
        return list(thread.map(tensor, tables))
