"""LoRAs come from where callers may have them, proven, once, within a deadline."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from worker import settings
from worker.errors import (
    InvalidInput,
    LoraFetchFailed,
    LoraNotApplied,
    LoraRefused,
    VolumeFull,
    WeightsUnavailable,
    WorkerError,
)
from worker.loras import fetching, kept, site_file
from worker.loras.allowed import find_place
from worker.loras.fetching import LoraFetcher
from worker.loras.origin import LoraSource, read_hub_file
from worker.loras.ready import ReadyLora
from worker.media import dial
from worker.weights import space
from worker.weights.proof import Digests, digest_file
from worlds.adapters import NO_LORAS, digest, lora_bytes
from worlds.hub import Fault, Hub
from worlds.site import INSIDE, Site, tapped

FILE, OTHER = lora_bytes(1), lora_bytes(2)
CONFIG = b'{"lora_alpha": 16, "r": 8}'
LARGE = 5000  # MAX_LORA_BYTES
TOKEN = "hf_topsecret"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        site.files["/style.safetensors"] = FILE
        site.files["/good.png"] = FILE
        site.files |= {f"/no/{quote(name)}": data for name, (data, _) in NO_LORAS.items()}
        site.names.answers |= {"inside.test": [INSIDE], "metadata.test": ["169.254.169.254"]}
        yield site


@pytest.fixture(scope="module")
def shared_hub() -> Iterator[Hub]:
    hub = Hub()
    hub.add("org/style", {"style.safetensors": FILE, "README.md": b"# style"})
    hub.add("org/peft", {"adapter_model.safetensors": FILE, "adapter_config.json": CONFIG})
    hub.add("org/two", {"a.safetensors": FILE, "sub/b.safetensors": OTHER})
    hub.add("org/usual", {"a.safetensors": OTHER, "pytorch_lora_weights.safetensors": FILE})
    hub.add("org/none", {"weights.bin": b"x", "README.md": b"# none"})
    hub.add("org/private", {"style.safetensors": OTHER})
    hub.add("org/large", {"style.safetensors": lora_bytes(3, count=LARGE)})
    hub.add("org/page", {"style.safetensors": NO_LORAS["a page"][0]})
    hub.private.add("org/private")
    hub.tokens[TOKEN] = {"org/private"}
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
def hub(shared_hub: Hub) -> Hub:
    shared_hub.faults.clear()
    shared_hub.seen.clear()
    shared_hub.released.clear()
    shared_hub.stalled.clear()
    return shared_hub


@pytest.fixture(autouse=True)
def _trust(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SSL_CERT_FILE", str(site.authority))
    dial.make_tls_context.cache_clear()
    site.hits.clear()
    yield
    dial.make_tls_context.cache_clear()


class Room:
    """A worker's fetcher in a home of its own."""

    def __init__(self, home: Path, hub: Hub, site: Site, **environ: str) -> None:
        given = {
            "MODEL_DIR": str(home),
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": TOKEN,
            "DOWNLOAD_RETRIES": "0",
            "MAX_LORA_BYTES": str(LARGE),
            "LORA_CACHE_GB": "0.00002",
            "MIN_STORAGE_FREE_GB": "0",
            **site.environ,
            **environ,
        }
        self.home, self.settings = home, settings.read(given)
        self.fetcher = LoraFetcher(self.settings)

    def source(self, word: str, scale: float = 1.0) -> LoraSource:
        """Return where a word leads, as a job's input has it."""
        if word.startswith("http"):
            return LoraSource("a url", word, scale, is_callers=True)
        if "/" in word:
            return LoraSource(word, read_hub_file(word), scale, is_callers=True)
        place = find_place(word, self.settings)
        assert place is not None
        return LoraSource(word, place, scale, is_callers=False)

    async def obtain(self, *words: str) -> tuple[ReadyLora, ...]:
        """Return the LoRAs of a job, once their bytes are checked."""
        async with self.fetcher.obtain([self.source(word) for word in words]) as ready:
            assert [digest(one.path.read_bytes()) for one in ready] == [o.digest for o in ready]
            return ready

    def ready(self, *words: str) -> tuple[ReadyLora, ...]:
        """Return the LoRAs of a job."""
        return asyncio.run(self.obtain(*words))

    def refused(self, *words: str) -> WorkerError:
        """Return why a job gets no LoRAs."""
        with pytest.raises(WorkerError) as refused:
            self.ready(*words)
        return refused.value

    def left(self) -> set[str]:
        """Return what is in the cache's folder besides its own."""
        files = {p.name for p in (self.home / "loras").glob("*") if p.is_file() or p.suffix}
        return {name for name in files if not name.endswith(".safetensors")}


