"""What was built, on what it runs, and which kernel serves each operator."""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Any

import torch

from segfast._native import instruction_sets, native, why_not_native
from segfast._version import __version__

# (Imported by name: an operator's function may have the name of its module, and hide it.)
_OPERATORS = {
    name: import_module(f"segfast.ops.{name}")
    for name in ("dense_crf", "dilated_conv", "linear_attention", "max_unpool")
}


def info() -> dict[str, Any]:
    """Facts about this installation, as plain values ready for JSON.

    Keys: ``version``, ``python``, ``torch``, ``machine``, ``build`` (None without compiled
    kernels), ``why_not_native``, ``instruction_set`` (None likewise), ``instruction_sets`` (what
    runs here), ``threads``, ``devices``, ``served_by`` (operator -> device -> its kernel).

    Example:
        >>> import segfast
        >>> segfast.info()["version"] == segfast.__version__
        True
    """
    module = native()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "build": None if module is None else dict(module.build_info()),
        "why_not_native": why_not_native(),
        "instruction_set": None if module is None else module.instruction_set(),
        "instruction_sets": instruction_sets(),
        "threads": torch.get_num_threads(),
        "devices": ["cpu"]
        + [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())],
        "served_by": {name: operator.served_by() for name, operator in _OPERATORS.items()},
    }
