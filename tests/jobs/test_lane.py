"""What waits for the device, and what is made together: oldest first, and one outcome per job."""

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from worker.errors import BadPicture, CudaOutOfMemory, DeviceLost, WorkerError
from worker.families.sharing import Sharing
from worker.jobs.control import JobControl, Stopped
from worker.jobs.forming import Caps, choose
from worker.jobs.lane import Lane
from worker.jobs.ticket import Placed, Row, Ticket
from worker.media.picture import Picture
from worker.seam import Control, Made, Outcome
from worker.tasks import picture
from worker.tasks.picture import PictureWish
from worker.tasks.picture_tasks import EDIT
from worlds import published
from worlds.standin import SERVED

WISH = replace(picture.warm_up(published.IMAGE), steps=3)
MANY = 1 << 40


@dataclass(frozen=True)
class Letter:
    """The key of the pictures whose prompts begin with the same letter."""

    letter: str
    pixels: int = 100


class Batching:
    """A model whose pictures share steps where their prompts begin with the same letter.

    A prompt with "bad" gives a bad picture; `most` pictures fit in memory; `on_step` is called
    before each report, in the lane's thread. With `unwinds`, a stop of one picture ends all.
    """

    served = SERVED

    def __init__(self, *, most: int = 99, unwinds: bool = False) -> None:
        self.batches: list[list[str]] = []
        self.on_step: Callable[[], None] = lambda: None
        self.left: list[int] = []
        self._most, self._unwinds = most, unwinds

    def make_key(self, wish: PictureWish) -> Letter | None:
        """Return the first letter; none for "?", and a bug for "!"."""
        if wish.prompt.startswith("!"):
            raise KeyError(wish.prompt)
        return None if wish.prompt.startswith("?") else Letter(wish.prompt[0])

    def read_ahead(self, wish: PictureWish) -> PictureWish:
        """Return it as it is."""
        return wish

    def make(self, wishes: Sequence[PictureWish], controls: Sequence[Control]) -> Iterator[Outcome]:
        """Do three steps of all wishes at once."""
        self.batches.append([wish.prompt for wish in wishes])
        if len(wishes) > self._most:
            raise CudaOutOfMemory("no memory")
        sharing = Sharing(controls, drops=True)
        rows = len(wishes)
        for step in (1, 2, 3):
            self.on_step()
            if self._unwinds:
                for control in controls:
                    control.report("denoise", step, 3)
            else:
                sharing.report("denoise", step, 3)
            kept = sharing.drop_ended()
            rows = rows if kept is None else len(kept)
            self.left.append(rows)
        for place, wish in enumerate(wishes):
            if "lost" in wish.prompt:
                raise DeviceLost("gone")
            bad = BadPicture("black") if "bad" in wish.prompt else None
            made = Made(Picture(Image.new("RGB", (1, 1))), {"denoise": float(len(wishes))})
            yield sharing.find_end(place) or bad or made

    def warm(self) -> None:
        """Have nothing to load."""

    def release(self) -> None:
        """Free nothing."""


