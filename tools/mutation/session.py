"""A pytest session inside a forked process: which tests, in which order, with which results."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import pytest

from tools.mutation.reach import Recorder

OPTIONS: Final = (
    *("-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("--randomly-seed=0", "--randomly-dont-reorganize"),  # every session is the same
    # plugins are imported before pytest can rewrite their assertions
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
# The same examples for every mutant: a property's verdict must not depend on chance.
STEADY: Final = ("--hypothesis-seed=0",)

Send = Callable[[dict[str, Any]], None]


class Chosen:
    """Run only the named tests, in that order, and report each when it starts."""

    def __init__(self, names: Sequence[str], send: Send) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._send = send

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out the others."""
        kept = [item for item in items if item.nodeid in self._places]
        items[:] = sorted(kept, key=lambda item: self._places[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Report that a test starts, so that its time can be limited from outside."""
        self._send({"start": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Report which test failed."""
        if report.failed:
            self._send({"failed": report.nodeid})


class Recording:
    """Run every test of a file and report the lines it reached, its duration and its result.

    Lines that a module or session fixture ran count for every test that uses the fixture.
    """

    def __init__(self, recorder: Recorder, send: Send) -> None:
        self._recorder = recorder
        self._send = send
        self._contexts: dict[str, str] = {}
        self._shared: dict[int, list[str]] = {}
        self._seconds: dict[str, float] = {}
        self._inside: dict[str, float] = {}
        self._now = ""
        self._results: dict[str, str] = {}

    def _number(self, name: str) -> str:
        return self._contexts.setdefault(name, str(len(self._contexts)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Record the lines that the test runs."""
        self._now = item.nodeid
        before = self._recorder.switch(self._number(item.nodeid))
        self._send({"start": item.nodeid})
        try:
            return (yield)
        finally:
            self._recorder.switch(before)
            definitions = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009 - pytest's own
            shared = {
                context
                for found in definitions.values()
                for definition in found
                for context in self._shared.get(id(definition), [])
            }
            self._send(
                {
                    "test": item.nodeid,
                    "context": self._number(item.nodeid),
                    "shared": sorted(shared),
                    "seconds": self._seconds.get(item.nodeid, 0) - self._inside.get(item.nodeid, 0),
                    "result": self._results.get(item.nodeid, "failed"),
                }
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Iterator[Any]:
        """Record the lines that a shared fixture runs."""
        if fixturedef.scope == "function":
            return (yield)
        name = f"{fixturedef.baseid}::{fixturedef.argname}[{getattr(request, 'param_index', 0)}]"
        context = self._number(name)
        self._shared.setdefault(id(fixturedef), []).append(context)
        before = self._recorder.switch(context)
        start = time.monotonic()
        inside = self._inside.get(self._now, 0.0)
        try:
            return (yield)
        finally:
            self._recorder.switch(before)
            spent = time.monotonic() - start  # including that of the fixtures it requested
            own = spent - (self._inside.get(self._now, 0.0) - inside)
            self._inside[self._now] = inside + spent
            self._send({"fixture": context, "seconds": own})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up the time of set-up, call and tear-down."""
        name = report.nodeid
        self._seconds[name] = self._seconds.get(name, 0.0) + report.duration
        if report.failed or report.skipped or report.when == "call":
            self._results[name] = report.outcome


def run(files: Sequence[str], folder: str, plugin: object, *, stop: bool) -> int:
    """Run pytest on files in this process; tests write below `folder`. Returns its exit status."""
    options = [*OPTIONS, f"--basetemp={folder}/pytest"]
    with suppress(ImportError):
        import hypothesis  # noqa: F401, PLC0415 - its option is there only with it

        options.extend(STEADY)
    if stop:
        options.append("-x")
    return int(pytest.main([*options, *files], plugins=[plugin]))


def make_sender(descriptor: int) -> Send:
    """Return a function that sends messages through a pipe, one line of JSON each."""

    def send(message: dict[str, Any]) -> None:
        os.write(descriptor, json.dumps(message).encode() + b"\n")

    return send