@pytest.fixture
def room(tmp_path: Path, hub: Hub, site: Site) -> Room:
    return Room(tmp_path, hub, site)


@pytest.mark.parametrize(
    "word", ["org/style", "org/style/style.safetensors@main", "org/usual", "org/two/a.safetensors"]
)
def test_a_file_of_the_hub_comes_once(room: Room, hub: Hub, word: str) -> None:
    (first,) = room.ready(word)
    assert (first.digest, first.name, first.configuration) == (digest(FILE), word, None)
    hub.seen.clear()
    assert room.ready(word) == (first,)
    assert not hub.requests()
    assert room.left() == set()


def test_a_url_comes_once(room: Room, site: Site) -> None:
    url = f"{site.https}/style.safetensors?signature=topsecret"
    (first,) = room.ready(url)
    assert first.digest == digest(FILE)
    assert room.ready(url) == (first,)
    assert len(site.hits) == 1
    assert room.left() == set()


def test_the_configuration_next_to_a_file_comes_with_it(room: Room) -> None:
    plain, peft = room.ready("org/style", "org/peft")
    assert (plain.configuration, peft.configuration) == (None, CONFIG)
    assert plain.digest == peft.digest
    assert plain.identity != peft.identity


def test_bytes_that_are_here_are_not_fetched_again_from_another_repository(
    room: Room, hub: Hub
) -> None:
    room.ready("org/style")
    (found,) = room.ready("org/two/a.safetensors")
    assert [seen.path for seen in hub.requests("resolve")] == ["style.safetensors"]
    hub.seen.clear()
    assert room.ready("org/two/a.safetensors") == (found,)
    assert not hub.requests()


def test_the_same_file_under_two_words_is_refused(room: Room, site: Site) -> None:
    error = room.refused("org/style", f"{site.https}/style.safetensors")
    assert isinstance(error, InvalidInput)
    assert error.details[0].field == "loras[1]"


def test_a_token_is_sent_for_the_operators_own_alone(tmp_path: Path, hub: Hub, site: Site) -> None:
    """And what came with it is not there for a caller that names the place."""
    room = Room(tmp_path, hub, site, LORAS="own=org/private")
    room.ready("org/style")
    assert {seen.authorization for seen in hub.requests()} == {None}
    (own,) = room.ready("own")
    assert (own.digest, own.is_callers) == (digest(OTHER), False)
    assert isinstance(error := room.refused("org/private"), LoraRefused)
    assert (error.error_type, error.retryable) == ("bad_request", False)


def test_what_another_workers_callers_may_have_is_not_there_for_ours(
    tmp_path: Path, hub: Hub, site: Site
) -> None:
    """Of two workers on one volume, one gives its callers the token."""
    Room(tmp_path, hub, site, LORA_HUB_TOKEN="true").ready("org/private")
    assert isinstance(Room(tmp_path, hub, site).refused("org/private"), LoraRefused)


def test_callers_get_the_token_where_the_operator_says_so(
    tmp_path: Path, hub: Hub, site: Site
) -> None:
    (own,) = Room(tmp_path, hub, site, LORA_HUB_TOKEN="true").ready("org/private")
    assert own.digest == digest(OTHER)


