"""What was made -> files, off the event loop: each while the lane makes the next."""

import asyncio
import contextvars
from collections.abc import Callable, Sequence

from worker.edge import reply
from worker.jobs.job import ReadyPiece
from worker.jobs.ticket import Placed
from worker.media.piece import Encoded
from worker.seam import Made, Wish, complete_wish
from worker.settings import Settings
from worker.tasks.request import Request


class Encoder:
    """The files of one job; `start` begins those in the requested format before they are needed.

    `show` gets those of them that the reply has as base64, in the order in which they are ready.
    """

    def __init__(
        self,
        request: Request,
        wishes: Sequence[Wish],
        settings: Settings,
        show: Callable[[ReadyPiece], None] | None = None,
    ) -> None:
        self._request = request
        self._wishes = wishes
        self._has_text = settings.png_metadata
        self._context = contextvars.copy_context()  # `start` is called in another job's
        self._show = show if request.delivery.response_format == "base64" else None
        self._begun: dict[int, asyncio.Task[Encoded]] = {}

    def start(self, index: int, placed: Placed) -> None:
        """Begin to encode one piece in the requested format."""
        task = self._encode(index, placed.made, self._request.delivery.form)
        self._begun[index] = task
        if (show := self._show) is not None:
            count, seed = len(self._wishes), self._wishes[index].seed

            def show_ready(done: asyncio.Task[Encoded]) -> None:
                if not done.cancelled() and done.exception() is None:
                    show(ReadyPiece(index, count, seed, done.result()))

            task.add_done_callback(show_ready)

    def drop(self) -> None:
        """Forget what was begun."""
        for task in self._begun.values():
            task.cancel()

    async def encode_all(self, made: Sequence[Made], form: str) -> list[Encoded]:
        """Return every piece in a format, in order, encoded in parallel."""
        if form == self._request.delivery.form:
            tasks = [self._begun[index] for index in range(len(made))]
        else:
            tasks = [self._encode(index, one, form) for index, one in enumerate(made)]
        return list(await asyncio.gather(*tasks))

    def _encode(self, index: int, made: Made, form: str) -> asyncio.Task[Encoded]:
        request, wish = self._request, complete_wish(self._wishes[index], made)

        def encode() -> Encoded:
            text = reply.describe_output(wish, request.model) if self._has_text else {}
            return made.piece.encode(form, request.delivery.quality, text)

        return asyncio.create_task(asyncio.to_thread(encode), context=self._context)