class Gate:
    """A place in the lane's thread where it waits for the test."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        """Wait until it is open."""
        self.reached.set()
        assert self.go.wait(30)


def ask(model: Batching, *prompts: str, **more: Any) -> Ticket:
    """Return what a job asks for: a picture for each prompt."""
    wishes = [replace(WISH, prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    control = JobControl(more.pop("publish", lambda _: None), EDIT.spans, len(wishes), 3)
    return Ticket("model", more.pop("take", lambda: model), wishes, control, **more)


def lane(size: int = 4, pixels: int = MANY, **more: Any) -> Lane:
    return Lane(Caps(size, pixels), **{"timeout_s": 0.0, "note": lambda _: None, **more})


def settled(device: Lane, tickets: Callable[[], Sequence[Ticket]]) -> list[list[Placed] | Any]:
    """Return what becomes of tickets that are handed in at once, in order."""

    async def case() -> list[list[Placed] | Any]:
        jobs = (device.make(ticket) for ticket in tickets())
        return await asyncio.gather(*jobs, return_exceptions=True)

    return asyncio.run(case())


async def wait_for(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


async def cancel(job: "asyncio.Task[Any]", ticket: Ticket) -> None:
    """Cancel a job, and wait until its lane knows."""
    job.cancel()
    while not ticket.control.is_stopped:  # noqa: ASYNC110 - the product has no event for it
        await asyncio.sleep(0)


# What is made together.


def test_without_a_batch_size_each_wish_is_made_alone_and_in_ask() -> None:
    model = Batching()
    first, second = settled(lane(1), lambda: [ask(model, "a1", "a2"), ask(model, "a3")])
    assert model.batches == [["a1"], ["a2"], ["a3"]]
    assert [(one.batch, one.size, one.index) for one in [*first, *second]] == [
        (0, 1, 0),
        (1, 1, 0),
        (2, 1, 0),
    ]


def test_the_oldest_is_made_with_those_of_its_key_in_the_order_in_which_they_came() -> None:
    model = Batching()
    tickets = (("a1",), ("b1", "b2"), ("a2", "a3", "a4"), ("b3",), ("a5",))
    results = settled(lane(), lambda: [ask(model, *prompts) for prompts in tickets])
    assert model.batches == [["a1", "a2", "a3", "a4"], ["b1", "b2", "b3"], ["a5"]]
    assert [[(one.batch, one.size, one.index) for one in result] for result in results] == [
        [(0, 4, 0)],
        [(1, 3, 0), (1, 3, 1)],
        [(0, 4, 1), (0, 4, 2), (0, 4, 3)],
        [(1, 3, 2)],
        [(2, 1, 0)],
    ]


def test_pictures_of_one_job_share_too_as_many_as_may() -> None:
    model = Batching()
    settled(lane(3), lambda: [ask(model, *"aaaa")])
    assert [len(batch) for batch in model.batches] == [3, 1]


@pytest.mark.parametrize(
    ("pixels", "sizes"), [(99, [1] * 4), (200, [2, 2]), (399, [3, 1]), (400, [4])]
)
def test_a_batch_has_at_most_so_many_pixels(pixels: int, sizes: list[int]) -> None:
    model = Batching()
    settled(lane(8, pixels), lambda: [ask(model, *"aaaa")])
    assert [len(batch) for batch in model.batches] == sizes


def test_what_has_no_pixels_is_capped_by_count_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Batching()
    monkeypatch.setattr(model, "make_key", lambda wish: Letter(wish.prompt, pixels=0))
    settled(lane(3, 1), lambda: [ask(model, *"aaaa")])
    assert [len(batch) for batch in model.batches] == [3, 1]


def test_a_job_that_wants_no_batch_and_a_wish_without_a_key_are_alone() -> None:
    model = Batching()
    tickets = lambda: [  # noqa: E731 - tickets are made inside the loop
        ask(model, "a1", "a2", may_share=False),
        ask(model, "a3"),
        ask(model, "?1", "?2"),
        ask(model, "a4"),
    ]
    settled(lane(), tickets)
    assert model.batches == [["a1"], ["a2"], ["a3", "a4"], ["?1"], ["?2"]]


def test_two_models_share_nothing() -> None:
    one, other = Batching(), Batching()
    settled(
        lane(),
        lambda: [ask(one, "a1"), replaced_model(ask(other, "a2"), "other"), ask(one, "a3")],
    )
    assert (one.batches, other.batches) == ([["a1", "a3"]], [["a2"]])


def replaced_model(ticket: Ticket, model_id: str) -> Ticket:
    ticket.model_id = model_id
    return ticket


def test_a_wish_whose_key_cannot_be_found_is_alone_and_ends_no_other() -> None:
    model = Batching()
    with structlog.testing.capture_logs() as lines:
        results = settled(lane(), lambda: [ask(model, p) for p in ("a1", "!", "a2", "!")])
    assert model.batches == [["a1", "a2"], ["!"], ["!"]]
    assert [len(result) for result in results] == [1] * 4
    assert [line["event"] for line in lines].count("no batch key") == 2


@given(
    keys=st.lists(st.sampled_from("abc?"), min_size=1, max_size=20),
    size=st.integers(1, 8),
    pixels=st.integers(0, 900),
)
def test_before_any_row_there_are_at_most_as_many_batches_as_older_rows(
    keys: list[str], size: int, pixels: int
) -> None:
    model, caps = Batching(), Caps(size, pixels)

    async def case() -> list[list[Row]]:
        waiting = [Row(ask(model, key), 0, number) for number, key in enumerate(keys)]
        batches = []
        while waiting:
            chosen, most = choose(lambda: model, tuple(waiting), caps)
            assert chosen[0] is waiting[0]
            assert 1 <= len(chosen) <= most <= size
            batches.append(chosen)
            waiting = [row for row in waiting if row not in chosen]
        return batches

    batches = asyncio.run(case())
    assert sorted(row.number for batch in batches for row in batch) == list(range(len(keys)))
    for number, batch in enumerate(batches):
        assert all(row.number >= number for row in batch)
        assert len({keys[row.number] for row in batch}) == 1
        assert [row.number for row in batch] == sorted(row.number for row in batch)
        assert len(batch) == 1 or (keys[batch[0].number] != "?" and 100 * len(batch) <= pixels)


# What a batch waits for.


def test_a_batch_that_is_not_full_waits_for_the_next_job_of_its_key() -> None:
    async def case() -> list[list[str]]:
        model, device = Batching(), lane(2, timeout_s=600)
        first = asyncio.create_task(device.make(ask(model, "a1")))
        other = asyncio.create_task(device.make(ask(model, "b1")))
        await asyncio.sleep(0.05)
        assert model.batches == []
        await device.make(ask(model, "a2"))
        (placed,) = await first
        assert placed.waited_ms >= 45
        assert placed.batch == 0  # what only waited was no batch
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        return model.batches

    assert asyncio.run(case()) == [["a1", "a2"]]


def test_a_batch_waits_no_longer_than_it_may() -> None:
    model = Batching()
    ((placed,),) = settled(lane(timeout_s=0.05), lambda: [ask(model, "a1")])
    assert (placed.size, placed.waited_ms >= 50) == (1, True)


def test_a_batch_looks_for_others_only_when_what_waits_has_changed() -> None:
    async def case() -> None:
        model, device, takes = Batching(), lane(2, timeout_s=600), list[int]()
        looked = threading.Semaphore(0)

        def take() -> Batching:
            takes.append(1)
            looked.release()
            return model

        job = asyncio.create_task(device.make(ask(model, "a1", take=take)))
        assert await asyncio.to_thread(looked.acquire, timeout=30)
        other = asyncio.create_task(device.make(ask(model, "b1")))
        assert await asyncio.to_thread(looked.acquire, timeout=30)
        await asyncio.sleep(0.05)
        assert len(takes) == 2
        await device.make(ask(model, "a2"))
        await job
        await leave(other)
        assert model.batches == [["a1", "a2"]]

    asyncio.run(case())


def test_a_batch_whose_time_is_over_exactly_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looking for others took, such as the opening of a model, is waited for too."""

    async def case() -> list[Placed]:
        model, device, gate, takes = Batching(), lane(2, timeout_s=600), Gate(), list[int]()

        def take() -> Batching:
            takes.append(1)
            gate()
            if len(takes) > 2:
                raise DeviceLost("asked once more")
            return model

        ticket, other = ask(model, "a1", take=take), ask(model, "b1")
        other.arrived = ticket.arrived
        jobs = [asyncio.create_task(device.make(one)) for one in (ticket, other)]
        await wait_for(gate.reached)
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: ticket.arrived + 600)
        gate.go.set()
        try:
            first, _ = await asyncio.gather(*jobs)
            return first
        finally:
            monkeypatch.undo()

    (placed,) = asyncio.run(case())
    assert placed.size == 1
    assert placed.waited_ms == pytest.approx(600_000)


