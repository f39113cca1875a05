"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from collections.abc import Iterator

# Threads that wait spin: with other programs on the machine that takes ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is first imported
# Benchmarks that tests start are processes of their own: pytest-benchmark need not be off there.
os.environ.pop("PYTEST_XDIST_WORKER", None)

import pytest
import torch
from hypothesis import settings

from segfast import _native
from segfast.ops import _dilated_conv_fused, _dilated_conv_kernels
from segfast.testing import poison_empty

# The same examples on every machine and no time limit: a red test stays red when it is run again.
settings.register_profile("segfast", derandomize=True, deadline=None)
settings.load_profile("segfast")


# Marker of what runs with an option alone, and why.
OPTIONAL = {
    "giant": ("--giants", "takes gigabytes: --giants"),
    "thorough": ("--all", "others like it run: --all"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--giants", action="store_true", help="also networks that take gigabytes")
    parser.addoption("--all", action="store_true", help="all of what is otherwise a sample")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker, (option, reason) in OPTIONAL.items():
        for item in items if not config.getoption(option) else ():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    for item in items:
        if item.get_closest_marker("large"):  # one at a time: each takes most of a GPU's memory
            item.add_marker(pytest.mark.xdist_group("large"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each reason to skip tests: one for each place is more than anybody reads."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.getreports("skipped")
    )
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        terminalreporter.line(f"skipped {count}: {reason}")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests and modules stay to the end: collections of garbage need not go through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def poisoned_empty() -> Iterator[None]:
    """Uninitialised memory holds NaN for the length of the test.

    SEGFAST_UNPOISONED leaves it as it is, for tools that find reads of it.
    """
    if os.environ.get("SEGFAST_UNPOISONED"):
        yield
        return
    with poison_empty():
        yield


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """The test may call torch.set_num_threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch's threads: those of two workers of pytest that wait for one another cost a sixth."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def inductor() -> None:
    """Skips the test, saying why, where torch.compile cannot make programs."""
    if shutil.which("c++") is None:
        pytest.skip("inductor needs a C++ compiler")
    if " " in torch.__file__:
        pytest.skip("inductor cannot link torch in a path with a space")


@pytest.fixture
def compiled_kernels() -> None:
    """Skips the test, saying why, where segfast._C is not there."""
    if _native.native() is None:
        pytest.skip(str(_native.why_not_native()))


@pytest.fixture
def any_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions are served as on a processor of which the plan knows nothing."""
    there, facts = _dilated_conv_kernels._available, {"avx512", "fast bfloat16"}

    def forget() -> None:
        _dilated_conv_fused.forget()
        _dilated_conv_kernels.SERVING.clear()

    monkeypatch.setattr(
        _dilated_conv_kernels,
        "_available",
        lambda device, winograd: there(device, winograd) - facts,
    )
    forget()
    yield
    forget()
