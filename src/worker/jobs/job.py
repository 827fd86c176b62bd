"""One job as a door hands it in, and what its phases took."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from worker.edge.reply import Failure
from worker.errors import WorkerError
from worker.jobs.limit import Limit
from worker.jobs.outflow import Sink
from worker.jobs.progress import Post
from worker.media.piece import Encoded
from worker.media.s3 import CallersBucket


@dataclass(frozen=True, slots=True)
class ReadyPiece:
    """One of the `count` pieces of a job as a file, before the job has ended."""

    index: int
    count: int
    seed: int
    file: Encoded


@dataclass(slots=True)
class Job:
    """One job: what its door knows of it, then the milliseconds of its phases and its warnings.

    `most_bytes` is what the door can carry of a reply, as UTF-8 JSON. `bucket` is the caller's own;
    `bucket_name` is what callers of this door call such a bucket, None where they cannot bring one.
    `fault` is what is wrong with the job outside its input. `listener` gets the job's progress,
    `sink` the parts of what is made while the rest is made, None where the door cannot send them.
    `previews` is how many pieces on the way to each piece the sink gets too, where there are any.
    `limit` is how long it may take by what its caller or its door says. `is_plain` says that the
    door gives the reply a form of its own, so that RESPONSE_COMPAT does not apply. `wait` is what
    it waits for once its input is known to be right, before anything is fetched for it. `show` gets
    each piece that its reply will have as base64, as soon as it is a file.
    """

    id: str
    input: Any
    most_bytes: int
    bucket: CallersBucket | None = None
    bucket_name: str | None = None
    fault: WorkerError | None = None
    listener: Post | None = None
    sink: Sink | None = None
    previews: int = 0
    limit: Limit | None = None
    is_plain: bool = False
    wait: Callable[[], Awaitable[None]] | None = None
    show: Callable[[ReadyPiece], None] | None = None
    start: float = field(default_factory=time.monotonic)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def measure_elapsed_ms(self) -> float:
        """Return the milliseconds since the job arrived."""
        return (time.monotonic() - self.start) * 1000

    @contextmanager
    def measure_phase(self, name: str) -> Iterator[None]:
        """Measure one phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.timings[name] = (time.monotonic() - start) * 1000


# A reply is plain JSON, by the names that callers know.
Answer = Mapping[str, Any] | Failure
Handle = Callable[[Job], Awaitable[Answer]]
