"""The files of a job: each is begun as soon as there is something to encode."""

import asyncio
import contextvars
import threading
from typing import Any

from worker.jobs.encoder import Encoder
from worker.jobs.ticket import Placed
from worker.media.piece import Encoded
from worker.seam import Made
from worker.settings import read
from worker.tasks.request import Request, parse
from worlds.published import IMAGE
from worlds.wishes import WISH


class Slow:
    """A piece that is encoded once its gate opens."""

    def __init__(self, gate: threading.Event) -> None:
        self._gate = gate

    def encode(self, *_: Any) -> Encoded:
        """Wait for the gate."""
        self._gate.wait(60)
        return Encoded(b"", "image/png", {})


def test_a_job_that_ends_early_forgets_every_file_that_was_begun() -> None:
    gate = threading.Event()
    request = parse({"prompt": "x", "num_images": 3}, [IMAGE], read({}))
    assert isinstance(request, Request)

    async def case() -> list[bool]:
        encoder = Encoder(request, [WISH] * 3, read({}))
        for index in range(3):
            piece: Any = Slow(gate)
            encoder.start(index, Placed(Made(piece, {}, 0), 1, 3, index, 0.0))
        begun = list(encoder._begun.values())
        encoder.drop()
        gate.set()
        await asyncio.wait(begun)
        return [task.cancelled() for task in begun]

    assert asyncio.run(case()) == [True] * 3


NUMBER: contextvars.ContextVar[str] = contextvars.ContextVar("number")


class Counted:
    """A piece that counts its files, fails where it should, and sees whose job it is."""

    def __init__(self, *, fails: bool = False) -> None:
        self.seen: list[str] = []
        self._fails = fails

    def encode(self, form: str, *_: Any) -> Encoded:
        """Return an empty file, or fail."""
        self.seen.append(NUMBER.get())
        if self._fails:
            raise OSError("no room")
        return Encoded(b"", f"image/{form}", {})


def place(piece: Any, index: int = 0) -> Placed:
    return Placed(Made(piece, {}, 0), 1, 1, index, 0.0)


def test_each_file_is_written_once_and_in_the_context_of_its_own_job() -> None:
    """Whichever job's end begins it; another format is another file."""
    request = parse({"prompt": "x", "output_format": "png"}, [IMAGE], read({}))
    assert isinstance(request, Request)
    piece = Counted()

    async def case() -> list[str]:
        NUMBER.set("own")
        encoder = Encoder(request, [WISH], read({}))
        NUMBER.set("other")
        encoder.start(0, place(piece))
        made = [place(piece).made]
        files = [*await encoder.encode_all(made, "png"), *await encoder.encode_all(made, "webp")]
        return [file.mime_type for file in files]

    assert asyncio.run(case()) == ["image/png", "image/webp"]
    assert piece.seen == ["own", "own"]


def test_what_has_no_file_is_not_shown_and_leaves_no_error_behind() -> None:
    request = parse(
        {"prompt": "x", "num_images": 3, "response_format": "base64"}, [IMAGE], read({})
    )
    assert isinstance(request, Request)
    gate = threading.Event()
    errors: list[Any] = []
    shown: list[int] = []

    async def case() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
        NUMBER.set("own")
        encoder = Encoder(request, [WISH] * 3, read({}), lambda ready: shown.append(ready.index))
        encoder.start(0, place(Counted()))
        encoder.start(1, place(Counted(fails=True), 1))
        begun = list(encoder._begun.values())
        await asyncio.wait(begun)
        encoder.start(2, place(Slow(gate), 2))
        encoder.drop()
        gate.set()
        await asyncio.wait(encoder._begun.values())
        await asyncio.sleep(0)

    asyncio.run(case())
    assert shown == [0]
    assert errors == []
