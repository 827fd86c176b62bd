"""Results are bounded in number, bytes and time; the line in its places and its words."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from worker.doors.http.line import Line, LineFull
from worker.doors.http.results import Results, measure_text
from worker.doors.http.tracked import Tracked


def run(case: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(case())


def ended(results: Results, name: str, size: int = 1) -> None:
    entry = Tracked(name, Line(1, 1).join(), output={"x": "y" * (size - 1)})
    results.add(entry)
    results.keep(entry)


def known(results: Results, names: str) -> str:
    return "".join(name for name in names if results.find(name) is not None)


def test_the_oldest_result_goes_where_there_are_too_many() -> None:
    async def case() -> None:
        results = Results(most=2)
        running = Tracked("r", Line(1, 1).join())
        results.add(running)
        for name in "abc":
            ended(results, name)
        assert known(results, "rabc") == "rbc"

    run(case)


def test_the_oldest_result_goes_where_they_are_too_large_but_the_newest_stays() -> None:
    async def case() -> None:
        results = Results(most_bytes=100)
        for name in "abc":
            ended(results, name, 50)
        assert known(results, "abc") == "bc"
        ended(results, "d", 500)
        assert known(results, "abcd") == "d"
        assert len(results) == 1

    run(case)


def test_a_result_goes_after_its_time() -> None:
    async def case() -> None:
        results = Results(seconds=0.05)
        ended(results, "a")
        assert known(results, "a") == "a"
        await asyncio.sleep(0.1)
        assert known(results, "a") == ""

    run(case)


@pytest.mark.parametrize(
    ("value", "size"), [("abc", 3), ({"ab": ["c", 1]}, 11), ([], 0), (None, 8)], ids=str
)
def test_a_value_is_measured_by_its_texts(value: Any, size: int) -> None:
    assert measure_text(value) == size


def test_places_are_taken_in_order_and_the_line_says_when_to_come_again() -> None:
    async def case() -> None:
        line = Line(1, 2)
        first, second, third = line.join(), line.join(), line.join()
        assert [one.position for one in (first, second, third)] == [0, 1, 2]
        with pytest.raises(LineFull) as full:
            line.join()
        assert full.value.retry_after == 5
        second.leave()
        assert (third.position, line.waiting) == (1, 1)
        first.leave(12.0)
        assert third.turn.is_set()
        assert (line.inside, line.waiting) == (1, 0)
        assert line.estimate() == 12
        line.join(), line.join()
        assert line.estimate() == 36
        third.leave(0.01)
        assert line.estimate() == 13

    run(case)


def test_the_seconds_are_those_of_recent_jobs_within_bounds() -> None:
    async def case() -> None:
        line = Line(2, 0)
        for seconds in (1000.0, *[0.5] * 20):
            line.join().leave(seconds)
        assert line.estimate() == 1
        line.join().leave(4000.0)
        assert line.estimate() == 60

    run(case)


def test_the_last_twenty_jobs_say_how_long_the_next_ones_take() -> None:
    """Each slot takes its share of them, and a caller comes again a second later at the soonest."""

    async def case() -> None:
        line = Line(2, 0)
        for seconds in (1000.0, 400.0, *[0.0] * 19):
            line.join().leave(seconds)
        assert line.estimate() == 10
        line.join().leave(0.0)
        assert line.estimate() == 1

    run(case)


def test_the_last_hundred_results_are_kept() -> None:
    async def case() -> None:
        results = Results()
        for number in range(101):
            ended(results, str(number))
        assert results.find("0") is None
        assert len(results) == 100

    run(case)


@pytest.mark.parametrize(("more", "names"), [("", "ab"), ("x", "b")], ids=["256 MB", "a byte more"])
def test_so_many_bytes_of_results_are_kept(more: str, names: str) -> None:
    """One text stands for many, and a result's one key counts too."""

    async def case() -> None:
        results, text = Results(), "y" * 1_000_000
        for name, texts in (("a", [text] * 128), ("b", [*[text] * 127, text[2:], more])):
            entry = Tracked(name, Line(1, 1).join(), output={"x": texts})
            results.add(entry)
            results.keep(entry)
        assert known(results, "ab") == names

    run(case)
