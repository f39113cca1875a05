"""What every command shares about files: errors for people, pairing, and writing all or nothing."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

Writer = Callable[[IO[bytes]], None]


class UserError(Exception):
    """Something is wrong with what was asked; the text is one line naming it and the remedy."""


def require_extra(module: str, package: str) -> Any:
    """The imported module, or one line that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{package} is not installed: pip install {package} ({error})") from None


def show(text: str) -> None:
    """Prints, whatever letters the terminal has: a file's name is no reason to fail."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def same_file(a: Path, b: Path) -> bool:
    with contextlib.suppress(OSError):
        if os.path.samefile(a, b):
            return True
    return os.path.realpath(a) == os.path.realpath(b)


def reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


# --- reading ------------------------------------------------------------------------------------


def require_readable(path: Path) -> None:
    """A file that is there, is not empty, and can be opened."""
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"{path} is empty (0 bytes)")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, expected a file") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None


def files_by_stem(folder: Path, suffixes: Iterable[str], what: str) -> dict[str, Path]:
    """Files of a folder (not of its subfolders) by name without extension, sorted."""
    wanted = tuple(suffixes)
    found: dict[str, Path] = {}
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {reason(error)}") from None
    for path in entries:
        if path.name.startswith(".") or path.suffix.lower() not in wanted or not path.is_file():
            continue
        if path.stem in found:
            raise UserError(
                f"{folder} holds both {found[path.stem].name} and {path.name}: "
                f"{what} are matched by name without extension, so keep one of them"
            )
        found[path.stem] = path
    if not found:
        raise UserError(f"no {what} in {folder} (looked for {', '.join(wanted)})")
    return found


def name_some(names: Iterable[str], most: int = 5) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


# --- writing ------------------------------------------------------------------------------------


def _temporary(path: Path) -> Path:
    return path.parent / f".segfast-{secrets.token_hex(6)}.tmp"


def require_writable(path: Path) -> None:
    """Checks before the work that ``path`` can be written after it (leaves nothing behind)."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
    probe = _temporary(path)
    try:
        probe.open("xb").close()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from None


def make_folder(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except FileExistsError:
        raise UserError(f"cannot write to {path}: it is a file, expected a folder") from None
    except FileNotFoundError:
        raise UserError(f"cannot make {path}: the folder {path.parent} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot make {path}: {reason(error)}") from None


def write_all(writers: dict[Path, Writer]) -> None:
    """Writes every file to a temporary neighbour, then moves all into place; or leaves nothing.

    ``os.replace`` within a folder is atomic: a reader sees the old file or the whole new one.
    """
    finished: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, write in writers.items():
            target = Path(os.path.realpath(path))  # writing through a link keeps the link
            temporary = _temporary(target)
            finished.append((temporary, target))
            with temporary.open("xb") as file:
                write(file)
        for temporary, path in finished:
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from None
    finally:
        for temporary, _ in finished:
            temporary.unlink(missing_ok=True)
