"""The ``segfast`` command: ``crf``, ``demo``, ``bench``, ``info``, ``models``.

Exit codes: 0 done, 2 something is wrong with what was asked (one line on stderr says what and what
was expected), 130 interrupted; ``bench`` returns pytest's own code, ``info --kernels`` 1 where a
kernel spills or takes too much.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from segfast._version import __version__
from segfast.cli.bench import add_parser as add_bench
from segfast.cli.crf import add_parser as add_crf
from segfast.cli.demo import add_parser as add_demo
from segfast.cli.files import UserError, reason
from segfast.cli.info import add_parser as add_info
from segfast.cli.models import add_parser as add_models

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """argparse without the usage block (a mistake is one line) and without guessed options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="segfast",
        description="Fast, exact, deterministic kernels for semantic segmentation.",
    )
    parser.add_argument("--version", action="version", version=f"segfast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (add_crf, add_demo, add_bench, add_info, add_models):
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: the process's) and returns the exit code.

    Example:
        >>> from segfast.cli import main
        >>> main(["crf", "photo.png", "missing.png", "-o", "refined.png"])
        2
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            args = build_parser().parse_args(argv)
            _require_instruction_set()
            return int(args.run(args))
    except UserError as error:
        _say(f"error: {error}")
        return 2
    except MemoryError:
        _say("error: not enough memory; use a smaller image or fewer labels")
        return 2
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # the reader of stdout (head, less) has gone: not our failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a name too long, a loop of links, a disk that goes away ...
        _say(f"error: {error.filename or 'file system'}: {reason(error)}")
        return 2


def _require_instruction_set() -> None:
    from segfast._native import native

    try:
        native()
    except ValueError as error:
        raise UserError(f"SEGFAST_ISA: {error}") from None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")


def _say(text: str) -> None:
    print("segfast:", " ".join(text.split()), file=sys.stderr)
