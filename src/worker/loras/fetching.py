"""The LoRAs of a job, made ready: from LORA_DIR, from the cache, or fetched off the device."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final

import filelock

from worker import log
from worker.errors import (
    Detail,
    InvalidInput,
    LoraFetchFailed,
    LoraNotApplied,
    LoraRefused,
    WorkerError,
)
from worker.loras.configuration import CONFIGURATION_NAME, is_about
from worker.loras.flight import Flights
from worker.loras.form import find_form_fault
from worker.loras.hub_file import fetch_from_hub
from worker.loras.kept import Fetched, KeptLoras, choose_folder, make_place_key
from worker.loras.origin import HubFile, LoraSource
from worker.loras.ready import ReadyLora
from worker.loras.site_file import fetch_from_site
from worker.settings import Settings
from worker.weights import digest_cache
from worker.weights.digest_cache import DigestCache
from worker.weights.proof import digest_file

# A download that was abandoned ends with its next bytes, which may take DOWNLOAD_STALL_S: threads
# of their own, so that nothing else waits for one.
THREADS: Final = 8
LOCK_POLL_S: Final = 0.2
# Between being found and being opened a file may be evicted by another worker.
ATTEMPTS: Final = 3


class LoraFetcher:
    """Bring the LoRAs of this worker's jobs here, each once whoever asks for it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="lora")
        self._flights: Flights[Fetched] = Flights()

    @functools.cached_property
    def _kept(self) -> KeptLoras:
        return KeptLoras(choose_folder(self._settings), self._settings)

    @asynccontextmanager
    async def obtain(self, sources: Sequence[LoraSource]) -> AsyncIterator[tuple[ReadyLora, ...]]:
        """Yield the LoRAs of a job, whose files stay as long as the block runs.

        LORA_FETCH_S bounds all of them together. Raises LoraRefused, LoraFetchFailed, VolumeFull,
        InvalidInput for one file under two words, LoraNotApplied for what the operator must fix;
        `details` names the LoRA as loras[i].
        """
        async with AsyncExitStack() as leases:
            try:
                limit = asyncio.timeout(self._settings.lora_fetch_s)
                async with limit, asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._make_ready(index, source, leases))
                        for index, source in enumerate(sources)
                    ]
            except TimeoutError:
                seconds = f"{self._settings.lora_fetch_s:g} s"
                raise LoraFetchFailed(f"the LoRAs did not arrive within {seconds}") from None
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            ready = tuple(task.result() for task in tasks)
            _refuse_doubles(ready)
            yield ready

    async def _make_ready(
        self, index: int, source: LoraSource, leases: AsyncExitStack
    ) -> ReadyLora:
        try:
            if isinstance(source.place, Path):
                return await asyncio.to_thread(self._read_own, source, source.place)
            fetched, file = await self._fetch_and_open(source)
            leases.callback(file.close)
        except WorkerError as error:
            raise _place_error(error, index, source) from None
        configuration = fetched.configuration
        return ReadyLora(
            source.name,
            f"sha256:{fetched.sha256}",
            source.scale,
            self._kept.make_path(fetched.sha256),
            None if configuration is None else configuration.encode(),
            source.is_callers,
        )

    def _read_own(self, source: LoraSource, path: Path) -> ReadyLora:
        """Return a LoRA of LORA_DIR; its digest is read once for as long as it does not change."""
        try:
            if path.stat().st_size > self._settings.max_lora_bytes:
                raise LoraNotApplied("its file has more bytes than MAX_LORA_BYTES")
            if fault := find_form_fault(path):
                raise LoraNotApplied(fault)
            state = digest_cache.read_state(path)
            digests = DigestCache(path.parent, self._settings.home)
            sha256 = digests.read_sha256(path.name, state)
            if sha256 is None:
                sha256 = digest_file(path, blob_id=False).sha256
                digests.keep(path.name, state, sha256)
            configuration = _read_configuration(path)
        except OSError as error:
            raise LoraNotApplied(f"its file cannot be read ({error.strerror})") from None
        return ReadyLora(
            source.name, f"sha256:{sha256}", source.scale, path, configuration, source.is_callers
        )

    async def _fetch_and_open(self, source: LoraSource) -> tuple[Fetched, BinaryIO]:
        """Return what a place has, and its file, opened so that it is not evicted."""
        with_token = self._settings.lora_hub_token or not source.is_callers
        key = _make_key(source, with_token=with_token)
        for _ in range(ATTEMPTS):
            fetched = await self._flights.join(key, lambda: self._obtain(source, key))
            # not in a thread: a cancel would lose the file that it returns
            if (file := self._kept.open(fetched.sha256)) is not None:
                return fetched, file
        raise LoraFetchFailed("it was evicted again and again: LORA_CACHE_GB is small; try later")

    async def _obtain(self, source: LoraSource, key: str) -> Fetched:
        """Return what a place has, from the cache where it is fresh, else from the place."""
        known = await asyncio.to_thread(lambda: self._kept.find(key))
        if known is not None and _is_current(known, source):
            return known
        lock = await self._take_turn(key)
        try:
            # another worker may have fetched it meanwhile
            known = await asyncio.to_thread(lambda: self._kept.find(key))
            if known is not None and _is_current(known, source):
                return known
            try:
                return await self._fetch(source, key, known)
            except LoraFetchFailed as error:
                if known is None:
                    raise
                log.get().warning("lora not asked for again", reason=error.message)
                return known
        finally:
            self._kept.release(lock)

    async def _fetch(self, source: LoraSource, key: str, known: Fetched | None) -> Fetched:
        place, settings = source.place, self._settings
        if isinstance(place, str):
            return await fetch_from_site(place, key, self._kept, settings, known)
        assert isinstance(place, HubFile)  # noqa: S101 - a file of LORA_DIR is never fetched
        stop = threading.Event()
        work = functools.partial(
            fetch_from_hub,
            place,
            key,
            self._kept,
            settings,
            with_token=settings.lora_hub_token or not source.is_callers,
            stop=stop,
        )
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            stop.set()

    async def _take_turn(self, key: str) -> filelock.BaseFileLock:
        """Wait while another worker fetches from the same place; the deadline ends this."""
        lock = await asyncio.to_thread(lambda: self._kept.make_lock(key))
        while True:
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                await asyncio.sleep(LOCK_POLL_S)
            except (OSError, NotImplementedError):
                return lock  # a file system without locks: each fetches under a name of its own
            else:
                return lock


