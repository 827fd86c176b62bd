"""References are fetched from where callers may reach, within bytes and seconds, nowhere else."""

import asyncio
import contextlib
import gzip
import ipaddress
import itertools
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlencode

import aiodns
import aiohttp
import brotli
import certifi
import pytest
from yarl import URL

from worker import settings
from worker.edge import reply
from worker.edge.reply import format_answer
from worker.errors import (
    ImageFetchFailed,
    ImageFetchRefused,
    ImageTooLarge,
    WorkerError,
)
from worker.media import dial
from worker.media.address import Gate
from worker.media.fetch import ImageSource, _follow, fetch_all
from worker.settings import Settings
from worlds.site import HOST, INSIDE, Site, tapped

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
    dial.make_tls_context.cache_clear()
    yield
    dial.make_tls_context.cache_clear()
    assert site.intruders == 0


# what has to be fast may take half of what a failure takes; nothing else may run out of time
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
def test_a_picture_arrives_complete(site: Site, scheme: str) -> None:
    assert fetch(read(site), f"{getattr(site, scheme)}/good.png") == [PICTURE]
    assert site.method == "GET"
    assert site.headers["accept-encoding"] == "identity"
    assert site.headers["accept"] == "image/png, image/jpeg, image/webp, image/*;q=0.5"
    assert site.headers["user-agent"] == "image-worker"
    assert not {"cookie", "content-length", "transfer-encoding"} & site.headers.keys()


def test_certifis_authorities_are_trusted_along_with_the_systems() -> None:
    """An image without ca-certificates trusts them alone; here the system's is the site's."""
    only = ssl.create_default_context(cafile=certifi.where())
    known = {repr(one) for one in only.get_ca_certs()}
    trusted = {repr(one) for one in dial.make_tls_context().get_ca_certs()}
    assert known
    assert known < trusted


