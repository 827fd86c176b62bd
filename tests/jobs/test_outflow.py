"""Parts are sent in order while the rest is made, all of them before the job ends."""

import asyncio
import threading

import numpy as np
import pytest

from worker.jobs.outflow import STREAM_FORM, Outflow, Sink
from worker.media.piece import Encoded
from worker.media.sound import Sound

PCM = (STREAM_FORM, 100)


def make_part(number: int) -> Sound:
    return Sound(np.full(3, number, np.int16), 24_000)


def collect(sent: list[tuple[int, bytes]]) -> Sink:
    async def take(number: int, part: Encoded) -> None:
        await asyncio.sleep(0)
        sent.append((number, part.data))

    return take


def test_all_parts_of_another_thread_are_sent_in_order_before_it_is_left() -> None:
    sent: list[tuple[int, bytes]] = []

    async def case() -> None:
        async with Outflow(collect(sent), *PCM) as outflow:
            parts = [make_part(number) for number in range(5)]
            thread = threading.Thread(target=lambda: list(map(outflow.take, parts)))
            thread.start()
            await asyncio.to_thread(thread.join)

    asyncio.run(case())
    assert sent == [(n, bytes([n, 0] * 3)) for n in range(5)]


def test_an_error_drops_what_waits() -> None:
    sent: list[tuple[int, bytes]] = []

    async def case() -> None:
        async with Outflow(collect(sent), *PCM) as outflow:
            outflow.take(make_part(1))
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(case())
    assert sent == []


def test_what_the_sink_raises_ends_the_job() -> None:
    async def refuse(_number: int, _part: Encoded) -> None:
        raise OSError("gone")

    async def case() -> None:
        async with Outflow(refuse, *PCM) as outflow:
            outflow.take(make_part(1))

    with pytest.raises(OSError, match="gone"):
        asyncio.run(case())


def test_without_a_sink_nothing_is_sent() -> None:
    async def case() -> None:
        async with Outflow(None, *PCM) as outflow:
            outflow.take(make_part(1))

    asyncio.run(case())


def test_a_sink_has_ended_when_its_job_is_left() -> None:
    """What it does on a cancel is waited for."""
    seen: list[str] = []

    async def take(_number: int, _part: Encoded) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("ended")

    async def case() -> None:
        async with Outflow(take, *PCM) as outflow:
            outflow.take(make_part(1))
            await begun.wait()
            raise KeyError

    begun = asyncio.Event()

    async def leave() -> None:
        with pytest.raises(KeyError):
            await case()
        seen.append("left")

    asyncio.run(leave())
    assert seen == ["ended", "left"]
