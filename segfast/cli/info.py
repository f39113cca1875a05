"""``segfast info``: what is installed, what it runs on, which kernel serves what."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info", help="version, build, instruction set, threads, devices, kernels"
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    from segfast.info import info

    facts = info()
    print(json.dumps(facts, indent=2) if args.json else "\n".join(readable(facts)))
    return 0


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
