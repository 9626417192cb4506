import socket
from collections.abc import Iterator

import pytest
import ray

from sightloom import runtime
from sightloom.errors import SightloomError, UserMistake


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as one that has not met Ray."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    yield


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_address_where_nothing_answers_is_a_mistake_told_in_words(no_ray: None, closed_port: int) -> None:
    for address in (f"127.0.0.1:{closed_port}", f"ray://127.0.0.1:{closed_port}", "127.0.0.1:99999"):
        with pytest.raises(UserMistake, match="no Ray answers at") as told:
            runtime.connect(address)
        assert address in told.value.message and "RAY_ADDRESS" in told.value.hint
    with pytest.raises(UserMistake, match="no address of a Ray"):
        runtime.connect("somewhere")


def test_a_late_start_is_tried_again_and_then_told_in_words(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    late = "The current node timed out during startup."
    outcomes = [late, "", late, late, late, "no space left"]
    starts = 0

    def init(**options: object) -> None:
        nonlocal starts
        starts += 1
        if message := outcomes.pop(0):
            raise Exception(message)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    assert runtime.connect(runtime.LOCAL) and starts == 2
    with pytest.raises(SightloomError, match="did not start on this machine: The current node") as told:
        runtime.connect(runtime.LOCAL)
    assert starts == 5 and "busy" in told.value.hint
    with pytest.raises(SightloomError, match="no space left"):
        runtime.connect(runtime.LOCAL)
    assert starts == 6


def test_a_process_that_has_a_ray_keeps_it(ray_session: None, closed_port: int) -> None:
    assert runtime.connect(f"127.0.0.1:{closed_port}") is False