def test_a_lane_whose_batches_waited_in_one_loop_goes_on_in_another() -> None:
    model, device = Batching(), lane(2, timeout_s=0.05)
    for _ in range(2):
        settled(device, lambda: [ask(model, "a1")])
    assert model.batches == [["a1"], ["a1"]]


@pytest.mark.parametrize("prompts", [("?",), ("a1", "a2", "a3", "a4")])
def test_what_is_alone_or_full_waits_for_nothing(prompts: tuple[str, ...]) -> None:
    model = Batching()
    settled(lane(timeout_s=600), lambda: [ask(model, *prompts)])
    assert model.batches == [list(prompts)]


def test_a_job_that_may_not_share_waits_for_nothing() -> None:
    model = Batching()
    settled(lane(timeout_s=600), lambda: [ask(model, "a", may_share=False)])
    assert model.batches == [["a"]]


def test_the_next_need_not_wait_for_the_batch_of_one_that_was_cancelled() -> None:
    async def case() -> None:
        model, device = Batching(), lane(2, timeout_s=600)
        first = asyncio.create_task(device.make(ask(model, "a1")))
        second = asyncio.create_task(device.make(ask(model, "?")))
        await asyncio.sleep(0.05)
        first.cancel()
        await second
        assert model.batches == [["?"]]

    asyncio.run(case())


