"""Work that several wait for is done once, and stops when none waits any more."""

import asyncio
import gc
from typing import Any

import pytest

from worker.loras.flight import Flights


class Work:
    """Counts its starts and stops, and waits for `go`."""

    def __init__(self) -> None:
        self.started = self.stopped = 0
        self.go = asyncio.Event()

    async def run(self) -> int:
        """Do the work; return which start this is."""
        self.started += 1
        number = self.started
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return number


async def begun(flights: Flights[int], work: Work, count: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(flights.join("key", work.run)) for _ in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def test_all_that_wait_get_what_one_start_gave() -> None:
    async def run() -> None:
        work, flights = Work(), Flights[int]()
        tasks = await begun(flights, work, 3)
        work.go.set()
        assert await asyncio.gather(*tasks) == [1, 1, 1]
        assert await flights.join("key", work.run) == 2

    asyncio.run(run())


def test_a_cancel_leaves_the_work_to_the_others_and_the_last_one_stops_it() -> None:
    async def run() -> None:
        work, flights = Work(), Flights[int]()
        first, second = await begun(flights, work, 2)
        first.cancel()
        await asyncio.wait({first})
        assert (work.started, work.stopped) == (1, 0)
        second.cancel()
        await asyncio.wait({second})
        await asyncio.sleep(0)
        assert work.stopped == 1
        (third,) = await begun(flights, work, 1)
        work.go.set()
        assert await third == 2

    asyncio.run(run())


def test_all_that_wait_get_its_error() -> None:
    async def fail() -> int:
        raise ValueError("no")

    async def run() -> None:
        flights = Flights[int]()
        tasks = [asyncio.create_task(flights.join("key", fail)) for _ in range(2)]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(one) for one in done] == ["no", "no"]
        with pytest.raises(ValueError, match="no"):
            await flights.join("key", fail)

    asyncio.run(run())


def test_whoever_asks_again_once_the_work_is_done_gets_new_work() -> None:
    """Also before the others that waited have taken its result."""

    async def run() -> None:
        work, flights = Work(), Flights[int]()

        async def ask_twice() -> list[int]:
            return [await flights.join("key", work.run) for _ in range(2)]

        twice = asyncio.create_task(ask_twice())
        others = await begun(flights, work, 2)
        work.go.set()
        assert await twice == [1, 2]
        assert await asyncio.gather(*others) == [1, 1]

    asyncio.run(run())


def test_work_that_nothing_waits_for_complains_to_nobody() -> None:
    """Whether it ends with the cancel or with an error of its own."""

    async def fail() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("no") from None
        return 0

    async def run() -> None:
        said: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        flights = Flights[int]()
        for start in (fail, Work().run):
            task = asyncio.create_task(flights.join("key", start))
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            for _ in range(3):
                await asyncio.sleep(0)
            del task
            gc.collect()
        assert said == []

    asyncio.run(run())
