"""Pictures reach real S3 servers, by path and by host: `make stores`.

Against rclone's server, and one of your own if STORE_ENDPOINT, STORE_ACCESS, STORE_SECRET and
STORE_BUCKET name it (addressed by path).
"""

import asyncio
import dataclasses
import datetime as dt
import http.client
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import botocore.auth
import pytest

from worker import settings, trial
from worker.doors.runpod.bucket import read_bucket
from worker.errors import DeliveryFailed
from worker.media import regions
from worker.media.deliver import deliver
from worker.media.piece import Encoded
from worker.settings import Settings
from worlds.bucket import ACCESS, HOST, SECRET
from worlds.rclone import Rclone
from worlds.site import Site

NAME = "pictures"
TYPES = ("image/png", "image/jpeg", "image/webp", "image/png")
PICTURES = [Encoded(bytes([65 + n]) * 50_000, kind, {}) for n, kind in enumerate(TYPES)]
PREFIXES = {
    "": "",
    "plain": "plain/",
    "/a/b/": "a/b/",
    "//a///b//": "a/b/",
    "two words/ü": "two words/ü/",
    "日本/🎨": "日本/🎨/",
    "+&=%41 ~'()*!;:@$,": "+&=%41 ~'()*!;:@$,/",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A store to upload to: what its bucket is called there, and its server if that is ours."""

    port: int
    operators: Mapping[str, str]
    callers: Mapping[str, Any]
    dns_port: int
    server: Rclone | None

    def read_settings(self, **changes: str) -> Settings:
        """Return the settings of an operator whose bucket is in this store."""
        return settings.read({**self.operators, **changes})

    def read_callers_settings(self) -> Settings:
        """Return settings without a bucket that let callers reach this store."""
        networks = f"{HOST}/32:{self.port}"
        names = f"{HOST}:{self.dns_port}"
        return settings.read({"ALLOWED_IMAGE_NETWORKS": networks, "FETCH_NAMESERVERS": names})


def name_own(environ: Mapping[str, str], style: str) -> dict[str, str]:
    """Return the settings of the bucket, as an operator writes them."""
    return {
        "BUCKET_ENDPOINT_URL": environ["STORE_ENDPOINT"],
        "BUCKET_ACCESS_KEY_ID": environ["STORE_ACCESS"],
        "BUCKET_SECRET_ACCESS_KEY": environ["STORE_SECRET"],
        "BUCKET_NAME": environ["STORE_BUCKET"],
        "BUCKET_STYLE": style,
    }


def name_callers(given: Mapping[str, str]) -> dict[str, str]:
    """Return the same as a caller writes it."""
    return {
        "endpointUrl": given["BUCKET_ENDPOINT_URL"],
        "accessId": given["BUCKET_ACCESS_KEY_ID"],
        "accessSecret": given["BUCKET_SECRET_ACCESS_KEY"],
        "bucketName": given["BUCKET_NAME"],
        "style": given["BUCKET_STYLE"],
    }


STORES = ["path", "virtual", *(["yours"] if "STORE_ENDPOINT" in os.environ else [])]


@pytest.fixture(scope="module", params=STORES)
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    with Site(tmp_path_factory.mktemp("names")) as site:
        if request.param == "yours":
            own = name_own(os.environ, "path")
            port = urlsplit(own["BUCKET_ENDPOINT_URL"]).port or 443
            yield Target(port, own, name_callers(own), site.dns_port, None)
            return
        with Rclone(NAME, virtual=request.param == "virtual") as server:
            environ = {"STORE_ACCESS": ACCESS, "STORE_SECRET": SECRET, "STORE_BUCKET": NAME}
            # names below localhost lead here for everybody; a caller's needs the name server
            own = name_own(
                {**environ, "STORE_ENDPOINT": f"http://localhost:{server.port}"}, request.param
            )
            site.names.answers |= {name: [HOST] for name in ("store.test", f"{NAME}.store.test")}
            theirs = {**name_callers(own), "endpointUrl": f"http://store.test:{server.port}"}
            yield Target(server.port, own, theirs, site.dns_port, server)


@pytest.fixture(autouse=True)
def _forget() -> None:
    regions._taken.clear()


def send(
    given: Settings,
    pictures: Sequence[Encoded] = PICTURES,
    *,
    upload_urls: Sequence[str] = (),
    s3_config: Mapping[str, Any] | None = None,
) -> list[str]:
    entries = asyncio.run(
        deliver(
            pictures,
            "url",
            upload_urls=upload_urls,
            bucket=read_bucket(s3_config, given),
            job_id="job-1",
            settings=given,
        )
    )
    return [entry["url"] for entry in entries]


def check_links(urls: Sequence[str], target: Target, pictures: Sequence[Encoded]) -> None:
    """Get every link as a caller would: the picture's own bytes, with its type."""
    for url, picture in zip(urls, pictures, strict=True):
        split = urlsplit(url)
        connection = http.client.HTTPConnection(HOST, target.port, timeout=60)
        path = f"{split.path}?{split.query}"
        connection.request("GET", path, headers={"Host": split.netloc})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, picture.data)
        assert answer.getheader("Content-Type") == picture.mime_type
        connection.close()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_four_pictures_reach_the_operators_bucket_under_any_prefix(
    target: Target, prefix: str
) -> None:
    urls = send(target.read_settings(BUCKET_PREFIX=prefix))
    check_links(urls, target, PICTURES)
    if target.server is not None:
        stored = target.server.objects()
        for number, ending in enumerate(("png", "jpg", "webp", "png")):
            key = f"{PREFIXES[prefix]}job-1/{number}.{ending}"
            assert stored[key] == PICTURES[number].data


