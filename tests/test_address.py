"""The address guard: what may be reached, and that the check meets names, literals and redirects."""

import asyncio
import ipaddress

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from sightloom.address import BlockedAddress, blocked_by, blocked_reason, guarded_socket_factory

FORBIDDEN = {
    "127.0.0.1": "loopback",
    "127.8.9.1": "loopback",
    "0.0.0.0": "unspecified",
    "0.1.2.3": "private",
    "10.0.0.1": "private",
    "172.16.3.4": "private",
    "192.168.1.1": "private",
    "100.64.0.1": "reserved",
    "169.254.169.254": "link-local",
    "224.0.0.1": "multicast",
    "240.0.0.1": "private",
    "255.255.255.255": "private",
    "192.0.0.192": "reserved for protocols",
    "198.18.0.1": "private",
    "::": "unspecified",
    "::1": "loopback",
    "::127.0.0.1": "an IPv4-compatible address",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:169.254.169.254": "link-local",
    "64:ff9b::a9fe:a9fe": "an IPv4 address behind NAT64",
    "64:ff9b:1::1": "an IPv4 address behind a local NAT64",
    "2002:7f00:1::": "an IPv4 address inside 6to4",
    "2001::1": "an IPv4 address inside Teredo",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "fc00::1": "private",
    "fd00:ec2::254": "private",
    "fec0::1": "site-local",
    "ff02::1": "multicast",
}


@pytest.mark.parametrize(("ip", "reason"), FORBIDDEN.items())
def test_what_is_not_global_unicast_is_refused_with_its_reason(ip: str, reason: str) -> None:
    assert blocked_reason(ip) == reason


@pytest.mark.parametrize("ip", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_global_unicast_passes(ip: str) -> None:
    assert blocked_reason(ip) is None


@given(st.ip_addresses(v=4))
def test_an_address_mapped_into_ipv6_is_judged_like_itself(ip: ipaddress.IPv4Address) -> None:
    assert blocked_reason(f"::ffff:{ip}") == blocked_reason(ip)


@given(st.ip_addresses())
def test_nothing_passes_that_python_does_not_call_global(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if blocked_reason(ip) is None:
        assert ip.is_global or (isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None)


def test_an_operator_opens_a_network_but_never_the_metadata_address_by_a_wide_one() -> None:
    assert blocked_reason("10.1.2.3", ["10.1.0.0/16"]) is None
    assert blocked_reason("10.2.2.3", ["10.1.0.0/16"]) == "private"
    assert blocked_reason("169.254.169.254", ["0.0.0.0/0"]) == "link-local"
    assert blocked_reason("169.254.169.254", ["169.254.169.254/32"]) is None


def test_what_is_no_address_or_no_network_is_an_error() -> None:
    with pytest.raises(ValueError):
        blocked_reason("example.org")
    with pytest.raises(ValueError):
        guarded_socket_factory(["10.1.0.5/16"])


def test_the_factory_refuses_before_a_socket_exists() -> None:
    with pytest.raises(BlockedAddress) as caught:
        guarded_socket_factory()((2, 1, 6, "", ("127.0.0.1", 80)))
    assert caught.value.reason == "loopback"
    assert "127.0.0.1" not in str(caught.value)


def test_no_connection_reaches_a_forbidden_listener_by_name_literal_or_decimal() -> None:
    arrived: list[str] = []

    async def scenario() -> None:
        async def handle(request: web.Request) -> web.Response:
            arrived.append(request.path)
            return web.Response(text="secret")

        app = web.Application()
        app.router.add_get("/{name}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            connector = aiohttp.TCPConnector(socket_factory=guarded_socket_factory())
            async with aiohttp.ClientSession(connector=connector) as session:
                for host in ("localhost", "127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0"):
                    with pytest.raises(aiohttp.ClientError) as caught:
                        await session.get(f"http://{host}:{port}/blocked")
                    assert host == "2130706433" or blocked_by(caught.value)
            opened = aiohttp.TCPConnector(socket_factory=guarded_socket_factory(["127.0.0.0/8"]))
            async with aiohttp.ClientSession(connector=opened) as session:
                assert (await session.get(f"http://127.0.0.1:{port}/opened")).status == 200
        finally:
            await runner.cleanup()

    asyncio.run(scenario())
    assert arrived == ["/opened"]


def test_another_failure_is_not_taken_for_the_guard() -> None:
    assert not blocked_by(ConnectionRefusedError())