def test_what_the_operator_named_wrongly_is_for_the_operator_to_fix(
    tmp_path: Path, hub: Hub, site: Site
) -> None:
    error = Room(tmp_path, hub, site, LORAS="own=org/nothing").refused("own")
    assert type(error) is LoraNotApplied
    assert error.error_type == "internal"


def test_a_hub_that_fails_this_time_is_not_for_the_operator_to_fix(
    tmp_path: Path, hub: Hub, site: Site
) -> None:
    hub.misbehave(Fault("status", path="*style*", times=None))
    error = Room(tmp_path, hub, site, LORAS="own=org/style").refused("own")
    assert type(error) is LoraFetchFailed
    assert error.retryable


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("org/nothing", "no such repository"),
        ("org/style@nowhere", "no such repository, revision"),
        ("org/style/other.safetensors", "no file of that name"),
        ("org/two", "a.safetensors, sub/b.safetensors"),
        ("org/none", "it has no safetensors"),
        ("org/large", f"at most {LARGE} bytes"),
        ("org/page", "a web page"),
    ],
)
def test_what_the_hub_does_not_have_is_the_callers_to_fix(
    room: Room, hub: Hub, word: str, words: str
) -> None:
    with structlog.testing.capture_logs() as lines:
        error = room.refused(word)
    assert isinstance(error, LoraRefused), error
    assert words in error.message
    assert error.details[0].field == "loras[0]"
    said = [line["log_level"] for line in lines if line["event"] == "lora not fetched"]
    assert said == ["warning"] * ("no such repository" in words)
    assert not [seen for seen in hub.requests("bytes") if word == "org/large"]
    assert room.left() == set()


@pytest.mark.parametrize("act", ["status", "flip", "cut", "html"])
def test_a_hub_that_fails_this_time_may_be_asked_again(room: Room, hub: Hub, act: str) -> None:
    """Wrong bytes among it: their sha256 is not the recorded one."""
    hub.misbehave(Fault(act, path="*style*", times=None))  # type: ignore[arg-type] # of the list
    with structlog.testing.capture_logs() as lines:
        error = room.refused("org/style")
    assert isinstance(error, LoraFetchFailed), error
    (reason,) = (line["reason"] for line in lines if line["event"] == "lora not fetched")
    assert "style.safetensors" in reason
    assert (error.error_type, error.retryable) == ("transient", True)
    assert not list((room.home / "loras").glob("*.safetensors"))
    assert room.left() == set()
    hub.faults.clear()
    room.ready("org/style")


@pytest.mark.parametrize("name", NO_LORAS)
def test_what_is_no_lora_is_named_and_not_kept(room: Room, site: Site, name: str) -> None:
    error = room.refused(f"{site.https}/no/{quote(name)}")
    assert isinstance(error, LoraRefused), error
    assert NO_LORAS[name][1] in error.message
    assert not list((room.home / "loras").glob("*.safetensors"))
    assert room.left() == set()


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("/status/404", LoraRefused, "status 404"),
        ("/status/403", LoraRefused, "status 403"),
        ("/status/503", LoraFetchFailed, "status 503"),
        ("/claims?bytes=3000000000", LoraRefused, "at most"),
        ("/short", LoraFetchFailed, "complete"),
        ("/html", LoraRefused, "a web page"),
        ("/hops/9", LoraRefused, "redirected more than"),
        ("/nothing", LoraFetchFailed, "complete"),
        ("/coded/style.safetensors?as=gzip", LoraRefused, "compressed"),
        ("/coded/style.safetensors?as=gzip&as=identity", LoraRefused, "compressed"),
        ("/coded/style.safetensors?as=identity&as=gzip", LoraRefused, "compressed"),
        (f"/to?url=https://{INSIDE}/x", LoraRefused, "public address"),
        ("/to?url=https://inside.test/x", LoraRefused, "public address"),
        ("/to?url=http://site.test/x", LoraRefused, "https"),
        ("/to?url=file:///etc/passwd", LoraRefused, "https"),
    ],
)
def test_a_site_misbehaves(
    room: Room, site: Site, path: str, kind: type[WorkerError], words: str
) -> None:
    with tapped() as dialled:
        error = room.refused(f"{site.https}{path}")
    assert type(error) is kind, error
    assert words in error.message
    assert site.allows(dialled)
    assert room.left() == set()