def test_four_pictures_reach_a_jobs_own_bucket(target: Target) -> None:
    urls = send(target.read_callers_settings(), s3_config=target.callers)
    check_links(urls, target, PICTURES)


def test_a_bucket_in_the_path_of_the_endpoint_is_found(target: Target) -> None:
    endpoint, name = target.operators["BUCKET_ENDPOINT_URL"], target.operators["BUCKET_NAME"]
    given = target.read_settings(BUCKET_ENDPOINT_URL=f"{endpoint}//{name}/", BUCKET_NAME="")
    check_links(send(given), target, PICTURES)


def test_presigned_addresses_of_the_caller_take_the_pictures(target: Target) -> None:
    bucket = read_bucket(target.callers, target.read_callers_settings())
    assert bucket is not None
    keys = [f"mine {number}.bin" for number in range(4)]
    signed = [bucket.require().sign("PUT", key, 600) for key in keys]
    send(target.read_callers_settings(), upload_urls=signed)
    links = [bucket.require().sign("GET", key, 600) for key in keys]
    check_links(links, target, PICTURES)


def test_a_large_picture_reaches_the_bucket(target: Target) -> None:
    large = [Encoded(os.urandom(20_000_000), "image/png", {})]
    check_links(send(target.read_settings(), large), target, large)


@pytest.mark.parametrize("size", [1, 20_000_000])
@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("BUCKET_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"),
        ("BUCKET_NAME", "missing", "NoSuchBucket"),
    ],
)
def test_a_refusal_is_reported_in_the_stores_own_word(
    target: Target, variable: str, value: str, code: str, size: int
) -> None:
    picture = Encoded(bytes(size), "image/png", {})
    with pytest.raises(DeliveryFailed, match=rf"status 40[34] \({code}\)$") as failure:
        send(target.read_settings(**{variable: value}), [picture])
    assert not failure.value.retryable


def test_an_unknown_key_is_refused(target: Target) -> None:
    with pytest.raises(DeliveryFailed, match=r"status 40[0-9] \([A-Z][A-Za-z]+\)$"):
        send(target.read_settings(BUCKET_ACCESS_KEY_ID="unknown"), PICTURES[:1])


@pytest.mark.parametrize("region", ["auto", "moon-1"])
def test_a_wrong_region_still_reaches_the_bucket_and_so_do_the_links(
    target: Target, region: str
) -> None:
    check_links(send(target.read_settings(BUCKET_REGION=region)), target, PICTURES)


def test_a_clock_that_is_a_day_behind_is_refused_by_its_name(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: moment)
    with pytest.raises(DeliveryFailed, match=r"status 40[03] \((RequestTimeTooSkewed|AccessDen)"):
        send(target.read_settings(), PICTURES[:1])


def test_the_doctor_leaves_the_bucket_as_it_was(target: Target) -> None:
    before = None if target.server is None else target.server.objects()
    found = trial.try_bucket(target.read_settings(BUCKET_PREFIX="the doctor/ü"))
    assert [(finding.check, finding.level) for finding in found] == [
        (check, "ok") for check in ("upload", "link", "deletion")
    ]
    assert before is None or target.server is None or target.server.objects() == before