class Looking:
    """A look for others that waits, once, until the test has changed what waits."""

    def __init__(self, model: Batching, *, fails: bool = False) -> None:
        self.gate = Gate()
        self._model, self._fails = model, fails

    def __call__(self) -> Batching:
        """Take the model, or fail."""
        self.gate()
        if self._fails:
            raise DeviceLost("not freed")
        return self._model


async def leave(job: "asyncio.Task[Any]") -> None:
    """Cancel a job that waits, and wait until it has ended."""
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


def test_a_job_that_leaves_while_others_are_looked_for_lets_the_next_look_anew() -> None:
    async def case() -> None:
        model, device = Batching(), lane()
        look = Looking(model)
        first = asyncio.create_task(device.make(ask(model, "a1", take=look)))
        second = asyncio.create_task(device.make(ask(model, "a2")))
        await wait_for(look.gate.reached)
        await leave(first)
        third = asyncio.create_task(device.make(ask(model, "a3")))
        await asyncio.sleep(0)
        look.gate.go.set()
        await asyncio.gather(second, third)
        assert model.batches == [["a2", "a3"]]

    asyncio.run(case())


def test_a_job_that_leaves_before_its_model_fails_keeps_no_other_waiting() -> None:
    async def case() -> None:
        notes: list[WorkerError | None] = []
        model, device = Batching(), lane(note=notes.append)
        look = Looking(model, fails=True)
        first = asyncio.create_task(device.make(ask(model, "a1", take=look)))
        second = asyncio.create_task(device.make(ask(model, "a2")))
        await wait_for(look.gate.reached)
        await leave(first)
        look.gate.go.set()
        async with asyncio.timeout(30):
            await second
        assert model.batches == [["a2"]]
        assert notes == [None]

    asyncio.run(case())


def test_one_that_left_while_others_were_looked_for_fills_no_batch() -> None:
    async def case() -> None:
        model, device = Batching(), lane(2, timeout_s=600)
        look = Looking(model)
        first = asyncio.create_task(device.make(ask(model, "a1", take=look)))
        second = asyncio.create_task(device.make(ask(model, "a2")))
        await wait_for(look.gate.reached)
        await leave(second)
        look.gate.go.set()
        await asyncio.sleep(0.05)
        assert model.batches == []
        await asyncio.gather(first, device.make(ask(model, "a3")))
        assert model.batches == [["a1", "a3"]]

    asyncio.run(case())


@pytest.mark.parametrize(("size", "prompts"), [(1, ["!1", "!2"]), (4, ["!1"])])
def test_where_nothing_is_shared_no_key_is_asked_for(size: int, prompts: list[str]) -> None:
    """Without a batch size, and for what waits alone and may wait no longer."""
    model = Batching()
    with structlog.testing.capture_logs() as lines:
        settled(lane(size), lambda: [ask(model, *prompts)])
    assert model.batches == [[prompt] for prompt in prompts]
    assert "no batch key" not in [line["event"] for line in lines]