def _read_configuration(path: Path) -> bytes | None:
    """Return the adapter_config.json next to a LoRA of the operator; None without one about it."""
    beside = path.with_name(CONFIGURATION_NAME)
    names = [each.name for each in path.parent.iterdir()]
    return beside.read_bytes() if beside.name in names and is_about(path.name, names) else None


def _is_current(known: Fetched, source: LoraSource) -> bool:
    """Return whether what a place had is what it has: a commit's files never change."""
    return known.is_fresh or (isinstance(source.place, HubFile) and source.place.is_fixed)


def _make_key(source: LoraSource, *, with_token: bool) -> str:
    """Return the key of a place: what was fetched with a token is found with one alone."""
    place = source.place
    if isinstance(place, HubFile):
        words = (place.repository.casefold(), place.path, place.revision)
        return make_place_key("hub", *words, "token" if with_token else "")
    return make_place_key("url", str(place))


def _refuse_doubles(ready: Sequence[ReadyLora]) -> None:
    """Raise InvalidInput for one LoRA under two words: which scale counts would be a guess."""
    first: dict[object, int] = {}
    for index, one in enumerate(ready):
        other = first.setdefault(one.identity, index)
        if other != index:
            message = f"is the same file as loras[{other}]; give it once"
            raise InvalidInput(
                f"loras[{index}]: {message}", details=[Detail(f"loras[{index}]", message)]
            )


def _place_error(error: WorkerError, index: int, source: LoraSource) -> WorkerError:
    """Return an error that names the LoRA; the operator's own is not for the caller to fix."""
    kind = type(error)
    if isinstance(error, LoraRefused) and not source.is_callers:
        kind = LoraNotApplied
    field = f"loras[{index}]"
    message = f"{source.name}: {error.message}"
    return kind(f"{field}: {message}", details=[Detail(field, message)])
