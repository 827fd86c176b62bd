"""Of a refusal's body one word is repeated, and a hostile one costs little time and memory."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import botocore.retries.standard
import pytest
from yarl import URL

from worker import settings
from worker.media import refusal
from worker.media.dial import send_request
from worker.media.refusal import LATER_CODES, Refusal, read_refusal
from worlds.site import Site, make_refusal


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


def ask(site: Site, *answer: bytes) -> Refusal:
    """Return what is read of the site's answer to an upload."""
    site.put_answers[:] = answer

    async def put() -> Refusal:
        url, given = URL(f"{site.http}/x"), settings.read(site.environ)
        async with send_request("PUT", url, given, body=b"x") as response:
            return await read_refusal(response)

    return asyncio.run(put())


SWIFT = (
    b"<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>AuthorizationQueryParametersError"
    b"</Code><Message>Error parsing the X-Amz-Credential parameter; the region 'auto' is wrong;"
    b" expecting 'us-east-1'</Message><RequestId>tx1</RequestId><Region>us-east-1</Region></Error>"
)
AZURE = (
    b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?><Error><Code>AuthenticationFailed</Code>'
    b"<Message>Server failed to authenticate the request.</Message></Error>"
)


@pytest.mark.parametrize(
    ("body", "headers", "code", "region"),
    [
        (SWIFT, "", "AuthorizationQueryParametersError", "us-east-1"),
        (AZURE, "", "AuthenticationFailed", None),
        (b"<Error>\n  <Code>\n NoSuchBucket\t</Code>", "", "NoSuchBucket", None),
        (b"", "X-Amz-Bucket-Region: eu-west-1\r\n", None, "eu-west-1"),
        (b"<Region>EU-RO-1</Region>", "x-amz-bucket-region: moon\r\n", None, "EU-RO-1"),
        (b"<Code>Ab</Code><Code>Cd</Code>", "", "Ab", None),
        (b"<Code>" + b"A" * 64 + b"</Code>", "", "A" * 64, None),
        (b"<Region>" + b"a" * 63 + b"</Region>", "", None, "a" * 63),
    ],
)
def test_the_code_and_the_region_are_read_as_stores_write_them(
    site: Site, body: bytes, headers: str, code: str | None, region: str | None
) -> None:
    assert ask(site, make_refusal(400, body, headers)) == Refusal(400, code, region)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>403 Forbidden</html>",
        b"<Code></Code><Region></Region>",
        b"<Code>two words</Code><Region>two words</Region>",
        b"<Code>lower</Code><Region>-eu</Region>",
        b"<Code>A</Code><Region>eu--1</Region>",
        b"<Code>/etc/passwd</Code><Region>a.b</Region>",
        b"<Code>Caf\xc3\xa9</Code><Region>caf\xc3\xa9</Region>",
        b"<Code>Line\nBreak</Code><Region>a\nb</Region>",
        b"<Code>" + b"A" * 65 + b"</Code><Region>" + b"a" * 64 + b"</Region>",
        b"<Code>https://internal.example</Code>",
        b"<Code>AccessDenied",
        b"\xff\xfe<\x00C\x00o\x00d\x00e\x00>\x00",
        b" " * 16_384 + b"<Code>AccessDenied</Code>",
        b"<Code>" + b" " * 100_000,
    ],
)
def test_nothing_but_a_word_is_taken_out_of_an_answer(site: Site, body: bytes) -> None:
    assert ask(site, make_refusal(403, body)) == Refusal(403)


def test_the_code_is_read_at_the_end_of_what_is_read(site: Site) -> None:
    end = b"<Code>AccessDenied</Code>"
    body = b" " * (16_384 - len(end)) + end
    assert ask(site, make_refusal(403, body)).code == "AccessDenied"


def test_an_answer_in_pieces_is_joined_up_to_the_limit() -> None:
    asked: list[int] = []
    pieces = [b"<Code>Acc", b"essDenied</Code>", b""]

    async def read(most: int) -> bytes:
        asked.append(most)
        return pieces.pop(0)

    answer: Any = SimpleNamespace(content=SimpleNamespace(read=read))
    assert asyncio.run(refusal.read_start(answer)) == b"<Code>AccessDenied</Code>"
    assert asked == [16_384, 16_384 - 9, 16_384 - 25]


def test_an_answer_that_is_cut_off_still_has_its_status_and_what_came(site: Site) -> None:
    cut = make_refusal(403, b"<Code>AccessDenied</Code>").replace(b"Length: 25", b"Length: 99")
    assert ask(site, cut) == Refusal(403, "AccessDenied")


def test_a_store_that_falls_silent_is_not_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal, "ANSWER_S", 0.1)
    monkeypatch.setattr(site, "falls_silent", True)
    whole = make_refusal(403, b"<Code>AccessDenied</Code>").replace(b"Length: 25", b"Length: 99")
    assert ask(site, whole) == Refusal(403, "AccessDenied")


@pytest.mark.parametrize(
    ("status", "counts"), [(301, False), (399, False), (400, True), (499, True), (500, False)]
)
def test_a_region_counts_only_where_the_request_is_at_fault(
    site: Site, status: int, counts: bool
) -> None:
    found = ask(site, make_refusal(status, b"<Region>moon-1</Region>")).region
    assert found == ("moon-1" if counts else None)


@pytest.mark.parametrize(
    ("status", "code", "is_temporary"),
    [
        (403, None, False),
        (503, None, True),
        (503, "SlowDown", True),
        (400, "RequestTimeout", True),
        (409, "OperationAborted", True),
        (409, "BucketAlreadyExists", False),
        (501, None, True),
        (501, "NotImplemented", False),
        (403, "RequestTimeTooSkewed", False),
        (301, "PermanentRedirect", False),
    ],
)
def test_the_code_decides_before_the_status(
    status: int, code: str | None, is_temporary: bool
) -> None:
    assert Refusal(status, code).is_temporary is is_temporary


def test_what_amazons_client_retries_is_retried() -> None:
    theirs = {
        *botocore.retries.standard.ThrottledRetryableChecker._THROTTLED_ERROR_CODES,  # type: ignore[attr-defined]
        *botocore.retries.standard.TransientRetryableChecker._TRANSIENT_ERROR_CODES,  # type: ignore[attr-defined]
    }
    assert theirs == LATER_CODES - {"OperationAborted"}


def test_only_a_skewed_clock_is_the_clocks() -> None:
    assert Refusal(403, "RequestTimeTooSkewed").is_of_clock
    assert not Refusal(403, "AccessDenied").is_of_clock
    assert not Refusal(403).is_of_clock


def test_a_refusal_is_told_with_its_status_and_its_code_if_there_is_one() -> None:
    assert Refusal(404).message == "the store answered with status 404"
    assert Refusal(404, "NoSuchBucket").message.endswith("status 404 (NoSuchBucket)")