def test_a_key_is_not_asked_for_at_the_very_end_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Batching()

    async def case() -> None:
        ticket, loop = ask(model, "!1"), asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: ticket.arrived)
        try:
            await lane(4).make(ticket)
        finally:
            monkeypatch.undo()

    with structlog.testing.capture_logs() as lines:
        asyncio.run(case())
    assert model.batches == [["!1"]]
    assert "no batch key" not in [line["event"] for line in lines]


# What ends a row alone.


def test_a_cancelled_job_leaves_a_running_batch_within_a_step_and_the_others_go_on() -> None:
    async def case() -> None:
        model, device, gates = Batching(), lane(), [Gate(), Gate(), Gate()]
        coming = iter(gates)
        model.on_step = lambda: next(coming)()  # noqa: PLW0108 - another gate at each step
        tickets = [ask(model, f"a{n}") for n in range(3)]
        jobs = [asyncio.create_task(device.make(ticket)) for ticket in tickets]
        await wait_for(gates[0].reached)
        await cancel(jobs[1], tickets[1])
        assert not jobs[1].done()  # its step is under way
        gates[0].go.set()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await jobs[1]
        assert isinstance(cancelled.value.__cause__, Stopped)
        assert not jobs[0].done()
        for gate in gates:
            gate.go.set()
        results = await asyncio.gather(jobs[0], jobs[2])
        assert [(one.size, one.index) for (one,) in results] == [(3, 0), (3, 2)]
        assert model.left == [2, 2, 2]

    asyncio.run(case())


def test_a_batch_that_nothing_waits_for_stops_and_the_next_begins() -> None:
    async def case() -> None:
        notes: list[WorkerError | None] = []
        model, device, gate = Batching(), lane(2, note=notes.append), Gate()
        model.on_step = gate
        tickets = [ask(model, "a", "a") for _ in range(2)]
        jobs = [asyncio.create_task(device.make(ticket)) for ticket in tickets]
        await wait_for(gate.reached)
        await cancel(jobs[0], tickets[0])
        await cancel(jobs[0], tickets[0])
        gate.go.set()
        with pytest.raises(asyncio.CancelledError):
            await jobs[0]
        assert len(await jobs[1]) == 2
        assert model.batches == [["a", "a"]] * 2
        assert model.left == [2] * 3
        assert notes == [None]

    asyncio.run(case())


def test_a_job_that_waits_is_cancelled_at_once_whatever_runs() -> None:
    async def case() -> None:
        model, device, gate = Batching(), lane(1), Gate()
        model.on_step = gate
        first = asyncio.create_task(device.make(ask(model, "a")))
        second = asyncio.create_task(device.make(ask(model, "b", "c")))
        await wait_for(gate.reached)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.go.set()
        await first
        assert model.batches == [["a"]]

    asyncio.run(case())


def test_others_are_made_again_without_the_one_whose_stop_unwound_them() -> None:
    async def case() -> None:
        notes: list[WorkerError | None] = []
        model, device, gate = Batching(unwinds=True), lane(note=notes.append), Gate()
        model.on_step = gate
        tickets = [ask(model, f"a{n}") for n in range(3)]
        jobs = [asyncio.create_task(device.make(ticket)) for ticket in tickets]
        await wait_for(gate.reached)
        await cancel(jobs[1], tickets[1])
        gate.go.set()
        assert len(await jobs[0]) == len(await jobs[2]) == 1
        assert jobs[1].cancelled()
        assert model.batches == [["a0", "a1", "a2"], ["a0", "a2"]]
        assert notes == [None, None]

    asyncio.run(case())


def test_a_bad_picture_fails_its_own_job_and_what_is_left_of_it() -> None:
    model = Batching()
    tickets = (("a1", "a bad", "a2", "a3"), ("a4", "a5"))
    results = settled(lane(3), lambda: [ask(model, *prompts) for prompts in tickets])
    assert isinstance(results[0], BadPicture)
    assert [one.index for one in results[1]] == [0, 1]
    assert model.batches == [["a1", "a bad", "a2"], ["a4", "a5"]]


