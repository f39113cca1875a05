"""Triton's kernels in its interpreter: test_triton.py runs this folder in a process of its own.

TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted
"""

import os
from typing import Any

collect_ignore_glob = ["test_*.py"]

if os.environ.get("TRITON_INTERPRET") == "1":
    import triton.language as tl
    from triton.runtime import interpreter

    collect_ignore_glob = []
    patch = interpreter._patch_lang

    def patch_once(fn: Any) -> Any:
        """Triton looks through its language at every call of a device function, which takes a
        fifth of the time: mostly the launch that calls it has patched all there is."""
        modules = [m for m in (tl, tl.core) if any(m is value for value in fn.__globals__.values())]
        if any(tl.core.is_builtin(m.load) for m in modules):
            return patch(fn)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once
