"""Which addresses are public, in every spelling, and what ALLOWED_IMAGE_NETWORKS opens."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import settings
from worker.errors import ImageFetchRefused
from worker.media.address import Gate, is_public
from worker.media.url import check_url

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "168.63.129.17",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.88.98.255",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "191.255.255.255",
    "192.0.3.0",
    "192.88.100.0",
    "198.51.99.255",
    "198.51.101.0",
    "203.0.112.255",
    "203.0.114.0",
    "223.255.255.255",
    "2000::1",
    "2001:200::1",
    "2003::1",
    "3ffe:ffff::1",
    "3fff:1000::1",
    "2606:4700::5efe:808:808",  # ISATAP: 8.8.8.8
    "2606:4700::200:5efe:808:808",
    "2606:4700::100:5efe:a00:1",  # none: another interface identifier
    "2001:4860:4860::8888",
    "2606:4700::1111",
    "2a00:1450:4001::200e",
    "::ffff:8.8.8.8",
    "2002:808:808::1",
    "64:ff9b::8.8.8.8",
    "2001:0:808:808:0:0:f7f7:f7f7",  # Teredo: server 8.8.8.8, client 8.8.8.8
]
NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",  # metadata of Alibaba Cloud
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # agent of Azure
    "169.254.169.254",  # metadata of most clouds
    "169.254.170.2",  # credentials of ECS tasks
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.0.10",
    "192.0.0.192",  # metadata of Oracle Cloud
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",  # IPv4-compatible
    "::808:808",
    "::ffff:0:0",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:a00:1",
    "::ffff:0:7f00:1",  # IPv4-translated (SIIT)
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::168.63.129.16",
    "64:ff9b:1::808:808",
    "64:ff9b:1:ffff::1",
    "100::1",
    "2001::1",  # Teredo: server 0.0.0.0
    "2001:0:808:808:0:0:80ff:fffe",  # Teredo: client 127.0.0.1
    "2001:0:a00:1:0:0:f7f7:f7f7",  # Teredo: server 10.0.0.1
    "1fff::1",
    "2001:1ff::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "2002:a00:1::1",
    "2002:a83f:8110::1",
    "2606:4700::5efe:a00:1",  # ISATAP: 10.0.0.1
    "2606:4700::200:5efe:169.254.169.254",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # metadata of AWS
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1111%1",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "ffff::1",
]
OPEN = settings.read({"ALLOW_HTTP_IMAGES": "true"})


def test_the_table_is_large_enough() -> None:
    assert len({*PUBLIC, *NOT_PUBLIC}) >= 64 + 30


@pytest.mark.parametrize("text", PUBLIC)
def test_sites_of_the_internet_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_everything_else_is_not(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_a_url_with_such_an_address_is_refused_before_it_is_dialled(text: str) -> None:
    host = f"[{text}]" if ":" in text else text
    for url in (f"https://{host}/a.png", f"http://{host}/", f"https://{host}:443/"):
        with pytest.raises(ImageFetchRefused):
            check_url(url, OPEN)


@given(st.ip_addresses(v=4))
def test_an_address_is_as_public_as_the_ipv4_address_inside_it(v4: ipaddress.IPv4Address) -> None:
    """Mapped, NAT64, 6to4 and Teredo are spellings of the address that packets end at."""
    number = int(v4)
    spellings = (
        (0xFFFF << 32) | number,
        (0x0064FF9B << 96) | number,
        (0x2002 << 112) | (number << 80) | 1,
        (0x20010000 << 96) | (0x08080808 << 64) | (number ^ 0xFFFFFFFF),
    )
    for spelling in spellings:
        assert is_public(ipaddress.IPv6Address(spelling)) == is_public(v4)


@given(st.ip_addresses())
def test_no_address_is_more_public_than_the_standard_library_says(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    embeds = isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped or address.sixtofour or address.teredo
    )
    if is_public(address) and not embeds and address not in ipaddress.ip_network("64:ff9b::/96"):
        assert address.is_global


def _inet_aton_spellings(address: str) -> list[str]:
    """Return what inet_aton, browsers and some resolvers read as the same address."""
    a, b, c, d = (int(part) for part in address.split("."))
    number = int(ipaddress.IPv4Address(address))
    return [
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
        f"{a:03d}.{b:03d}.{c:03d}.{d:03d}",
        f"{address}.",
        f"0x{a:x}.{b}.{c}.{d}",
        f"{a + 256}.{b}.{c}.{d}",
        "".join(chr(0xFF10 + int(x)) if x.isdigit() else x for x in address),
        address.replace(".", "\u3002"),
        address.replace(".", "\uff0e"),
        f"%3{str(a)[0]}{address[1:]}",
        f"[::ffff:{address}]",
        f"[::{address}]",
        f"[::ffff:{address}%25lo]",
    ]


@pytest.mark.parametrize("index", range(18))
@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.1.2.3", "192.168.1.1"])
def test_no_spelling_of_a_private_address_passes(address: str, index: int) -> None:
    with pytest.raises(ImageFetchRefused):
        check_url(f"https://{_inet_aton_spellings(address)[index]}/x.png", OPEN)


def test_a_public_address_passes_on_the_port_of_its_scheme_alone() -> None:
    assert check_url("https://8.8.8.8/x.png", OPEN).host == "8.8.8.8"
    assert check_url("https://[2606:4700::1111]/x.png", OPEN).host == "2606:4700::1111"
    for url in ("https://8.8.8.8:8443/", "https://8.8.8.8:80/", "http://8.8.8.8:443/"):
        with pytest.raises(ImageFetchRefused):
            check_url(url, OPEN)


def test_http_is_refused_unless_the_operator_allows_it() -> None:
    with pytest.raises(ImageFetchRefused, match="https"):
        check_url("http://8.8.8.8/x.png", settings.read({}))
    assert check_url("http://8.8.8.8/x.png", OPEN).scheme == "http"


def test_allowed_networks_open_their_addresses_at_their_port_and_nothing_more() -> None:
    opened = settings.read({"ALLOWED_IMAGE_NETWORKS": "127.0.0.0/8:8080, [fd00::]/8:443"})
    for scheme in ("http", "https"):
        gate = Gate.from_settings(scheme, opened)
        assert gate.can_reach("127.0.0.1", 8080)
        assert gate.can_reach("::ffff:127.0.0.1", 8080)
        assert gate.can_reach("fd12::1", 443)
        assert not gate.can_reach("127.0.0.1", 8081)
        assert not gate.can_reach("10.0.0.1", 8080)
        assert not gate.can_reach("8.8.8.8", 8080)
        assert not gate.can_reach("fe80::1", 443)
        assert not gate.can_reach("127.0.0.1", 443)
        assert not gate.can_reach("site.test", 8080)
    assert not Gate.from_settings("http", opened).can_reach("8.8.8.8", 443)
    assert Gate.from_settings("https", opened).can_reach("8.8.8.8", 443)


def test_no_other_scheme_opens_a_port() -> None:
    for scheme in ("ftp", "HTTPS", "", "ws"):
        gate = Gate.from_settings(scheme, OPEN)
        assert not any(gate.has_port(port) for port in (80, 443, 21))
        assert not any(gate.can_reach("8.8.8.8", port) for port in (80, 443, 21))
    assert not Gate.from_settings("http", settings.read({})).has_port(80)


def test_a_port_is_open_if_any_address_may_be_dialled_at_it() -> None:
    opened = settings.read({"ALLOWED_IMAGE_NETWORKS": "10.0.0.0/8:8080"})
    gate = Gate.from_settings("https", opened)
    assert (gate.has_port(443), gate.has_port(8080)) == (True, True)
    assert (gate.has_port(80), gate.has_port(8081)) == (False, False)
    assert not gate.can_reach("::a00:1", 8080)
    assert not gate.can_reach("11.0.0.0", 8080)
