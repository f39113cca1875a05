"""A progress bar that shows up only when a job takes more than a second."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

from segfast.cli.files import require_extra

PATIENCE, BEAT = 1.0, 0.25  # seconds before the bar appears, and between its updates


@contextlib.contextmanager
def progress(total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of ``total`` units; its bar goes to a terminal only.

    A thread of its own draws the bar, so the seconds tick while one long unit is computed.
    """
    bar = require_extra("tqdm", "tqdm").tqdm(
        total=total, desc="refining", unit=unit, delay=PATIENCE, miniters=0, leave=False,
        disable=None, file=sys.stderr,
    )  # fmt: skip
    finished = threading.Event()
    count = 0

    def draw() -> None:
        while not finished.wait(BEAT):
            bar.update(count - bar.n)

    def advance() -> None:
        nonlocal count
        count += 1

    thread = None if bar.disable else threading.Thread(target=draw, daemon=True)
    try:
        if thread is not None:
            thread.start()
        yield advance
    finally:
        finished.set()
        if thread is not None:
            thread.join()
        bar.close()
