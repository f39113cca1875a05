"""``segfast models``: the architectures by name, and what is known of one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from segfast.cli.files import UserError
from segfast.cli.info import readable


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("models", help="architectures by name, and what is known of one")
    parser.set_defaults(run=run)
    parser.add_argument(
        "pattern",
        nargs="?",
        default="*",
        help="shell pattern of names, such as 'fcn*'; a whole name tells all about it",
    )
    parser.add_argument(
        "--size",
        type=image_size,
        metavar="HxW",
        help="image that one model's multiply-accumulates are counted for (default: 512x512)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument(
        "--markdown",
        action="store_true",
        help="a table of names, layouts, parameters, images and sources (README.md has it)",
    )


def image_size(text: str) -> tuple[int, int]:
    """512x1024 -> (512, 1024)."""
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, such as 512x1024; got {text!r}")
    return int(match[1]), int(match[2])


def run(args: argparse.Namespace) -> int:
    from segfast.models import list_models, model_info
    from segfast.models._registry import nearest

    names = list_models(args.pattern)
    if not names:
        near = nearest(args.pattern, list_models())
        raise UserError(f"no model is called {args.pattern!r} ({near}; `segfast models` lists all)")
    one = names == [args.pattern] and not args.markdown
    if args.size is not None and not one:
        raise UserError("--size is for all that is known of one model, not for lists and tables")
    if args.markdown:
        print("\n".join(table(names)))
    elif one:
        try:
            facts = _facts(model_info(args.pattern, size=args.size or (512, 512)))
        except ValueError as error:
            raise UserError(f"--{error}" if str(error).startswith("size ") else error) from None
        shown = json.dumps(facts, indent=2) if args.json else "\n".join(readable(_in_words(facts)))
        print(shown)
    else:
        print(json.dumps(names, indent=2) if args.json else "\n".join(names))
    return 0


def table(names: Sequence[str]) -> list[str]:
    """Markdown: a row for each model, as its name builds it."""
    import torch

    from segfast.models import create_model, model_source
    from segfast.models._info import parameters

    lines = ["| name | layout (others) | parameters | images | source |", "|---|---|--:|---|---|"]
    for name in names:
        with torch.device("meta"):
            model = create_model(name)
        first, *others = model.layouts
        layouts = f"{first} ({', '.join(others)})" if others else first
        images = model.preprocessing or "not published"
        lines.append(
            f"| `{name}` | {layouts} | {parameters(model):,} | {images} | {model_source(name)} |"
        )
    return lines


def _facts(info: Any) -> dict[str, Any]:
    """Every attribute, in what JSON knows; null: the whole image is seen, nothing is published."""
    field = info.receptive_field.rows
    return {
        **dataclasses.asdict(info),
        "receptive_field": field.size if math.isfinite(field.size) else None,
        "output_stride": info.output_stride,
    }


def _in_words(facts: dict[str, Any]) -> dict[str, Any]:
    """The same for a reader."""
    said = {
        "size": " x ".join(map(str, facts["size"])),
        "receptive_field": facts["receptive_field"] or "the whole image",
        "preprocessing": facts["preprocessing"] or "not published",
    }
    return {**facts, **said}
