"""The doctor puts one object into the bucket and takes it out again, and says what was refused."""

import importlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from worker import settings, trial
from worker.driver import Gpu
from worker.finding import Finding
from worker.media import objects, regions
from worlds.bucket import ACCESS, SECRET, Store
from worlds.site import Site, make_refusal


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with Store("pictures") as store:
        yield store


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(autouse=True)
def _clean(site: Site) -> None:
    regions._taken.clear()
    site.put_answers.clear()
    site.put_statuses.clear()
    site.stored.clear()
    site.hits.clear()


def attempt(endpoint: str, **changes: str) -> dict[str, Finding]:
    given = {
        "BUCKET_ENDPOINT_URL": endpoint,
        "BUCKET_ACCESS_KEY_ID": ACCESS,
        "BUCKET_SECRET_ACCESS_KEY": SECRET,
        "BUCKET_NAME": "pictures",
        **changes,
    }
    return {finding.check: finding for finding in trial.try_bucket(settings.read(given))}


def test_without_a_bucket_or_with_an_unusable_one_nothing_is_tried() -> None:
    assert trial.try_bucket(settings.read({})) == []
    assert attempt("https://store.test", BUCKET_PREFIX="..") == {}


def test_a_bucket_that_works_is_left_as_it_was(store: Store) -> None:
    found = attempt(store.endpoint, BUCKET_PREFIX="a//b")
    assert {check: finding.level for check, finding in found.items()} == dict.fromkeys(
        ("upload", "link", "deletion"), "ok"
    )
    assert store.objects("pictures") == {}


def test_every_request_is_for_the_path_that_was_signed(site: Site) -> None:
    """Written as it was: a store may compare the two."""
    attempt(site.http, BUCKET_PREFIX="a+b=c")
    assert len(site.hits) == 3
    assert len({urlsplit(hit).path for hit in site.hits}) == 1


def test_the_link_is_not_tried_where_the_objects_are_public(store: Store) -> None:
    found = attempt(store.endpoint, BUCKET_PUBLIC_URL="https://pictures.example.com")
    assert list(found) == ["upload", "deletion"]


def test_a_refused_upload_is_fatal_and_says_the_stores_word(store: Store) -> None:
    found = attempt(store.endpoint, BUCKET_NAME="missing")
    assert list(found) == ["upload"]
    assert found["upload"].level == "fatal"
    assert found["upload"].found == "the store answered with status 404 (NoSuchBucket)"
    assert "docs/troubleshooting.md" in found["upload"].change


def test_what_may_pass_is_no_reason_to_stop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "WAIT_INITIAL_S", 0.01)
    site.put_statuses[:] = [503] * objects.UPLOAD_ATTEMPTS
    found = attempt(site.http)
    assert [(finding.check, finding.level) for finding in found.values()] == [("upload", "advice")]
    assert "status 503" in found["upload"].found


def test_keys_that_may_only_upload_are_reported_and_the_object_is_named(site: Site) -> None:
    found = attempt(site.http)
    (stored,) = site.stored
    name = urlsplit(stored).path.rpartition("/")[2]
    assert {check: finding.level for check, finding in found.items()} == {
        "upload": "ok",
        "link": "advice",
        "deletion": "advice",
    }
    assert found["link"].found == found["deletion"].found == "the store answered with status 404"
    assert name.startswith("worker-doctor-")
    assert name in found["deletion"].change


def test_what_may_be_left_behind_is_a_text_that_says_so(site: Site) -> None:
    attempt(site.http)
    assert b"may be deleted" in b"".join(site.stored.values())
    site.put_statuses[:] = [403]
    attempt(site.http)
    assert site.headers["content-type"] == "text/plain"


def test_a_link_that_gives_something_else_is_reported(site: Site) -> None:
    found = attempt(site.http, BUCKET_NAME="html")  # where the site has a page to sign in
    assert found["link"].level == "advice"
    assert found["link"].found == "the answer is not what was stored"


def test_the_region_that_the_store_takes_is_what_to_set(site: Site) -> None:
    site.put_answers[:] = [make_refusal(400, b"<Region>moon-1</Region>")]
    found = attempt(site.http)
    assert found["upload"].level == "ok"
    assert found["region"].level == "advice"
    assert found["region"].found == "the store takes moon-1, not us-east-1"
    assert "BUCKET_REGION=moon-1" in found["region"].change


def test_without_a_gpu_nothing_is_said_of_attention() -> None:
    assert trial.try_attention(None) == []


@pytest.mark.parametrize(("backend", "level"), [("cudnn", "ok"), ("math", "advice")])
def test_torch_is_set_up_and_asked_about_the_gpu(
    monkeypatch: pytest.MonkeyPatch, backend: str, level: str
) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def import_module(name: str) -> Any:
        def find_backend(device: str) -> str:
            asked.append((name, device, os.environ.get("TORCH_CUDNN_SDPA_AVOID_RECOMPILE")))
            return backend

        return SimpleNamespace(find_backend=find_backend)

    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(importlib, "import_module", import_module)
    (found,) = trial.try_attention(Gpu("a card", (9, 0), 80 << 30, 80 << 30))
    assert (found.level, found.found.partition(" ")[0]) == (level, backend)
    assert asked == [("worker.engine.attention", "cuda", "1")]


def test_a_gpu_on_which_torch_fails_is_found_by_the_doctor() -> None:
    """As here, where there is none: the doctor itself does not fail."""
    (found,) = trial.try_attention(Gpu("a card", (9, 0), 80 << 30, 80 << 30))
    assert (found.check, found.level) == ("attention", "advice")
    assert "torch does not answer on this GPU" in found.found


@pytest.mark.parametrize(
    ("backend", "capability", "level", "change"),
    [
        ("cudnn", (9, 0), "ok", ""),
        ("flash", (8, 9), "ok", ""),
        ("flash", (9, 0), "advice", "CUDA 13.0"),
        ("efficient", (8, 9), "advice", "torch"),
        ("math", (9, 0), "advice", "torch"),
    ],
)
def test_the_kernel_of_attention_is_named(
    backend: str, capability: tuple[int, int], level: str, change: str
) -> None:
    found = trial.describe_attention(backend, capability)
    assert (found.check, found.level) == ("attention", level)
    assert found.found.startswith(f"{backend} kernel")
    assert change in found.change
    assert bool(found.change) is (level != "ok")
