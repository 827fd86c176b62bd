"""Jobs that share steps, from input to reply: each has its own picture, answer and truth."""

import asyncio
import base64
import io
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import structlog
from PIL import Image

from worker.errors import BadPicture
from worker.jobs.serve import Worker
from worker.media.piece import Encoded
from worker.seam import Control, Made, take_made
from worker.settings import read
from worker.tasks.picture import PictureWish
from worlds.standin import StandIn, StandIns, answered

Reply = dict[str, Any]


class Unread(StandIns):
    """Models that nothing is read for ahead of its turn: jobs that come at once wait at once."""

    def find_open(self, model_id: str) -> None:
        """Return none."""
        del model_id


def worker_of(model: StandIn | None = None, **environ: str) -> Worker:
    models = Unread()
    models._model = model or models._model
    return Worker(read(environ), models)


def replies(worker: Worker, *inputs: Reply) -> list[Reply]:
    """Return the replies to jobs that come at once, in order."""

    async def case() -> Sequence[Reply]:
        jobs = ({"id": f"job-{n}", "input": given} for n, given in enumerate(inputs))
        return await asyncio.gather(*(answered(worker, job) for job in jobs))

    return list(asyncio.run(case()))


def pixels(reply: Reply, index: int = 0) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(reply["images"][index]["base64"]))).tobytes()


def shared(number: int, **more: Any) -> Reply:
    return {"prompt": f"share=a {number}", "seed": number, **more}


def test_jobs_that_come_together_share_and_get_what_they_get_alone() -> None:
    inputs = [shared(1), shared(2, n=2), {"prompt": "alone", "seed": 3}, shared(4)]
    alone = replies(worker_of(), *inputs)
    assert not any("batch" in str(reply) for reply in alone)
    together = replies(worker_of(BATCH_SIZE="4"), *inputs)
    batches = [(reply["batch"]["size"], reply["batch"]["index"]) for reply in together]
    assert batches == [(4, 0), (4, 1), (1, 0), (4, 3)]
    for one, other in zip(alone, together, strict=True):
        assert [pixels(one, i) for i in range(len(one["images"]))] == [
            pixels(other, i) for i in range(len(other["images"]))
        ]
        assert one.keys() | {"batch"} == other.keys()
        assert all(set(reply["batch"]) == {"size", "index", "waited_ms"} for reply in together)


def test_a_reply_says_the_batch_of_each_of_several_pictures() -> None:
    (reply,) = replies(worker_of(BATCH_SIZE="3"), shared(1, n=4))
    own = [image["batch"] for image in reply["images"]]
    assert [(one["size"], one["index"]) for one in own] == [(3, 0), (3, 1), (3, 2), (1, 0)]
    assert reply["batch"] == own[0]
    assert own[3]["waited_ms"] >= own[0]["waited_ms"]
    (single,) = replies(worker_of(BATCH_SIZE="3"), shared(1))
    assert "batch" not in single["images"][0]


def test_a_job_may_ask_to_be_made_alone() -> None:
    first, second, third = replies(
        worker_of(BATCH_SIZE="4"), shared(1), shared(2, n=2, batch=False), shared(3, batch=True)
    )
    assert (first["batch"]["size"], third["batch"]["size"]) == (2, 2)
    assert [image["batch"]["size"] for image in second["images"]] == [1, 1]
    assert first["warnings"] == second["warnings"] == []


def test_a_worker_that_is_replaced_after_each_job_shares_nothing() -> None:
    (reply,) = replies(worker_of(BATCH_SIZE="4", REFRESH_WORKER="1"), shared(1, n=2))
    assert "batch" not in reply


def test_pictures_of_a_batch_are_limited_by_their_pixels() -> None:
    worker = worker_of(BATCH_SIZE="8", BATCH_MAX_PIXELS=str(2 * 64 * 64))
    (reply,) = replies(worker, shared(1, n=4))
    assert [image["batch"]["size"] for image in reply["images"]] == [2, 2, 2, 2]


def test_a_batch_waits_as_long_as_the_operator_lets_it() -> None:
    (reply,) = replies(worker_of(BATCH_SIZE="4", BATCH_TIMEOUT_MS="60"), shared(1))
    assert reply["batch"]["size"] == 1
    assert reply["batch"]["waited_ms"] >= 60


class Timed(StandIn):
    """A model whose pictures took 7 ms, with all that shared their steps."""

    def _finish(self, *given: Any) -> Any:
        made = take_made(super()._finish(*given))
        return Made(made.piece, {"denoise": 7.0, "decode": 1.0})