def test_a_picture_in_the_job_needs_no_site(site: Site) -> None:
    given = read(site, MAX_IMAGE_BYTES="1024")
    sources = [
        ImageSource("base64", "cGljdHVyZQ=="),
        ImageSource("url", "DATA:image/png;base64,cGljdHVyZQ"),
        ImageSource("url", f"{site.http}/small.png"),
    ]
    site.files["/small.png"] = b"from the site"
    expected = [b"picture", b"picture", b"from the site"]
    assert asyncio.run(fetch_all(sources, given)) == expected
    with pytest.raises(ImageTooLarge, match=r"images\[1\]: .* 1024 bytes"):
        asyncio.run(fetch_all([sources[0], ImageSource("base64", "AAAA" * 342)], given))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere", "redirected to nowhere"),
        ("/to?url=//[/x", "redirected to a malformed URL"),
        ("/status/404", "status 404"),
        ("/hops/9", "more than 3 times"),
    ],
)
def test_what_the_site_did_wrong_is_said(site: Site, path: str, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        fetch(read(site), site.http + path)


def test_a_name_is_resolved_once_and_to_every_address(site: Site) -> None:
    gate = Gate.from_settings("http", read(site, ALLOWED_IMAGE_NETWORKS="127.0.0.0/8:80"))
    site.names.answers["two.test"] = [HOST, "127.0.0.9"]

    async def resolve(name: str) -> list[tuple[str, str, int]]:
        resolver = dial.GuardedResolver(gate, read(site))
        try:
            found = await resolver.resolve(name, 80, socket.AF_INET)
            return sorted((one["hostname"], one["host"], one["port"]) for one in found)
        finally:
            await resolver.close()

    expected = [("two.test", HOST, 80), ("two.test", "127.0.0.9", 80)]
    assert asyncio.run(resolve("two.test")) == expected
    with pytest.raises(dial.NoAddressError):
        asyncio.run(resolve("nosuch.test"))


def test_only_addresses_of_the_family_asked_for_are_found(site: Site) -> None:
    gate = Gate.from_settings("http", read(site, ALLOWED_IMAGE_NETWORKS="127.0.0.0/8:80"))

    async def resolve(family: socket.AddressFamily) -> list[tuple[str, int]]:
        resolver = dial.GuardedResolver(gate, read(site))
        try:
            found = await resolver.resolve("mixed6.test", 80, family)
            return [(one["host"], one["family"]) for one in found]
        finally:
            await resolver.close()

    assert asyncio.run(resolve(socket.AF_INET)) == [(HOST, socket.AF_INET)]
    for both in (socket.AF_INET6, socket.AF_UNSPEC):  # ::1 is not open
        with pytest.raises(dial.AddressRefusedError):
            asyncio.run(resolve(both))


def test_a_name_is_resolved_for_no_port_where_none_is_said(site: Site) -> None:
    async def resolve() -> list[int]:
        opened = ((ipaddress.ip_network(f"{HOST}/32"), 0),)
        resolver = dial.GuardedResolver(Gate(frozenset(), opened), read(site))
        try:
            return [one["port"] for one in await resolver.resolve("site.test")]
        finally:
            await resolver.close()

    assert asyncio.run(resolve()) == [0]


def test_an_answer_of_no_addresses_is_none(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty(aiodns.DNSResolver):
        async def getaddrinfo(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
            return SimpleNamespace(nodes=[])

    monkeypatch.setattr(aiodns, "DNSResolver", Empty)
    with pytest.raises(ImageFetchFailed, match="no address"):
        fetch(read(site), f"{site.http.replace(HOST, 'site.test')}/good.png")


def test_every_connection_of_a_request_ends_at_once() -> None:
    """Also one that was never made, as where the first of two addresses did not answer."""

    async def end(sockets: dial.GuardedSockets) -> None:
        await sockets.end()

    with socket.create_server((HOST, 0)) as server:
        sockets = dial.GuardedSockets(None)
        address = server.getsockname()
        info = (socket.AF_INET, socket.SOCK_STREAM, 0, "", address)
        made = [sockets(info) for _ in range(4)]
        for one in made[1:]:
            one.connect(address)
        peers = [server.accept()[0] for _ in made[1:]]
        asyncio.run(end(sockets))
        for peer in peers:
            peer.settimeout(TOTAL_S)
            assert peer.recv(1) == b""
        for one in (*made, *peers):
            one.close()


class Untimed(asyncio.SelectorEventLoop):
    """A loop on which nobody may wait for a time."""

    def call_at(self, *_: Any, **__: Any) -> Any:  # type: ignore[override] # it never returns
        """Refuse to wait."""
        raise AssertionError("a timer was set")


def test_the_end_of_connections_takes_rounds_of_the_loop_and_no_time() -> None:
    sockets = dial.GuardedSockets(None)
    with sockets((socket.AF_INET, socket.SOCK_STREAM, 0, "", (HOST, 9))) as made:
        with asyncio.Runner(loop_factory=Untimed) as runner:
            runner.run(sockets.end())
        assert made.fileno() >= 0  # to the last round


def test_only_callers_names_go_to_the_operators_name_servers(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's own bucket may have a name that is known inside alone."""
    asked: list[object] = []
    closed: list[object] = []

    class Watched(aiodns.DNSResolver):
        def __init__(self, nameservers: Any = None) -> None:
            asked.append(nameservers)
            super().__init__(nameservers=[f"{HOST}:{site.dns_port}"])

        async def close(self) -> None:
            closed.append(self)
            await super().close()

    monkeypatch.setattr(aiodns, "DNSResolver", Watched)

    async def resolve(gate: Gate | None) -> None:
        resolver = dial.GuardedResolver(gate, given)
        try:
            for _ in range(2):  # the second name needs no other thread
                await resolver.resolve("site.test", site.http_port)
        finally:
            await resolver.close()

    given = read(site)
    asyncio.run(resolve(Gate.from_settings("http", given)))
    asyncio.run(resolve(None))
    given = read(site, FETCH_NAMESERVERS="")
    asyncio.run(resolve(Gate.from_settings("http", given)))
    assert asked == [(f"{HOST}:{site.dns_port}",), None, None]
    assert len(closed) == 3
    asyncio.run(
        fetch_all([ImageSource("url", f"http://site.test:{site.http_port}/good.png")], read(site))
    )
    assert len(asked) == len(closed) == 4


def test_a_certificate_for_another_name_is_not_accepted(site: Site) -> None:
    site.names.answers["stranger.test"] = [HOST]
    with pytest.raises(ImageFetchFailed, match="certificate"):
        fetch(read(site), f"https://stranger.test:{site.https_port}/good.png")


def test_a_certificate_of_an_unknown_authority_is_not_accepted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    dial.make_tls_context.cache_clear()
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


def test_the_address_that_was_checked_is_the_one_that_is_dialled(site: Site) -> None:
    """A name that turns inward after its first answer gains nothing: there is one answer a hop."""
    rounds = itertools.chain(
        [[HOST], [HOST]], itertools.repeat([INSIDE])
    )  # one for A, one for AAAA
    site.names.answers["turning.test"] = lambda: next(rounds)
    url = f"http://turning.test:{site.http_port}/good.png"
    assert fetch(read(site), url) == [PICTURE]
    with pytest.raises(ImageFetchRefused):
        fetch(read(site), url)


def test_every_hop_is_checked_again(site: Site) -> None:
    rounds = itertools.chain([[HOST], [HOST]], itertools.repeat([INSIDE]))
    site.names.answers["second.test"] = lambda: next(rounds)
    there = f"http://second.test:{site.http_port}"
    with pytest.raises(ImageFetchRefused):
        fetch(read(site), f"{there}/to?url={there}/good.png")
    assert site.hits[-1].startswith("/to")


def test_the_socket_is_checked_even_if_the_resolver_is_fooled(
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
        "//[/good.png",
        "http:good.png",
        "HTTP:/good.png",
        "/go\tod.png",
        "/go\\od.png",
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


# What a site may do wrong, and whether asking again may help.
PASSING = {
    "/status/408": True,
    "/status/425": True,
    "/status/429": True,
    "/status/500": True,
    "/status/502": True,
    "/status/503": True,
    "/status/504": True,
    "/status/202": True,
    "/short": True,
    "/cut-chunks": True,
    "/nothing": True,
    **{f"/status/{status}": False for status in (400, 401, 402, 403, 404, 405, 406, 409, 410)},
    **{f"/status/{status}": False for status in (411, 412, 413, 414, 418, 421, 422, 423, 428)},
    **{f"/status/{status}": False for status in (431, 451, 499, 204, 205, 300, 304)},
    "/partial": False,
    "/nowhere": False,
    "/hops/9": False,
    "/no-http": False,
    "/both-lengths": False,
    "/two-lengths": False,
    "/header-flood": False,
    "/long-header": False,
    "/upgrade": False,
}


@pytest.mark.parametrize("path", PASSING, ids=str)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_only_what_is_temporary_is_worth_a_retry(site: Site, scheme: str, path: str) -> None:
    with pytest.raises(ImageFetchFailed) as failure:
        fetch(read(site), getattr(site, scheme) + path)
    answer = format_answer(reply.make_failure(failure.value))
    assert answer["error_code"] == "IMAGE_FETCH_FAILED"
    assert answer["retryable"] is PASSING[path], answer
    assert answer["error_type"] == ("transient" if PASSING[path] else "bad_request")
    assert answer["details"][0]["field"] == "images[0]"


@pytest.mark.parametrize(
    ("url", "passes"),
    [
        ("https://nosuch.test:{tls}/x", False),
        ("https://empty.test:{tls}/x", False),
        ("https://trouble.test:{tls}/x", True),
        ("https://silent.test:{tls}/x", True),
        ("https://stranger.test:{tls}/x", False),  # a certificate for another name
        ("https://site.test:{port}/x", True),  # no TLS there: it waits for more
        ("http://127.0.0.1:{tls}/x", True),  # TLS there: it just hangs up
        ("https://127.0.0.1:{closed}/x", True),
        ("http://127.0.0.1:{port}/silent", True),
    ],
)
def test_why_a_site_cannot_be_reached_decides_too(site: Site, url: str, passes: bool) -> None:
    site.names.answers |= {"trouble.test": ["trouble"], "stranger.test": [HOST]}
    with socket.socket() as closed:  # bound and not listening: a connection to it is refused
        closed.bind((HOST, 0))
        port = closed.getsockname()[1]
        opened = f"{site.environ['ALLOWED_IMAGE_NETWORKS']},{HOST}/32:{port}"
        given = read(
            site,
            ALLOWED_IMAGE_NETWORKS=opened,
            # what lasts passes too: it is waited for where nothing else may be found
            FETCH_CONNECT_S="0.4" if passes else "60",
            FETCH_TOTAL_S="0.8" if passes else "60",
        )
        with pytest.raises(ImageFetchFailed) as failure:
            fetch(given, url.format(port=site.http_port, tls=site.https_port, closed=port))
    assert failure.value.retryable is passes, failure.value.message


@pytest.mark.parametrize(
    ("inner", "passes", "words"),
    [
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), False, "TLS"),
        (ssl.SSLError(1, "[SSL: TLSV1_ALERT_PROTOCOL_VERSION]"), False, "TLS"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), True, "reached"),
        (ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed"), True, "reached"),
        (ConnectionRefusedError(111, "refused"), True, "reached"),
        (OSError(113, "No route to host"), True, "reached"),
        (dial.NoAddressError("none"), False, "address"),
    ],
)
def test_a_connection_that_was_cut_may_hold_the_next_time(
    inner: OSError, passes: bool, words: str
) -> None:
    key: Any = SimpleNamespace(host="h", port=443, ssl=True, is_ssl=True)
    for error in (aiohttp.ClientConnectorError(key, inner), inner):
        why = dial.explain_failure(error, "the site")
        assert (why.is_temporary, words in why.message) == (passes, True), why


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "identity", "Identity", "none", "utf-8", "UTF-8", "base64", "binary", "8bit"),
        *("aws-chunked", "AWS-Chunked", "identity, identity", "identity,none,", ",", "image/png"),
    ],
)
def test_an_encoding_that_is_no_compression_says_nothing(site: Site, name: str) -> None:
    assert fetch(read(site), f"{site.http}/coded/good.png?{urlencode({'as': name})}") == [PICTURE]


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "deflate", "br", "zstd", "compress", "exi"])
def test_a_picture_under_a_wrong_name_is_a_picture(site: Site, name: str) -> None:
    assert fetch(read(site), f"{site.http}/coded/good.png?as={name}") == [PICTURE]


