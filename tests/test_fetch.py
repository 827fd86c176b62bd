"""References are fetched from where callers may reach, within bytes and seconds, nowhere else."""

import asyncio
import base64
import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from worlds.site import HOST, INSIDE, Site, tapped

from worker import settings
from worker.errors import (
    ImageFetchFailed,
    ImageFetchRefused,
    ImageTooLarge,
    InvalidInput,
    WorkerError,
)
from worker.media import dial, inline
from worker.media.fetch import ImageSource, fetch_all
from worker.media.url import check
from worker.settings import Settings

PICTURE = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        site.files["/good.png"] = PICTURE
        site.names.answers |= {
            "inside.test": [INSIDE],
            "mixed.test": [HOST, INSIDE],
            "mixed6.test": [HOST, "::1"],
            "mapped.test": ["::ffff:127.0.0.2"],
            "metadata.test": ["169.254.169.254"],
            "silent.test": ["silence"],
            "empty.test": [],
        }
        yield site


@pytest.fixture(autouse=True)
def _trust(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SSL_CERT_FILE", str(site.authority))
    dial.tls_context.cache_clear()
    yield
    dial.tls_context.cache_clear()
    assert site.intruders == 0


# what has to be fast is held to half of what it would take; nothing else may run out of time
TOTAL_S = 60


def read(site: Site, **changes: str) -> Settings:
    limits = {"FETCH_TOTAL_S": str(TOTAL_S), "FETCH_CONNECT_S": str(TOTAL_S)}
    return settings.read({**site.environ, **limits, **changes})


def fetch(given: Settings, *urls: str) -> list[bytes]:
    with tapped() as dialled:
        sources = [ImageSource("url", url) for url in urls]
        try:
            return asyncio.run(fetch_all(sources, given))
        finally:
            opened = {
                (str(net.network_address), port) for net, port in given.allowed_image_networks
            }
            assert {address[:2] for address in dialled} <= opened


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_picture_arrives_whole(site: Site, scheme: str) -> None:
    assert fetch(read(site), f"{getattr(site, scheme)}/good.png") == [PICTURE]
    assert site.headers["accept-encoding"] == "identity"
    assert site.headers["accept"] == "image/png, image/jpeg, image/webp"
    assert "cookie" not in site.headers


def test_a_certificate_for_another_name_is_not_accepted(site: Site) -> None:
    site.names.answers["stranger.test"] = [HOST]
    with pytest.raises(ImageFetchFailed, match="certificate"):
        fetch(read(site), f"https://stranger.test:{site.https_port}/good.png")


def test_a_certificate_of_an_unknown_authority_is_not_accepted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    dial.tls_context.cache_clear()
    with pytest.raises(ImageFetchFailed, match="certificate"):
        fetch(read(site), f"{site.https}/good.png")


@pytest.mark.parametrize(
    "name", ["inside", "mixed", "mixed6", "mapped", "metadata"], ids=lambda name: name
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_with_any_address_inside_is_refused(site: Site, name: str, scheme: str) -> None:
    port = site.http_port if scheme == "http" else site.https_port
    with pytest.raises(ImageFetchRefused):
        fetch(read(site), f"{scheme}://{name}.test:{port}/good.png")
    assert f"{name}.test" in site.names.asked


def test_the_address_that_was_judged_is_the_one_that_is_dialled(site: Site) -> None:
    """A name that turns inward after its first answer gains nothing: there is one answer a hop."""
    rounds = itertools.chain(
        [[HOST], [HOST]], itertools.repeat([INSIDE])
    )  # one for A, one for AAAA
    site.names.answers["turning.test"] = lambda: next(rounds)
    url = f"http://turning.test:{site.http_port}/good.png"
    assert fetch(read(site), url) == [PICTURE]
    with pytest.raises(ImageFetchRefused):
        fetch(read(site), url)


def test_every_hop_is_judged_again(site: Site) -> None:
    rounds = itertools.chain([[HOST], [HOST]], itertools.repeat([INSIDE]))
    site.names.answers["second.test"] = lambda: next(rounds)
    there = f"http://second.test:{site.http_port}"
    with pytest.raises(ImageFetchRefused):
        fetch(read(site), f"{there}/to?url={there}/good.png")
    assert site.hits[-1].startswith("/to")


def test_the_socket_is_judged_even_if_the_resolver_were_fooled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fooled(*_: object, **__: object) -> list[dict[str, object]]:
        return [
            {
                "hostname": "site.test",
                "host": INSIDE,
                "port": site.http_port,
                "family": socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
        ]

    monkeypatch.setattr(dial.GuardedResolver, "resolve", fooled)
    with pytest.raises(ImageFetchRefused):
        fetch(read(site), f"http://site.test:{site.http_port}/good.png")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_three_times(site: Site, status: int) -> None:
    assert fetch(read(site), f"{site.http}/to?status={status}&url=/good.png") == [PICTURE]
    assert fetch(read(site), f"{site.http}/hops/2") == [PICTURE]
    with pytest.raises(ImageFetchFailed, match="more than 3"):
        fetch(read(site), f"{site.http}/hops/3")


@pytest.mark.parametrize(
    "location", ["/good.png", "good.png", "../good.png", "//127.0.0.1:{port}/good.png"]
)
def test_a_redirect_may_be_relative(site: Site, location: str) -> None:
    url = location.format(port=site.http_port)
    assert fetch(read(site), f"{site.http}/to?url={url}") == [PICTURE]


def test_a_relative_redirect_may_hold_another_url_in_its_query(site: Site) -> None:
    site.files["/login"] = b"sign in"
    assert fetch(read(site), f"{site.http}/to?url=/login?next=https://other.test/") == [b"sign in"]


def test_a_redirect_may_climb_to_https_but_never_down(site: Site) -> None:
    assert fetch(read(site), f"{site.http}/to?url={site.https}/good.png") == [PICTURE]
    with pytest.raises(ImageFetchRefused, match="from https to http"):
        fetch(read(site), f"{site.https}/to?url={site.http}/good.png")


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.2:{port}/good.png",
        "http://inside.test:{port}/good.png",
        "http://user:password@site.test:{port}/good.png",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "ftp://site.test/good.png",
        "gopher://site.test:{port}/",
        "//inside.test:{port}/good.png",
        "http:\\\\inside.test:{port}\\good.png",
        "http://127.0.0.1:1/good.png",
        "http://2130706434:{port}/good.png",
        "http://[::1]:{port}/good.png",
        "data:image/png;base64,AAAA",
    ],
)
def test_a_redirect_out_of_bounds_is_refused(site: Site, target: str) -> None:
    with pytest.raises(ImageFetchRefused):
        fetch(read(site), f"{site.http}/to?url=" + target.format(port=site.http_port))


@pytest.mark.parametrize(
    "path",
    [
        "/status/404",
        "/status/500",
        "/status/204",
        "/nowhere",
        "/gzip",
        "/short",
        "/cut-chunks",
        "/bad-chunks",
        "/both-lengths",
        "/two-lengths",
        "/no-http",
        "/nothing",
        "/header-flood",
        "/long-header",
        "/upgrade",
        "/partial",
    ],
)
def test_a_site_that_does_not_send_the_picture_is_a_failure(site: Site, path: str) -> None:
    with pytest.raises(ImageFetchFailed):
        fetch(read(site), site.http + path)


@pytest.mark.parametrize(
    "path", ["/endless", "/endless-chunks", "/tiny-chunks", "/claims?bytes=99999999999"]
)
def test_reading_stops_at_the_limit_of_bytes(site: Site, path: str) -> None:
    with pytest.raises(ImageTooLarge, match="100000 bytes"):
        fetch(read(site, MAX_IMAGE_BYTES="100000"), site.http + path)


def test_a_picture_of_exactly_the_limit_passes(site: Site) -> None:
    assert fetch(read(site, MAX_IMAGE_BYTES=str(len(PICTURE))), f"{site.http}/good.png")
    with pytest.raises(ImageTooLarge):
        fetch(read(site, MAX_IMAGE_BYTES=str(len(PICTURE) - 1)), f"{site.http}/good.png")


@pytest.mark.parametrize("path", ["/drip", "/slow-head", "/silent", "/continue-flood"])
def test_slowness_in_any_phase_ends_with_the_budget(site: Site, path: str) -> None:
    started = time.monotonic()
    with pytest.raises(ImageFetchFailed, match=r"within 0\.3 s"):
        fetch(read(site, FETCH_TOTAL_S="0.3"), site.http + path)
    assert time.monotonic() - started < TOTAL_S / 2


def test_a_silent_name_server_ends_with_the_connect_budget(site: Site) -> None:
    started = time.monotonic()
    with pytest.raises(ImageFetchFailed, match="reached"):
        fetch(read(site, FETCH_CONNECT_S="0.3"), f"http://silent.test:{site.http_port}/x")
    assert time.monotonic() - started < TOTAL_S / 2


@pytest.mark.parametrize("name", ["empty.test", "nosuch.test"])
def test_a_name_without_an_address_is_a_failure(site: Site, name: str) -> None:
    with pytest.raises(ImageFetchFailed, match="no address"):
        fetch(read(site), f"https://{name}:{site.https_port}/x")


def test_several_references_come_side_by_side_and_in_order(site: Site) -> None:
    site.files["/other.png"] = b"other"
    urls = [f"{site.http}/good.png", f"{site.https}/other.png", f"{site.http}/good.png"]
    assert fetch(read(site), *urls) == [PICTURE, b"other", PICTURE]
    started = time.monotonic()
    with pytest.raises(ImageFetchFailed):
        fetch(read(site, FETCH_TOTAL_S="2"), *[f"{site.http}/silent"] * 30)
    assert time.monotonic() - started < 30 * 2 / 2


def test_the_first_failure_stops_the_others_and_says_which(site: Site) -> None:
    started = time.monotonic()
    with pytest.raises(ImageFetchFailed, match="404") as failure:
        fetch(read(site), f"{site.http}/silent", f"{site.http}/status/404")
    assert time.monotonic() - started < TOTAL_S / 2
    assert failure.value.details[0].field == "images[1]"


def test_a_cancelled_job_leaves_no_thread_and_no_connection(site: Site) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(
            fetch_all([ImageSource("url", f"{site.http}/silent")], read(site))
        )
        await asyncio.to_thread(site.wait_for, "/silent")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    site.hits.clear()
    before = threading.active_count()
    started = time.monotonic()
    asyncio.run(cancel())
    assert time.monotonic() - started < TOTAL_S / 2
    assert threading.active_count() <= before + 2  # one of pycares, one of to_thread


@pytest.mark.parametrize("path", ["/good.png", "/endless", "/status/404", "/short"])
def test_every_connection_is_closed_when_its_answer_is_used(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Also of TLS, where asyncio would wait 30 s for a site that never says goodbye."""
    made: list[socket.socket] = []

    class Watched(dial.GuardedSockets):
        def __call__(self, info: tuple[Any, ...]) -> socket.socket:
            made.append(super().__call__(info))
            return made[-1]

    monkeypatch.setattr(dial, "GuardedSockets", Watched)

    async def fetch_and_look() -> list[int]:
        with contextlib.suppress(WorkerError):
            await fetch_all([ImageSource("url", site.https + path)] * 2, read(site))
        return [one.fileno() for one in made]

    # one or two: the first failure ends the other fetch, which may not have dialled yet
    assert set(asyncio.run(fetch_and_look())) == {-1}


def test_proxies_of_the_environment_are_not_used(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{INSIDE}:{site.http_port}")
    assert fetch(read(site), f"{site.http}/good.png", f"{site.https}/good.png")


def test_only_allowed_hosts_are_asked_when_there_is_a_list(site: Site) -> None:
    given = read(site, ALLOWED_IMAGE_HOSTS="site.test, *.site.test")
    assert fetch(given, f"{site.https}/good.png", f"https://a.site.test:{site.https_port}/good.png")
    for host in ("other.test", "notsite.test", "site.test.other.test"):
        with pytest.raises(ImageFetchRefused, match="host"):
            fetch(given, f"https://{host}:{site.https_port}/good.png")
    with pytest.raises(ImageFetchRefused, match="host"):
        fetch(given, f"{site.https}/to?url=https://other.test:{site.https_port}/good.png")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https:",
        "https://",
        "https:///x.png",
        "https:x.png",
        "https:/site.test/x.png",
        "//site.test/x.png",
        "site.test/x.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://site.test/x.png",
        "javascript://site.test/%0a",
        "blob:https://site.test/1",
        "https://site.test:0/x.png",
        "https://site.test:22/x.png",
        "https://site.test:65536/x.png",
        "https://site.test:443443/x.png",
        "https://site.test:+443/x.png",
        "https://site.test:4\uff143/x.png",
        "https://site.test:/x.png:22",
        "https://user@site.test/x.png",
        "https://user:secret@site.test/x.png",
        "https://@site.test/x.png",
        "https://site.test\\@inside.test/x.png",
        "https://site.test#@inside.test:22/x.png\\",
        "https:\\\\site.test\\x.png",
        "https://site.test/x y.png",
        "https://site.test/x\ty.png",
        "https://site.test/\r\nHost: inside.test",
        "https://site.test/\x00",
        "https://site\u00ad.test\u200b/x.png",
        "https://\uff53ite.test/x.png",
        "https://site\u3002test/x.png",
        "https://1\uff127.0.0.1/x.png",
        "https://site.test/\u0663.png",
        "https://si%74e.test/x.png",
        "https://site..test/x.png",
        "https://.test/x.png",
        "https://-/../x.png\\",
        "https://[::1/x.png",
        "https://[]/x.png",
        "https://[v1.a]/x.png",
        "https://[site.test]/x.png",
        "https://" + "a" * 64 + ".test/x.png",
        "https://" + "a." * 130 + "test/x.png",
        "https://site.test/" + "a" * 9000,
        "https://site!.test/x.png",
        "https://site,other.test/x.png",
        "https://<site>.test/",
    ],
)
def test_a_url_that_parsers_may_read_differently_is_refused(url: str) -> None:
    with pytest.raises(ImageFetchRefused):
        check(url, settings.read({"ALLOW_HTTP_IMAGES": "1"}))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "HTTPS://EXAMPLE.COM/A.png",
        "https://example.com",
        "https://example.com?x=1",
        "https://example.com.:443/a~b%7Ec.png?X-Amz-Signature=a%2Fb&x=%20#f",
        "https://a_b.example.com/(1).png",
        "https://bücher.example/ü.png",
        "https://xn--bcher-kva.example/a:b@c.png",
    ],
)
def test_an_ordinary_url_passes_as_it_was_written(url: str) -> None:
    checked = check(url, settings.read({}))
    if url.isascii():
        assert f"{checked.raw_path}?{checked.raw_query_string}".strip("/?") in url


def test_base64_is_strict_in_lines_or_as_a_data_uri() -> None:
    text = base64.b64encode(PICTURE).decode()
    lines = base64.encodebytes(PICTURE).decode()
    for form in (text, lines, lines.replace("\n", "\r\n"), f"data:text/html;base64,{text}"):
        assert inline.decode_base64(form, len(PICTURE)) == PICTURE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "AAA",
        "AAAA=",
        "AA=A",
        "=AAA",
        "AAAA AAAA",
        "AA-_",
        "AAAé",
        "AAAA\x00",
        "data:",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png,AAAA",
        "data:image/png;base64,AA%3D%3D",
        "data:image/png;base64;charset=utf-8,AAAA",
        "data:,data:;base64,AAAA",
    ],
)
def test_what_is_not_base64_is_invalid(text: str) -> None:
    with pytest.raises(InvalidInput):
        inline.decode_base64(text, 1000)


def test_base64_is_measured_before_it_is_decoded() -> None:
    assert len(inline.decode_base64("AAAA" * 25, 75)) == 75
    for text in ("AAAA" * 26, "!" * 200, "AAAA" * 25 + "AA==", "\n" * 10_000):
        with pytest.raises(ImageTooLarge):
            inline.decode_base64(text, 75)


def test_no_message_tells_an_address_or_a_host(site: Site) -> None:
    messages = []
    for url in (
        f"http://{INSIDE}:{site.http_port}/",
        f"http://inside.test:{site.http_port}/",
        f"https://nosuch.test:{site.https_port}/",
        f"{site.http}/no-http",
        f"{site.http}/status/500",
        f"https://other.test:{site.http_port}/good.png",
    ):
        with pytest.raises(WorkerError) as failure:
            fetch(read(site, FETCH_CONNECT_S="0.3"), url)
        messages.append(failure.value.message)
    assert len(messages) == 6
    for word in ("127.", ".test", str(site.http_port), str(site.https_port), "Errno", "/"):
        assert not any(word in message.replace("https://", "") for message in messages), word