def test_a_lost_device_fails_every_job_of_the_batch_and_is_noted_before_they_end() -> None:
    notes: list[WorkerError | None] = []
    model = Batching()

    async def case() -> list[Any]:
        device = lane(note=notes.append)

        async def job(prompt: str) -> Any:
            try:
                return await device.make(ask(model, prompt))
            except DeviceLost:
                return len(notes)

        return await asyncio.gather(*map(job, ("a1", "a lost", "a2")))

    first, *others = asyncio.run(case())
    assert [one.index for one in first] == [0]  # made before
    assert others == [3, 3]
    assert [type(note) for note in notes] == [type(None), DeviceLost, DeviceLost]


def test_a_model_that_cannot_be_taken_fails_the_job_that_asked_for_it() -> None:
    notes: list[WorkerError | None] = []

    def fail() -> Batching:
        raise DeviceLost("not freed")

    model = Batching()
    results = settled(
        lane(note=notes.append),
        lambda: [ask(model, "a1", "a2", take=fail), ask(model, "a3"), ask(model, "a4")],
    )
    assert [type(result) for result in results] == [DeviceLost, list, list]
    assert model.batches == [["a3", "a4"]]
    assert [type(note) for note in notes] == [DeviceLost, type(None), type(None)]


def test_a_device_lost_under_a_stopped_job_is_noted_whichever_of_its_pictures_heard() -> None:
    class Dying(Batching):
        def make(self, wishes: Any, controls: Any) -> Iterator[Outcome]:
            """Lose the device when the last picture is stopped."""
            try:
                yield from super().make(wishes, controls)
            except Stopped:
                raise DeviceLost("gone") from None

    async def case() -> list[WorkerError | None]:
        notes: list[WorkerError | None] = []
        model, device, gate = Dying(), lane(note=notes.append), Gate()
        model.on_step = gate
        ticket = ask(model, "a", "a")
        job = asyncio.create_task(device.make(ticket))
        await wait_for(gate.reached)
        await cancel(job, ticket)
        gate.go.set()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await job
        assert isinstance(cancelled.value.__cause__, DeviceLost)
        return notes

    assert [type(note) for note in asyncio.run(case())] == [DeviceLost]


def test_a_device_lost_after_one_left_its_batch_fails_the_others_for_good() -> None:
    async def case() -> None:
        model, device, gates = Batching(), lane(), [Gate(), Gate(), Gate()]
        coming = iter(gates)
        model.on_step = lambda: next(coming)()  # noqa: PLW0108 - another gate at each step
        tickets = [ask(model, prompt) for prompt in ("a lost", "a2", "a3")]
        jobs = [asyncio.create_task(device.make(ticket)) for ticket in tickets]
        await wait_for(gates[0].reached)
        await cancel(jobs[1], tickets[1])
        for gate in gates:
            gate.go.set()
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(one) for one in results] == [DeviceLost, asyncio.CancelledError, DeviceLost]
        assert model.batches == [["a lost", "a2", "a3"]]

    asyncio.run(case())


def test_the_first_fault_of_a_job_is_its_answer_and_a_lost_device_is_noted_all_the_same() -> None:
    notes: list[WorkerError | None] = []
    (result,) = settled(lane(note=notes.append), lambda: [ask(Batching(), "a bad", "a lost")])
    assert isinstance(result, BadPicture)
    assert [type(note) for note in notes if note is not None and note.fatal] == [DeviceLost]


# Memory.


def test_a_batch_that_runs_out_of_memory_is_halved_and_its_key_stays_so() -> None:
    notes: list[WorkerError | None] = []
    model, device = Batching(most=1), lane(8, note=notes.append)
    with structlog.testing.capture_logs() as lines:
        results = settled(device, lambda: [ask(model, *"aaaaa"), ask(model, "b")])
    assert [len(result) for result in results] == [5, 1]
    assert [len(batch) for batch in model.batches] == [5, 2, 1, 1, 1, 1, 1, 1]
    assert notes == [None] * 2
    halved = [line for line in lines if line["event"].startswith("batch halved")]
    assert [(line["size"], line["cap"]) for line in halved] == [(5, 2), (2, 1)]
    model.batches.clear()
    settled(device, lambda: [ask(model, "a", "a")])
    assert model.batches == [["a"], ["a"]]
    settled(device, lambda: [ask(model, "b", "b")])
    assert model.batches[2:] == [["b", "b"], ["b"], ["b"]]


