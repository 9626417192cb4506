"""Which network addresses may be reached: one guard for the data fetcher and the endpoint (serving.md §5).

The check sits where a socket is made, after name resolution: literals, redirects and names that change their answer
between two look-ups all meet it. `aiohttp.TCPConnector(socket_factory=guarded_socket_factory())` is the whole use.
"""

import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# As `socket.getaddrinfo` yields it and aiohttp hands it on: family, type, protocol, canonical name, socket address.
AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]

# Ranges that Python 3.11's `is_global` lets pass although they translate to, or tunnel, other addresses.
_TRANSLATING = {
    ipaddress.ip_network("64:ff9b::/96"): "an IPv4 address behind NAT64",
    ipaddress.ip_network("64:ff9b:1::/48"): "an IPv4 address behind a local NAT64",
    ipaddress.ip_network("2002::/16"): "an IPv4 address inside 6to4",
    ipaddress.ip_network("2001::/32"): "an IPv4 address inside Teredo",
    ipaddress.ip_network("::/96"): "an IPv4-compatible address",
    ipaddress.ip_network("192.0.0.0/24"): "reserved for protocols",
}
_METADATA = frozenset({ipaddress.ip_address("169.254.169.254"), ipaddress.ip_address("fd00:ec2::254")})


class BlockedAddress(OSError):
    """A connection was about to be made to an address that policy forbids.

    aiohttp wraps it into `ClientConnectorError`; `blocked_by(error)` finds it again. Its text names no address, so that
    an answer to an outside caller tells nothing about the inside of the network; `reason` and `address` are for logs.
    """

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(errno.EACCES, "this address may not be reached")
        self.address = address
        self.reason = reason


def blocked_reason(ip: str | Address, allow_networks: Sequence[str | Network] = ()) -> str | None:
    """Say why an address may not be reached, or None when it may.

    Only global unicast passes: no private, loopback, link-local, multicast, reserved or translated address. An IPv4
    address mapped into IPv6 is judged as the IPv4 address that it is. `allow_networks` (CIDR) opens ranges that the
    operator owns, e.g. `10.1.0.0/16` for an image server on the inside; a cloud's metadata address stays closed
    unless it is named by itself.

    Raises:
        ValueError: `ip` is no address, or `allow_networks` holds no network.
    """
    address = ipaddress.ip_address(ip.split("%", 1)[0] if isinstance(ip, str) else ip)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    for network in map(ipaddress.ip_network, allow_networks):
        named = address not in _METADATA or network.num_addresses == 1
        if address.version == network.version and address in network and named:
            return None
    for network, reason in _TRANSLATING.items():
        if address.version == network.version and address in network:
            return "loopback" if address.is_loopback else "unspecified" if address.is_unspecified else reason
    for reason, holds in (
        ("unspecified", address.is_unspecified),
        ("loopback", address.is_loopback),
        ("link-local", address.is_link_local),
        ("multicast", address.is_multicast),
        ("private", address.is_private),
        ("reserved", address.is_reserved or not address.is_global),
        ("site-local", isinstance(address, ipaddress.IPv6Address) and address.is_site_local),
    ):
        if holds:
            return reason
    return None


def guarded_socket_factory(allow_networks: Sequence[str | Network] = ()) -> Callable[[AddressInfo], socket.socket]:
    """Make a socket factory for `aiohttp.TCPConnector` that refuses forbidden addresses with BlockedAddress.

    Raises:
        ValueError: `allow_networks` holds no network.
    """
    networks = tuple(map(ipaddress.ip_network, allow_networks))

    def make_socket(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, (host, *_) = info
        reason = blocked_reason(str(host), networks)
        if reason is not None:
            raise BlockedAddress(str(host), reason)
        return socket.socket(family, kind, protocol)

    return make_socket


def blocked_by(error: BaseException) -> bool:
    """Whether a connection failed because policy forbids the address.

    Looks through the causes, such as below aiohttp's `ClientConnectorError`. False where a name also had permitted
    addresses and those failed for another reason.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, BlockedAddress):
            return True
        current = current.__cause__ or current.__context__ or getattr(current, "os_error", None)
    return False
