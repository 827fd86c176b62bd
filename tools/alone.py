"""Run every test function by itself: what needs something of another test fails here.

    python -m tools.alone [tests/test_x.py ...]

The tests are imported once. Each function runs with the first of its parameters in a process that
is forked from there, so that its fixtures are its own; as many run at a time as there are
processors. Where the order is random (make certain), such a test fails only when it comes first.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, Final

import pytest

_FORK: Final = multiprocessing.get_context("fork")


class Loop:
    """A plugin of pytest: its loop over the tests, with a process for each."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the first of each function's parameters."""
        first: dict[tuple[str, str], pytest.Item] = {}
        for item in items:
            parent = "" if item.parent is None else item.parent.nodeid
            first.setdefault((parent, getattr(item, "originalname", item.name)), item)
        items[:] = first.values()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the tests; where one cannot be imported, leave it to pytest to say so."""
        if session.testsfailed:
            return None
        # now, or every process would make the folder of all tests for itself
        session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined] # noqa: SLF001
        for item, reports in _run(session.items):
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
        return True


class Reports:
    """A plugin of pytest in the process of one test: it collects what is said of it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.found: list[Any] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a report, in the form in which xdist sends one."""
        hook = self._config.hook
        self.found.append(hook.pytest_report_to_serializable(config=self._config, report=report))


def _run(items: Sequence[pytest.Item]) -> Iterator[tuple[pytest.Item, list[pytest.TestReport]]]:
    """Yield every test with its reports, as they end."""
    running: dict[Connection, tuple[pytest.Item, ForkProcess]] = {}
    left = list(reversed(items))
    while left or running:
        while left and len(running) < (os.cpu_count() or 1):
            item = left.pop()
            receiver, sender = _FORK.Pipe(duplex=False)
            process = _FORK.Process(target=_run_one, args=(item, sender))
            process.start()
            sender.close()
            running[receiver] = item, process
        for receiver in [one for one in wait(running) if isinstance(one, Connection)]:
            item, process = running.pop(receiver)
            yield item, _receive(item, receiver, process)


def _run_one(item: pytest.Item, sender: Connection) -> None:
    plugins = item.config.pluginmanager
    plugins.unregister(name="terminalreporter")  # the first process has one
    reports = Reports(item.config)
    plugins.register(reports)
    item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
    sender.send(reports.found)


def _receive(
    item: pytest.Item, receiver: Connection, process: ForkProcess
) -> list[pytest.TestReport]:
    """Return the reports of a test; one of our own if its process ended without them."""
    hook = item.config.hook
    sent = None
    with suppress(EOFError):
        sent = receiver.recv()
    process.join()
    if sent is None:
        why = f"its process ended with {process.exitcode}"
        return [pytest.TestReport(item.nodeid, item.location, {}, "failed", why, "call")]
    return [hook.pytest_report_from_serializable(config=item.config, data=data) for data in sent]


def main(arguments: Sequence[str]) -> int:
    """Run the tests of the given files, or all; return pytest's status."""
    return int(
        pytest.main(["-q", "-p", "no:xdist", "-m", "not trial", *arguments], plugins=[Loop()])
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