def test_what_a_batch_took_is_counted_once() -> None:
    model = Timed()
    four, _ = replies(worker_of(model, BATCH_SIZE="4"), shared(1, n=3), shared(2))
    assert four["timings_ms"]["denoise"] == 7
    (apart,) = replies(worker_of(model, BATCH_SIZE="2"), shared(1, n=4))
    assert (apart["timings_ms"]["denoise"], apart["timings_ms"]["decode"]) == (14, 2)
    (alone,) = replies(worker_of(model), shared(1, n=3))
    assert alone["timings_ms"]["denoise"] == 21


def test_a_bad_picture_or_memory_ends_no_other_job() -> None:
    results = replies(
        worker_of(BATCH_SIZE="4"), shared(1), {"prompt": "share=a nan"}, shared(2, n=2)
    )
    assert [reply.get("error_code") for reply in results] == [None, "BAD_PICTURE", None]
    results = replies(
        worker_of(BATCH_SIZE="4"), *({"prompt": f"share=a oom=2 {n}"} for n in range(3))
    )
    assert [reply["batch"]["size"] for reply in results] == [1, 1, 1]


def test_a_lost_device_ends_every_job_that_shares_and_is_fatal_once() -> None:
    worker = worker_of(BATCH_SIZE="4")
    with structlog.testing.capture_logs() as lines:
        results = replies(worker, {"prompt": "share=a lost"}, shared(1), shared(2), {"prompt": "x"})
    codes = [reply["error_code"] for reply in results]
    assert codes == ["DEVICE_LOST"] * 3 + ["WORKER_NOT_READY"]
    assert [line["event"] for line in lines].count("fatal") == 1


class Slow(StandIn):
    """A model that begins its second picture when the first one's file is being written."""

    def __init__(self) -> None:
        self.encoding = threading.Event()

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Wait from the second picture on."""
        made = super().draw(wish, control)
        if wish.seed > 1:
            assert self.encoding.wait(30)
        return Made(Seen(made.piece, self.encoding), made.timings_ms)


class Seen:
    """A piece that says when it is encoded."""

    def __init__(self, piece: Any, encoding: threading.Event) -> None:
        self._piece, self._encoding = piece, encoding

    def encode(self, *given: Any) -> Encoded:
        """Say so, and encode."""
        self._encoding.set()
        encoded: Encoded = self._piece.encode(*given)
        return encoded


@pytest.mark.parametrize("size", ["1", "2"])
def test_a_picture_is_encoded_while_the_next_is_made(size: str) -> None:
    (reply,) = replies(worker_of(Slow(), BATCH_SIZE=size), {"prompt": "x", "n": 2, "seed": 1})
    assert [image["index"] for image in reply["images"]] == [0, 1]


class Stuck:
    """A piece whose file is not finished before the test says so."""

    def __init__(self, go: threading.Event) -> None:
        self._go = go

    def encode(self, *_given: Any) -> Encoded:
        """Wait."""
        assert self._go.wait(30)
        return Encoded(b"", "image/png", {})


def test_a_job_that_fails_waits_for_no_file_that_was_begun() -> None:
    go = threading.Event()

    class Half(StandIn):
        def _finish(self, wish: PictureWish, *given: Any) -> Any:
            """Make the first picture, and a bad one."""
            del given
            if wish.seed == 1:
                return Made(Stuck(go), {})
            return BadPicture("black")

    async def case() -> tuple[Reply, int]:
        worker = worker_of(Half(), BATCH_SIZE="2")
        given = {"prompt": "share=a", "n": 2, "seed": 1}
        reply = await answered(worker, {"id": "job", "input": given})
        # what was begun ends although its file is never written
        others = asyncio.all_tasks() - {asyncio.current_task()}
        pending = (await asyncio.wait(others, timeout=60))[1] if others else set()
        left = len(pending)
        go.set()
        return reply, left

    reply, left = asyncio.run(case())
    assert (reply["error_code"], left) == ("BAD_PICTURE", 0)


def test_a_file_has_the_seed_and_the_words_of_its_own_job() -> None:
    first, second = replies(worker_of(BATCH_SIZE="2"), shared(5), shared(9))
    assert [reply["batch"]["index"] for reply in (first, second)] == [0, 1]
    for reply, seed in ((first, "5"), (second, "9")):
        data = base64.b64decode(reply["images"][0]["base64"])
        assert Image.open(io.BytesIO(data)).info["seed"] == seed
