"""A batch without those that were stopped before it began, and what its rows hear."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from worker.jobs.batch import Batch
from worker.jobs.control import JobControl, Stopped
from worker.jobs.ticket import Placed, Row, Ticket
from worker.media.picture import Picture
from worker.seam import Control, Made, Outcome
from worker.tasks import picture
from worker.tasks.picture import PictureWish
from worker.tasks.picture_tasks import EDIT
from worlds import published

WISH = replace(picture.warm_up(published.IMAGE), steps=3)


class Model:
    """Makes a picture of each wish, unless its prompt is "bad"."""

    def __init__(self) -> None:
        self.made: list[list[str]] = []

    def make(self, wishes: Sequence[PictureWish], controls: Sequence[Control]) -> Iterator[Outcome]:
        """Make them one after the other."""
        self.made.append([wish.prompt for wish in wishes])
        for wish, control in zip(wishes, controls, strict=True):
            try:
                control.report("denoise", 1, 3)
            except Stopped as stop:
                yield stop
                continue
            made = Made(Picture(Image.new("RGB", (1, 1))), {})
            yield ValueError("bad") if wish.prompt == "bad" else made


def batch_of(model: Any, settled: list[Any], *jobs: str) -> Batch:
    """Return a batch with a row for each prompt of each job."""
    rows: list[Row] = []
    for prompts in jobs:
        wishes = [replace(WISH, prompt=prompt) for prompt in prompts.split()]
        control = JobControl(lambda _: None, EDIT.spans, len(wishes), 3)
        ticket = Ticket("model", lambda: model, wishes, control)
        rows += [Row(ticket, index, len(rows) + index) for index in range(len(wishes))]

    def settle(_: Batch, row: Row, outcome: Placed | Exception) -> None:
        assert isinstance(row.wish, PictureWish)
        settled.append((row.wish.prompt, outcome))

    return Batch(7, rows, settle)


def test_rows_that_were_stopped_before_are_left_out_and_each_hears_of_it() -> None:
    async def case() -> None:
        model, settled = Model(), list[Any]()
        batch = batch_of(model, settled, "a b", "c bad", "d")
        batch.rows[0].ticket.control.stop()
        await asyncio.to_thread(batch.make)
        await asyncio.sleep(0)
        assert model.made == [["c", "bad", "d"]]
        assert batch.is_broken
        found = dict(settled)
        assert [prompt for prompt, _ in settled] == ["a", "b", "c", "bad", "d"]
        assert all(isinstance(found[prompt], Stopped) for prompt in "ab")
        assert isinstance(found["bad"], ValueError)
        for index, prompt in ((0, "c"), (2, "d")):
            placed = found[prompt]
            assert isinstance(placed, Placed)
            assert (placed.batch, placed.size, placed.index) == (7, 3, index)

    asyncio.run(case())


def test_a_batch_of_stopped_rows_alone_is_not_made() -> None:
    async def case() -> None:
        model, settled = Model(), list[Any]()
        batch = batch_of(model, settled, "a b", "c")
        assert not batch.is_broken
        batch.stop()
        with pytest.raises(Stopped):
            await asyncio.to_thread(batch.make)
        await asyncio.sleep(0)
        assert model.made == []
        assert "c" not in dict(settled), "what ends the batch ends the last"

    asyncio.run(case())


def test_a_row_has_waited_since_its_job_came(monkeypatch: pytest.MonkeyPatch) -> None:
    async def case() -> None:
        model, settled = Model(), list[Any]()
        now = [100.0]
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])
        batch = batch_of(model, settled, "a")
        now[0] = 100.25
        late = Batch(8, batch.rows, lambda _, row, outcome: settled.append((row, outcome)))
        batch.make()
        late.make()
        monkeypatch.undo()
        await asyncio.sleep(0)
        waited = [outcome.describe() for _, outcome in settled]
        assert waited == [
            {"size": 1, "index": 0, "waited_ms": 0},
            {"size": 1, "index": 0, "waited_ms": 250},
        ]

    asyncio.run(case())