def test_one_that_runs_out_of_memory_alone_fails_and_is_noted() -> None:
    notes: list[WorkerError | None] = []
    model = Batching(most=0)
    results = settled(lane(note=notes.append), lambda: [ask(model, *"aaa"), ask(model, "a")])
    assert [type(result) for result in results] == [CudaOutOfMemory] * 2
    # the first job's other pictures are not tried: it has failed
    assert [len(batch) for batch in model.batches] == [4, 2, 1, 1]
    assert [type(note) for note in notes] == [CudaOutOfMemory] * 2


def test_what_is_made_again_keeps_its_place_before_what_came_later() -> None:
    model = Batching(most=2)
    tickets = (("a1",), ("b1",), ("a2", "a3"), ("c1",))
    settled(lane(), lambda: [ask(model, *prompts) for prompts in tickets])
    assert model.batches == [["a1", "a2", "a3"], ["a1"], ["b1"], ["a2"], ["a3"], ["c1"]]


def test_a_failed_batch_leaves_nothing_of_its_work_alive() -> None:
    class Tensor:
        """Memory of the device."""

    kept: list[weakref.ref[Tensor]] = []

    class Leaking(Batching):
        def make(self, wishes: Any, controls: Any) -> Iterator[Outcome]:
            """Allocate, and run out of memory."""
            tensor = Tensor()
            kept.append(weakref.ref(tensor))
            yield from super().make(wishes, controls)

    async def case() -> list[bool]:
        model, device = Leaking(most=0), lane(2)
        alive = []
        for prompts in ("aa", "a"):
            with pytest.raises(CudaOutOfMemory):
                await device.make(ask(model, *prompts))
            # the thread lets go of what it ran before it takes something else
            await device._thread.run(lambda: None, lambda: None)
            alive.append(any(tensor() is not None for tensor in kept))
        return alive

    gc.disable()
    try:
        assert asyncio.run(case()) == [False, False]
    finally:
        gc.enable()
    assert len(kept) == 3


# What each job hears.


def test_every_job_hears_its_own_steps() -> None:
    model = Batching()
    heard: list[list[Any]] = [[], []]
    settled(
        lane(3),
        lambda: [
            ask(model, "a1", publish=heard[0].append),
            ask(model, "a2", "a3", "a4", publish=heard[1].append),
        ],
    )
    assert [len(batch) for batch in model.batches] == [3, 1]
    assert [update["step"] for update in heard[0]] == [1, 2, 3]
    assert [update["step"] for update in heard[1]] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert {update["steps"] for update in heard[1]} == {9}


def test_each_piece_is_reported_as_it_is_made_in_its_job() -> None:
    model = Batching()
    seen: list[tuple[int, int]] = []
    settled(
        lane(2),
        lambda: [ask(model, *"aaa", on_made=lambda i, one: seen.append((i, one.batch)))],
    )
    assert seen == [(0, 0), (1, 0), (2, 1)]


def test_a_stopped_job_takes_no_model() -> None:
    taken = list[int]()
    model = Batching()

    def take() -> Batching:
        taken.append(1)
        return model

    async def case() -> None:
        ticket = ask(model, "a", take=take)
        ticket.control.stop()
        with pytest.raises(Stopped):
            await lane(1).make(ticket)

    asyncio.run(case())
    assert taken == []


def test_what_a_batch_logs_is_known_by_its_oldest_job() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    heard: list[str] = []

    async def case() -> None:
        model = Batching()
        model.on_step = lambda: heard.append(name.get())
        house = lane(2)
        tickets = []
        for number in ("first", "second"):
            name.set(number)
            tickets.append(ask(model, f"a {number}"))
        await asyncio.gather(*map(house.make, tickets))
        assert model.batches == [["a first", "a second"]]

    asyncio.run(case())
    assert heard == ["first"] * 3