@pytest.mark.parametrize(
    "url",
    [
        *(f"https://{INSIDE}/x", "https://inside.test/x", "https://metadata.test/x"),
        *("https://localhost/x", "https://[::1]/x", "https://a:b@site.test/x", "https://x:22/x"),
        "http://site.test/x",
    ],
)
def test_an_address_that_pictures_may_not_have_is_refused(room: Room, site: Site, url: str) -> None:
    with tapped() as dialled:
        error = room.refused(url)
    assert isinstance(error, LoraRefused)
    assert site.allows(dialled)
    assert site.intruders == 0


def test_an_endless_body_ends_at_the_limit(room: Room, site: Site) -> None:
    """Without a length: a LoRA comes first, then it never ends."""
    error = room.refused(f"{site.https}/endless-after")
    assert isinstance(error, LoraRefused)
    assert f"at most {LARGE} bytes" in error.message
    assert room.left() == set()


def test_what_needs_no_hub_waits_for_none(own: Room, hub: Hub, site: Site) -> None:
    """Downloads that were abandoned keep their threads until their next bytes."""
    kept = "org/style@" + hub.branches["org/style"]["main"]
    (first,) = own.ready(kept)
    done = threading.Event()
    downloads = [own.fetcher._pool.submit(done.wait, 120) for _ in range(fetching.THREADS)]
    hub.seen.clear()
    assert own.ready(kept) == (first,)
    assert not hub.requests()
    for word in ("style", f"{site.https}/style.safetensors"):
        assert own.ready(word)[0].digest == digest(FILE)
    assert not any(each.done() for each in downloads)
    done.set()


def test_one_that_is_refused_ends_the_wait_for_the_others(room: Room, site: Site) -> None:
    error = room.refused(f"{site.https}/silent", f"{site.https}/status/404")
    assert isinstance(error, LoraRefused)
    assert error.details[0].field == "loras[1]"


@pytest.mark.parametrize("path", ["/silent", "/drip", "/slow-head"])
def test_a_download_has_a_deadline(tmp_path: Path, hub: Hub, site: Site, path: str) -> None:
    room = Room(tmp_path, hub, site, LORA_FETCH_S="0.5")
    error = room.refused(f"{site.https}{path}")
    assert isinstance(error, LoraFetchFailed)
    assert "within 0.5 s" in error.message
    assert room.left() == set()


def test_a_hub_that_stalls_has_a_deadline_too(tmp_path: Path, hub: Hub, site: Site) -> None:
    hub.misbehave(Fault("stall-body", path="*style*", times=None))
    error = Room(tmp_path, hub, site, LORA_FETCH_S="1").refused("org/style")
    assert isinstance(error, LoraFetchFailed)
    hub.released.set()


def test_two_jobs_and_two_workers_fetch_a_url_once(tmp_path: Path, hub: Hub, site: Site) -> None:
    """The second worker has a fetcher of its own on the same volume."""
    rooms = [Room(tmp_path, hub, site) for _ in range(2)]
    url = f"{site.https}/style.safetensors?{tmp_path.name}"

    async def run() -> None:
        found = await asyncio.gather(*(room.obtain(url) for room in rooms for _ in range(3)))
        assert {one.digest for (one,) in found} == {digest(FILE)}

    asyncio.run(run())
    assert len(site.hits) == 1


def test_a_cancelled_job_leaves_the_download_to_one_that_waits(room: Room, site: Site) -> None:
    url = f"{site.https}/waits"
    site.released.clear()

    async def run() -> None:
        first = asyncio.create_task(room.obtain(url))
        await asyncio.to_thread(site.wait_for, "/waits")
        second = asyncio.create_task(room.obtain(url))
        await asyncio.sleep(0)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        site.released.set()
        assert (await second)[0].digest == digest(FILE)

    asyncio.run(run())
    assert site.hits == ["/waits"]


