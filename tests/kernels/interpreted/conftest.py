"""Triton's kernels in its interpreter: test_triton.py runs this folder in a process of its own.

TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