def test_a_picture_is_unpacked_within_the_limit_of_bytes(site: Site) -> None:
    site.files["/packed"] = gzip.compress(brotli.compress(PICTURE))
    site.files["/bomb"] = gzip.compress(bytes(100_000_000))
    site.files["/dense"] = gzip.compress(dense := random.Random(1).randbytes(200_000))
    exact = read(site, MAX_IMAGE_BYTES=str(len(PICTURE)))
    for query in ("as=identity,br,gzip", "as=br&as=x-gzip", "as=BR,%20GZIP"):
        assert fetch(exact, f"{site.http}/coded/packed?{query}") == [PICTURE]
    for limit in (len(PICTURE) - 1, 1024):
        with pytest.raises(ImageTooLarge, match=f"{limit} bytes"):
            fetch(read(site, MAX_IMAGE_BYTES=str(limit)), f"{site.http}/coded/packed?as=br&as=gzip")
    with pytest.raises(ImageTooLarge):
        fetch(read(site), f"{site.http}/coded/bomb?as=gzip")
    assert len(site.files["/dense"]) > len(dense)
    given = read(site, MAX_IMAGE_BYTES=str(len(dense)))
    assert fetch(given, f"{site.http}/coded/dense?as=gzip") == [dense]


def test_what_cannot_be_unpacked_is_not_requested_again(site: Site) -> None:
    site.files["/broken"] = gzip.compress(PICTURE)[:-9]
    with pytest.raises(ImageFetchFailed, match="broken") as failure:
        fetch(read(site), f"{site.http}/coded/broken?as=gzip")
    assert not failure.value.retryable
    assert failure.value.error_type == "bad_request"


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/a b\u00a0\u202f.png", "/a%20b%C2%A0%E2%80%AF.png"),
        (
            "/\u7b2c\u4e09\u7ae0/\uff081\uff09.png",
            "/%E7%AC%AC%E4%B8%89%E7%AB%A0/%EF%BC%881%EF%BC%89.png",
        ),
        ("\u2460.png?q=\u2122 x", "/%E2%91%A0.png?q=%E2%84%A2%20x"),
        ("/s%2Fg%20n~%7E.png?X-Sig=a%2Fb%3D&e=", "/s%2Fg%20n~%7E.png?X-Sig=a%2Fb%3D&e="),
        ("{http}/\u00e9#\u2460", "/%C3%A9"),
    ],
)
def test_a_redirect_is_percent_encoded_as_a_url_is(site: Site, location: str, asked: str) -> None:
    target = quote(location.replace("{http}", site.http), safe="")
    site.files[asked.partition("?")[0]] = b"there"
    assert fetch(read(site), f"{site.http}/to?url={target}") == [b"there"]
    assert site.hits[-1] == asked