@pytest.mark.parametrize("act", ["stall-body", "pause-body"])
def test_a_cancelled_job_stops_its_download(room: Room, hub: Hub, act: str) -> None:
    """Of the hub, in a thread: it ends with the next bytes, if any come, and leaves nothing."""
    hub.misbehave(Fault(act, path="*style*", times=None, at=0.1))  # type: ignore[arg-type] # of the list

    async def run() -> None:
        task = asyncio.create_task(room.obtain("org/style"))
        await asyncio.to_thread(hub.stalled.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        hub.released.set()
        await asyncio.to_thread(room.fetcher._pool.shutdown)  # waits for the thread

    asyncio.run(run())
    assert not list((room.home / "loras").glob("*.safetensors"))
    assert room.left() == set()


def test_an_hour_later_the_place_is_asked_and_nothing_fetched_that_has_not_changed(
    room: Room, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.branches["org/style"]["main"]
    room.ready("org/style")
    room.ready(f"org/style@{commit}")
    hub.seen.clear()
    monkeypatch.setattr(kept, "FRESH_S", 0)
    room.ready(f"org/style@{commit}")
    assert not hub.requests()
    room.ready("org/style")
    assert len(hub.requests("info")) == 1
    assert not hub.requests("resolve")


def test_a_place_that_cannot_be_asked_again_is_what_it_was(
    room: Room, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.ready("org/style")
    monkeypatch.setattr(kept, "FRESH_S", 0)
    hub.misbehave(Fault("status", step="info", times=None))
    with structlog.testing.capture_logs() as lines:
        room.ready("org/style")
    said = [(line["log_level"], line["event"]) for line in lines if "reason" in line]
    assert said[-1] == ("warning", "lora not asked for again")
    hub.faults.clear()
    hub.private.add("org/style")
    assert isinstance(room.refused("org/style"), LoraRefused)
    hub.private.discard("org/style")


def test_what_moved_on_is_fetched_anew(
    room: Room, hub: Hub, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/moves"] = FILE
    hub.add("org/moves", {"a.safetensors": FILE})
    url = f"{site.https}/moves"
    monkeypatch.setattr(kept, "FRESH_S", 0)
    assert {one.digest for word in (url, "org/moves") for one in room.ready(word)} == {digest(FILE)}
    site.files["/moves"] = OTHER
    hub.add("org/moves", {"a.safetensors": OTHER})
    assert {o.digest for word in (url, "org/moves") for o in room.ready(word)} == {digest(OTHER)}


def test_a_site_that_says_that_nothing_has_changed_is_asked_once_an_hour_and_not_read(
    room: Room, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/tags"] = FILE
    url, now = f"{site.https}/tagged/tags", time.time()
    (first,) = room.ready(url)
    monkeypatch.setattr(time, "time", lambda: now + 1.5 * kept.FRESH_S)
    assert [room.ready(url), room.ready(url)] == [(first,)] * 2
    assert len(site.hits) == 2
    assert "if-none-match" in site.headers
    monkeypatch.setattr(time, "time", lambda: now + 3 * kept.FRESH_S)
    site.files["/tags"] = OTHER
    assert room.ready(url)[0].digest == digest(OTHER)


def test_a_full_disk_is_named(room: Room, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "free_bytes", lambda *_: 10)
    for word in ("org/style", f"{site.https}/style.safetensors"):
        assert isinstance(room.refused(word), VolumeFull)
    assert room.left() == set()


def test_no_hub_is_asked_offline(tmp_path: Path, hub: Hub, site: Site) -> None:
    error = Room(tmp_path, hub, site, HF_HUB_OFFLINE="1").refused("org/style")
    assert isinstance(error, LoraRefused)
    assert not hub.requests()


@pytest.mark.parametrize("word", ["", "identity", "none", "utf-8", "aws-chunked", "base64"])
def test_a_coding_that_is_no_compression_says_nothing(room: Room, site: Site, word: str) -> None:
    (found,) = room.ready(f"{site.https}/coded/style.safetensors?as={word}&as=binary")
    assert found.digest == digest(FILE)


@pytest.fixture
def own(tmp_path: Path, hub: Hub, site: Site) -> Room:
    """A worker with a folder of LoRAs."""
    folder = tmp_path / "own"
    (folder / "peft").mkdir(parents=True)
    (folder / "style.safetensors").write_bytes(FILE)
    (folder / "page.safetensors").write_bytes(NO_LORAS["a page"][0])
    (folder / "large.safetensors").write_bytes(lora_bytes(3, count=LARGE))
    (folder / "peft" / "adapter_model.safetensors").write_bytes(OTHER)
    for place in (folder, folder / "peft"):
        (place / "adapter_config.json").write_bytes(CONFIG)
    return Room(tmp_path / "home", hub, site, LORA_DIR=str(folder))


def test_the_operators_files_are_used_in_their_place(own: Room) -> None:
    """Several in one folder have no configuration in common, one in a folder of its own has."""
    style, peft = own.ready("style", "peft")
    assert (style.digest, style.configuration) == (digest(FILE), None)
    assert (peft.digest, peft.configuration) == (digest(OTHER), CONFIG)
    assert not (own.home / "loras").exists()


def test_an_operators_file_that_goes_meanwhile_is_told_as_that(own: Room) -> None:
    source = own.source("style")
    Path(own.settings.lora_dir or "", "style.safetensors").unlink()

    async def case() -> None:
        async with own.fetcher.obtain([source]):
            raise AssertionError

    with pytest.raises(LoraNotApplied, match=r"cannot be read \(No such file or directory\)"):
        asyncio.run(case())


@pytest.mark.parametrize(
    ("names", "is_told"),
    [
        (["adapter_model"], True),
        (["adapter_model", "style"], True),
        (["own"], True),
        (["own", "style"], False),
    ],
)
def test_a_configuration_is_about_the_file_of_peft_s_name_or_the_only_lora(
    tmp_path: Path, hub: Hub, site: Site, names: list[str], *, is_told: bool
) -> None:
    """Where LORA_DIR itself is what peft's save_pretrained wrote, too."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(CONFIG)
    (folder / "README.md").write_bytes(b"")
    for name in names:
        (folder / f"{name}.safetensors").write_bytes(FILE)
    room = Room(tmp_path / "home", hub, site, LORA_DIR=str(folder))
    assert room.ready(names[0])[0].configuration == (CONFIG if is_told else None)


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        (CONFIG, CONFIG),
        (None, None),
        (b"<html>no such page</html>", None),
        (b"[1]", None),
        (b"\xff", None),
        (CONFIG.ljust(100_000), CONFIG.ljust(100_000)),
        (CONFIG.ljust(100_001), None),
    ],
    ids=["peft's", "none", "a page", "a list", "no text", "long", "too long"],
)
def test_a_url_of_peft_s_name_has_its_configuration_beside_it(
    room: Room, site: Site, beside: bytes | None, told: bytes | None
) -> None:
    site.files["/peft/adapter_model.safetensors"] = FILE
    site.files.pop("/peft/adapter_config.json", None)
    if beside is not None:
        site.files["/peft/adapter_config.json"] = beside
    (found,) = room.ready(f"{site.https}/peft/adapter_model.safetensors?key=1")
    assert found.digest == digest(FILE)
    assert found.configuration == told
    assert site.hits == ["/peft/adapter_model.safetensors?key=1", "/peft/adapter_config.json?key=1"]


@pytest.mark.parametrize("before", [b"[1]", b'{"lora_alpha": 4, "r": 8}'])
def test_a_configuration_is_asked_for_again_where_the_file_is_as_it_was(
    room: Room, site: Site, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    site.files |= {"/adapter_model.safetensors": FILE, "/adapter_config.json": before}
    url = f"{site.https}/tagged/adapter_model.safetensors"
    assert room.ready(url)[0].configuration == (None if before == b"[1]" else before)
    site.files["/adapter_config.json"] = CONFIG
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1.5 * kept.FRESH_S)
    assert [one.configuration for one in (*room.ready(url), *room.ready(url))] == [CONFIG] * 2
    assert len(site.hits) == 4


def test_a_url_of_another_name_has_none(room: Room, site: Site) -> None:
    site.files["/adapter_config.json"] = CONFIG
    assert room.ready(f"{site.https}/style.safetensors")[0].configuration is None
    assert site.hits == ["/style.safetensors"]


def test_their_digest_is_read_once(own: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path, *, blob_id: bool) -> Digests:
        read.append(path)
        return digest_file(path, blob_id=blob_id)

    monkeypatch.setattr(fetching, "digest_file", counted)
    monkeypatch.setattr("worker.weights.digest_cache.TICK_NS", 0)
    assert own.ready("style") == own.ready("style")
    assert len(read) == 1


@pytest.mark.parametrize("name", ["page", "large"])
def test_a_broken_file_of_the_operator_is_not_the_callers_fault(own: Room, name: str) -> None:
    error = own.refused(name)
    assert type(error) is LoraNotApplied
    assert str(own.home.parent) not in error.message


def test_files_stay_while_their_job_runs(room: Room) -> None:
    """Even when others fill the cache meanwhile."""

    async def run() -> None:
        async with room.fetcher.obtain([room.source("org/style")]) as ready:
            cache = kept.KeptLoras(room.home / "loras", room.settings)
            with pytest.raises(LoraFetchFailed):
                cache.make_room(20_000)
            assert hashlib.sha256(ready[0].path.read_bytes()).hexdigest() in ready[0].digest
        cache.make_room(20_000)
        assert not ready[0].path.exists()

    asyncio.run(run())


def sized(count: int) -> bytes:
    """Return a LoRA of exactly so many bytes: its header may have blanks at its end."""
    made = lora_bytes(7, count=500)
    start = 8 + int.from_bytes(made[:8], "little")
    header = made[8:start].ljust(count - len(made) + start - 8)
    return len(header).to_bytes(8, "little") + header + made[start:]


def test_a_lora_may_have_as_many_bytes_as_the_limit_and_not_one_more(
    tmp_path: Path, hub: Hub, site: Site
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    files = {name: sized(LARGE + more) for name, more in (("exact", 0), ("over", 1))}
    for name, data in files.items():
        site.files[f"/{name}.safetensors"] = data
        hub.add(f"org/{name}", {"a.safetensors": data})
        (folder / f"{name}.safetensors").write_bytes(data)
    room = Room(tmp_path / "home", hub, site, LORA_DIR=str(folder))
    for exact in (f"{site.https}/exact.safetensors", "org/exact", "exact"):
        assert room.ready(exact)[0].digest == digest(files["exact"])
    for over in (f"{site.https}/over.safetensors", "org/over"):
        error = room.refused(over)
        assert isinstance(error, LoraRefused)
        assert f"at most {LARGE} bytes" in error.message
    assert "more bytes than MAX_LORA_BYTES" in room.refused("over").message


def test_a_body_that_comes_in_pieces_is_put_together(
    room: Room, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_file, "RECEIVE", 7)
    (found,) = room.ready(f"{site.https}/style.safetensors")
    assert found.path.read_bytes() == FILE
    assert f"at most {LARGE} bytes" in room.refused(f"{site.https}/endless-after").message


def test_a_site_learns_only_that_a_worker_asks_for_a_file(room: Room, site: Site) -> None:
    room.ready(f"{site.https}/style.safetensors")
    found = {name: text for name, text in site.headers.items() if name not in ("", "host")}
    assert found == {"accept": "*/*", "user-agent": "worker", "accept-encoding": "identity"}


@pytest.mark.parametrize("times", [2, 3])
def test_a_file_that_another_worker_evicts_at_once_is_fetched_again_a_few_times(
    room: Room, site: Site, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Between being found and being opened: here it goes as it is opened."""
    lock, left = fcntl.flock, [1] * times

    def evict(file: Any, kind: int) -> None:
        if kind == fcntl.LOCK_SH | fcntl.LOCK_NB and left:
            left.pop()
            Path(file.name).unlink()
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", evict)
    url = f"{site.https}/style.safetensors"
    if times < fetching.ATTEMPTS:
        assert room.ready(url)[0].digest == digest(FILE)
    else:
        error = room.refused(url)
        assert isinstance(error, LoraFetchFailed)
        assert "evicted again and again" in error.message
    assert len(site.hits) == min(times + 1, fetching.ATTEMPTS)


def test_what_is_fresh_takes_no_turn(
    room: Room, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock on a network volume takes as long as a small file."""
    url = f"{site.https}/style.safetensors"
    (first,) = room.ready(url)
    monkeypatch.delattr(kept.KeptLoras, "make_lock")
    assert room.ready(url) == (first,)


def test_a_fetch_that_failed_has_ended_its_turn(tmp_path: Path, hub: Hub, site: Site) -> None:
    """Also while somebody still looks at its error."""
    url = f"{site.https}/status/503"
    errors = [Room(tmp_path, hub, site, LORA_FETCH_S="60").refused(url) for _ in range(2)]
    assert all("status 503" in error.message for error in errors)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_locks_do_not_work_a_file_is_fetched_all_the_same(
    room: Room, site: Site, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert room.ready(f"{site.https}/style.safetensors")[0].digest == digest(FILE)
    assert not list((room.home / "loras" / "locks").iterdir())


def test_room_is_made_for_as_much_as_a_site_says_and_else_for_the_most(
    room: Room, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte: a disk that has as much is enough."""
    free = [LARGE - 1]
    monkeypatch.setattr(space, "free_bytes", lambda *_: free[0])
    url, endless = f"{site.https}/style.safetensors", f"{site.https}/endless-after"
    assert isinstance(room.refused(endless), VolumeFull)
    free[0] += 1
    assert isinstance(room.refused(endless), LoraRefused)
    free[0] = len(FILE) - 1
    assert isinstance(room.refused(url), VolumeFull)
    free[0] += 1
    assert room.ready(url)[0].digest == digest(FILE)


def test_a_disk_that_takes_only_a_part_is_told_as_that(room: Room, site: Site) -> None:
    """At the byte where it ends, not once all seems to be written."""
    site.files["/exact.safetensors"] = sized(LARGE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE - 1, before[1]))
    try:
        error = room.refused(f"{site.https}/exact.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(error, WeightsUnavailable)
    assert "MODEL_DIR cannot hold" in error.message
    assert room.left() == set()


def test_a_download_whose_folder_cannot_be_removed_is_ready_all_the_same(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[object] = []

    def refuse(path: object, **_: object) -> None:
        refused.append(path)
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "rmdir", refuse)
    assert room.ready("org/style")[0].digest == digest(FILE)
    assert refused


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        (CONFIG.ljust(100_000), None),
        (CONFIG.ljust(100_001), "has 100001 bytes, which none has"),
        (b"\xff", "is no text"),
    ],
    ids=["long", "too long", "no text"],
)
def test_a_configuration_of_the_hub_has_a_bound_and_is_text(
    room: Room, hub: Hub, beside: bytes, words: str | None
) -> None:
    hub.add("org/beside", {"style.safetensors": FILE, "adapter_config.json": beside})
    if words is None:
        assert room.ready("org/beside")[0].configuration == beside
        return
    error = room.refused("org/beside")
    assert isinstance(error, LoraRefused)
    assert f"its adapter_config.json {words}" in error.message
