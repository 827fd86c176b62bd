"""Which IP addresses a caller's URL may reach: the public ones, and what the operator opened."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from worker.settings import Network, Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA IPv4 special-purpose registry, without its few globally reachable entries, plus
# 168.63.129.16: a public address that is the host's own agent on Azure.
NOT_PUBLIC_V4: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Only 2000::/3 is global unicast. fec0::/10, fc00::/7, fe80::/10, ff00::/8 and 64:ff9b:1::/48
# (NAT64 inside a network) lie outside; these lie inside and are not sites on the internet.
GLOBAL_UNICAST_V6: Final = ipaddress.IPv6Network("2000::/3")
NOT_PUBLIC_V6: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
ISATAP: Final = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")


def embedded(address: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...] | None:
    """Return the IPv4 addresses that packets to `address` end at, or None when it holds none.

    Knows IPv4-mapped, 6to4 (RFC 3056), Teredo (RFC 4380: server and client) and NAT64's well-known
    prefix (RFC 6052).
    """
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in NAT64:
        return (ipaddress.IPv4Address(address.packed[12:]),)
    return None


def is_public(address: Address) -> bool:
    """Tell whether `address` is a site on the internet, whatever IPv4 address hides inside it."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_V4)
    if address.scope_id is not None:
        return False
    inner = embedded(address)
    if inner is not None:
        return all(is_public(one) for one in inner)
    if address not in GLOBAL_UNICAST_V6 or any(address in network for network in NOT_PUBLIC_V6):
        return False
    if address.packed[8:12] in ISATAP:
        return is_public(ipaddress.IPv4Address(address.packed[12:]))
    return True


def parse(text: str) -> Address | None:
    """Read an address in its canonical spelling; None for a name and for any other spelling."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Gate:
    """What one connection may reach: `ports` on public addresses, and the operator's `networks`."""

    ports: frozenset[int]
    networks: Sequence[Network]

    @classmethod
    def of(cls, scheme: str, settings: Settings) -> "Gate":
        """Open 443 to https, 80 to http where it is allowed, and ALLOWED_IMAGE_NETWORKS to both."""
        allowed = {"https": True, "http": settings.allow_http_images}.get(scheme, False)
        port = 443 if scheme == "https" else 80
        return cls(frozenset({port} if allowed else ()), settings.allowed_image_networks)

    def has_port(self, port: int) -> bool:
        """Tell whether any address at all may be dialled at `port`."""
        return port in self.ports or any(port == opened for _, opened in self.networks)

    def permits(self, text: str, port: int) -> bool:
        """Tell whether the address spelt `text` may be dialled at `port`."""
        address = parse(text)
        if address is None:
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        dialled = mapped or address
        if any(port == opened and dialled in network for network, opened in self.networks):
            return True
        return port in self.ports and is_public(address)