def test_a_redirect_in_another_encoding_leads_to_the_same_bytes(site: Site) -> None:
    site.files["/caf%E9.png"] = b"latin"
    assert fetch(read(site), f"{site.http}/latin") == [b"latin"]


def test_a_relative_redirect_leaves_the_signed_path_before_it_as_it_is(site: Site) -> None:
    site.files["/a%7Eb/good.png"] = b"signed"
    given = read(site)
    url = URL(f"{site.http}/a%7Eb/x?sig=%2F", encoded=True)
    assert str(_follow(url, "good.png", given)) == f"{site.http}/a%7Eb/good.png"


def test_a_host_in_another_script_is_requested_as_punycode(site: Site) -> None:
    site.names.answers["xn--ehq000d.example"] = [HOST]
    url = f"http://\u4e09\u661f.example:{site.http_port}"
    assert fetch(read(site), f"{url}/good.png") == [PICTURE]
    assert site.headers["host"] == f"xn--ehq000d.example:{site.http_port}"
    assert fetch(read(site), f"{site.http}/to?url={quote(url)}/good.png") == [PICTURE]
    assert fetch(read(site), f"{site.http}/to?url={quote(url[5:])}/good.png") == [PICTURE]


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


def test_of_pictures_that_are_refused_at_once_the_first_is_named() -> None:
    sources = [ImageSource("url", url) for url in ("ftp://site.test/x", "file:///x")]
    with pytest.raises(ImageFetchRefused) as failure:
        asyncio.run(fetch_all(sources, settings.read({})))
    assert failure.value.details[0].field == "images[0]"


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


def test_only_allowed_hosts_are_contacted_when_there_is_a_list(site: Site) -> None:
    given = read(site, ALLOWED_IMAGE_HOSTS="site.test, *.site.test")
    assert fetch(given, f"{site.https}/good.png", f"https://a.site.test:{site.https_port}/good.png")
    for host in ("other.test", "notsite.test", "site.test.other.test"):
        with pytest.raises(ImageFetchRefused, match="host"):
            fetch(given, f"https://{host}:{site.https_port}/good.png")
    with pytest.raises(ImageFetchRefused, match="host"):
        fetch(given, f"{site.https}/to?url=https://other.test:{site.https_port}/good.png")


def test_no_message_contains_an_address_or_a_host(site: Site) -> None:
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
