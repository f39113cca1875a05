"""``segfast info``: what is installed, what it runs on, which kernel serves what."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from segfast.cli.files import require_extra


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info", help="version, build, instruction set, threads, devices, kernels"
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="compile the Triton kernels for sm_80, sm_90, sm_100; show what they take (minutes)",
    )


def run(args: argparse.Namespace) -> int:
    if args.kernels:
        return kernels(as_json=args.json)
    from segfast.info import info

    facts = info()
    print(json.dumps(facts, indent=2) if args.json else "\n".join(readable(facts)))
    return 0


def kernels(as_json: bool) -> int:
    """Prints a line per kernel and target; 1 where one spills or takes too much."""
    from segfast import _triton_resources

    require_extra("triton", "triton")
    return _triton_resources.show(["--json"] if as_json else [])


def readable(facts: Mapping[str, Any], indent: int = 0) -> list[str]:
    """Aligned ``name  value`` lines; nested facts indented; nothing known shows as "none"."""
    width = max((len(name) for name in facts), default=0)
    lines = []
    for name, value in facts.items():
        title = " " * indent + name.replace("_", " ").ljust(width)
        if isinstance(value, Mapping) and value:
            lines += [title.rstrip(), *readable(value, indent + 2)]
            continue
        if isinstance(value, (list, tuple)):
            value = ", ".join(str(item) for item in value)
        lines.append(f"{title}  {'none' if value in (None, '', {}) else value}")
    return lines
