"""Where an endpoint may and can listen, and when it answers there."""

import errno
import ipaddress
import json
import socket
import time
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from sightloom.errors import SightloomError, UserMistake
from sightloom.serving.config import EndpointConfig


def address_of(host: str, port: int) -> str:
    """The base URL of what listens there."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def check_port(host: str, port: int) -> None:
    """See that a port can be listened on.

    Raises:
        UserMistake: it is in use, or may not be opened.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
            raise UserMistake(f"port {port} on {host} {why}", "choose another one with --port") from error


def check_host(host: str, endpoint: EndpointConfig) -> None:
    """See that an endpoint without keys listens on loopback only.

    Raises:
        UserMistake: it would be open to others.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and endpoint.keys is None:
        raise UserMistake(f"listening on {host} without keys would let anybody in", "give a key file with --keys")


def wait_until_ready(address: str, timeout_s: float) -> None:
    """Wait until `/readyz` says yes.

    Raises:
        SightloomError: it did not in time.
    """
    opener = build_opener(ProxyHandler({}))
    until = time.monotonic() + timeout_s
    last = "no answer"
    while time.monotonic() < until:
        try:
            with opener.open(f"{address}/readyz", timeout=10) as response:
                if json.load(response)["ready"]:
                    return
        except (URLError, OSError, ValueError) as error:
            last = str(error)
        time.sleep(0.1)
    raise SightloomError(f"{address} was not ready after {timeout_s:g} s: {last}")
