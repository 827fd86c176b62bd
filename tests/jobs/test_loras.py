"""A job with LoRAs: its reply names them, and others are made while they are fetched."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from worker.edge.reply import Failure
from worker.jobs.job import Job
from worker.jobs.serve import Worker
from worker.media import dial
from worker.settings import read
from worlds.adapters import digest, lora_bytes
from worlds.site import Site
from worlds.standin import StandIns, answered

FILE = lora_bytes(1)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with Site(tmp_path) as site:
        monkeypatch.setenv("SSL_CERT_FILE", str(site.authority))
        dial.make_tls_context.cache_clear()
        site.files["/style.safetensors"] = site.files["/good.png"] = FILE
        yield site
    dial.make_tls_context.cache_clear()


def started(site: Site, tmp_path: Path, **environ: str) -> Worker:
    home = {"MODEL_DIR": str(tmp_path / "home"), "MIN_STORAGE_FREE_GB": "0"}
    return Worker(read({**home, **site.environ, **environ}), StandIns())


async def reply(worker: Worker, given: dict[str, Any]) -> dict[str, Any]:
    answer = await answered(worker, {"id": "job", "input": {"prompt": "a fox", **given}})
    json.dumps(answer, allow_nan=False)
    return answer


def test_the_reply_and_the_file_say_what_was_used(site: Site, tmp_path: Path) -> None:
    worker = started(site, tmp_path)
    url = f"{site.https}/style.safetensors?signature=topsecret"
    answer = asyncio.run(reply(worker, {"loras": [{"url": url, "scale": 0.75}]}))
    assert answer["loras"] == [
        {
            "name": "style.safetensors",
            "digest": digest(FILE),
            "scale": 0.75,
            "modules": len(FILE),  # what the stand-in finds
        }
    ]
    picture = Image.open(io.BytesIO(base64.b64decode(answer["images"][0]["base64"])))
    assert json.loads(picture.info["loras"]) == answer["loras"]
    assert "topsecret" not in json.dumps(answer) + str(picture.info)


def test_the_fetching_of_loras_is_measured(site: Site, tmp_path: Path) -> None:
    """It counts as fetching in the reply."""
    job = Job("a", {"prompt": "x", "loras": [f"{site.https}/style.safetensors"]}, 10**7)
    assert not isinstance(asyncio.run(started(site, tmp_path).handle(job)), Failure)
    assert "loras" in job.timings
    plain = Job("b", {"prompt": "x"}, 10**7)
    asyncio.run(started(site, tmp_path).handle(plain))
    assert "loras" not in plain.timings


def test_a_job_without_any_says_nothing_of_them(site: Site, tmp_path: Path) -> None:
    answer = asyncio.run(reply(started(site, tmp_path), {}))
    assert "loras" not in answer
    picture = Image.open(io.BytesIO(base64.b64decode(answer["images"][0]["base64"])))
    assert "loras" not in picture.info


def test_others_are_made_while_one_is_fetched(site: Site, tmp_path: Path) -> None:
    async def run() -> None:
        worker = started(site, tmp_path)
        slow = asyncio.create_task(reply(worker, {"loras": f"{site.https}/waits"}))
        await asyncio.to_thread(site.wait_for, "/waits")
        assert "images" in await reply(worker, {})
        assert not slow.done()
        site.released.set()
        assert (await slow)["loras"][0]["digest"] == digest(FILE)

    asyncio.run(run())


def test_a_cancelled_job_holds_nothing(site: Site, tmp_path: Path) -> None:
    async def run() -> None:
        worker = started(site, tmp_path)
        slow = asyncio.create_task(reply(worker, {"loras": f"{site.https}/waits"}))
        await asyncio.to_thread(site.wait_for, "/waits")
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        site.released.set()

    asyncio.run(run())
    assert not list((tmp_path / "home").rglob("*.part"))


@pytest.mark.parametrize(
    ("path", "error_type", "retryable"),
    [("/status/404", "bad_request", False), ("/status/503", "transient", True)],
)
def test_a_lora_that_does_not_come_is_no_fault_of_the_worker(
    site: Site, tmp_path: Path, path: str, error_type: str, retryable: bool
) -> None:
    worker = started(site, tmp_path)
    answer = asyncio.run(reply(worker, {"loras": f"{site.https}{path}"}))
    assert (answer["error_code"], answer["error_type"]) == ("LORA_NOT_APPLIED", error_type)
    assert answer["retryable"] is retryable
    assert answer["details"][0]["field"] == "loras[0]"
    assert worker.fatal is None


def test_the_deadline_of_a_job_ends_its_download(site: Site, tmp_path: Path) -> None:
    worker = started(site, tmp_path, JOB_DEADLINE_S="0.3")
    answer = asyncio.run(reply(worker, {"loras": f"{site.https}/silent"}))
    assert answer["error_code"] == "DEADLINE_EXCEEDED"
