"""The Ray of this process: started on this machine or joined, once, and whatever goes wrong said in words."""

import logging
import socket
from typing import Any, Final

import ray

from sightloom.errors import SightloomError, UserMistake

LOCAL: Final = "local"
AUTO: Final = "auto"
_STARTS: Final = 3  # raylet gives its helpers 15 s, hard-coded (ray#65983): a busy machine needs a second start
_REACH_S: Final = 10.0
_CLIENT_PORT: Final = 10001


def connect(
    address: str, num_cpus: int | None = None, object_store_bytes: int | None = None, dashboard: bool = False
) -> bool:
    """Connect this process to a Ray, unless it is connected already.

    Args:
        address: `local` starts one on this machine; `auto`, `host:port` or `ray://host:port` joins a running one.
        num_cpus: of a Ray that is started here; None: the machine's.
        object_store_bytes: of a Ray that is started here; None: Ray's own share of the memory.
        dashboard: a Ray that is started here has its dashboard, on a free port of loopback.

    Returns:
        True if this call connected, so that the caller is the one to `disconnect`.

    Raises:
        UserMistake: nothing answers at the address, or what answers cannot be joined.
        SightloomError: no Ray came up on this machine.
    """
    if ray.is_initialized():
        return False
    if address == LOCAL:
        more = {"dashboard_host": "127.0.0.1"} if dashboard else {}
        memory = {"num_cpus": num_cpus, "object_store_memory": object_store_bytes}
        _start({**memory, "include_dashboard": dashboard, **more})
    else:
        _join(address)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return True


def dashboard() -> str:
    """The address of the dashboard of the Ray that this process is connected to; empty where it has none."""
    found = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="error").dashboard_url
    return f"http://{found}" if found else ""


def disconnect() -> None:
    """Leave Ray; one that was started here ends."""
    ray.shutdown()


def _start(options: dict[str, Any]) -> None:
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(address=LOCAL, log_to_driver=False, logging_level="error", **options)
            return
        except Exception as error:  # Ray raises a bare one when its node is late
            late = "timed out during startup" in str(error)
            if late and attempt < _STARTS:
                ray.shutdown()
                continue
            todo = "the machine is very busy: run the command again" if late else "see the newest logs below /tmp/ray"
            raise SightloomError(f"Ray did not start on this machine: {error}", todo) from error


def _join(address: str) -> None:
    todo = "check --ray and RAY_ADDRESS; --ray local starts a Ray on this machine"
    if address != AUTO:
        _reach(address, todo)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as error:  # ConnectionError, RuntimeError (another version) and bare ones, by the kind of address
        todo += "; a Ray with tokens asks for RAY_AUTH_MODE=token and its token in ~/.ray/auth_token"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserMistake(f"the Ray at '{address}' cannot be joined: {reason}", todo) from error


def _reach(address: str, todo: str) -> None:
    """See that something listens: Ray itself waits a minute, and then ends the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon and address.startswith("ray://"):
        host, port = port, str(_CLIENT_PORT)
    if not host or not port.isdigit():
        raise UserMistake(f"'{address}' is no address of a Ray: local, auto, host:port or ray://host:port", todo)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise UserMistake(f"no Ray answers at '{address}': {error}", todo) from error
