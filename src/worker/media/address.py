"""Which IP addresses a caller's URL may reach: the public ones, and what the operator opened."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from worker.setting_values import Network
from worker.settings import Settings

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA IPv4 special-purpose registry, without its few globally reachable entries, plus
# 168.63.129.16: a public address that on Azure is the host's own agent.
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
# (NAT64 inside a network) lie outside it; these lie inside it but are not on the public internet.
GLOBAL_UNICAST_V6: Final = ipaddress.IPv6Network("2000::/3")
NOT_PUBLIC_V6: Final = tuple(
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
ISATAP: Final = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")


def find_embedded(address: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, ...] | None:
    """Return the IPv4 addresses at which packets to `address` end up, or None if it embeds none.

    Recognises IPv4-mapped, 6to4 (RFC 3056), Teredo (RFC 4380: server and client) and NAT64's
    well-known prefix (RFC 6052).
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


def is_public(address: IpAddress) -> bool:
    """Return whether `address`, with any IPv4 address embedded in it, is on the public internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_V4)
    if address.scope_id is not None:
        return False
    embedded = find_embedded(address)
    if embedded is not None:
        return all(map(is_public, embedded))
    if address not in GLOBAL_UNICAST_V6 or any(address in network for network in NOT_PUBLIC_V6):
        return False
    if address.packed[8:12] in ISATAP:
        return is_public(ipaddress.IPv4Address(address.packed[12:]))
    return True


def parse_address(text: str) -> IpAddress | None:
    """Parse an address in its canonical spelling; None for a name or any other spelling."""
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
    def from_settings(cls, scheme: str, settings: Settings) -> "Gate":
        """Open port 443 for https, 80 for http if allowed, and ALLOWED_IMAGE_NETWORKS for both."""
        allowed = {"https": True, "http": settings.allow_http_images}.get(scheme, False)
        port = 443 if scheme == "https" else 80
        return cls(frozenset({port} if allowed else ()), settings.allowed_image_networks)

    def has_port(self, port: int) -> bool:
        """Return whether any address at all may be dialled at `port`."""
        return port in self.ports or any(port == open_port for _, open_port in self.networks)

    def can_reach(self, text: str, port: int) -> bool:
        """Return whether the address spelt `text` may be dialled at `port`."""
        address = parse_address(text)
        if address is None:
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        dialled = mapped or address
        if any(port == open_port and dialled in network for network, open_port in self.networks):
            return True
        return port in self.ports and is_public(address)
