"""The files of a job: each is begun as soon as there is something to encode."""

import asyncio
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
