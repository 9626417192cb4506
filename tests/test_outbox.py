"""Letters arrive in order, once, whatever the service does meanwhile."""

import threading
import time

import pytest

from sightloom.outbox import Letter, Outbox


class Service:
    def __init__(self) -> None:
        self.got: list[int] = []
        self.up = True

    def take(self, number: int) -> None:
        if not self.up:
            raise ConnectionError("away")
        if number < 0:
            raise ValueError("no")
        self.got.append(number)


def make(most: int = 100) -> tuple[Service, Outbox]:
    return Service(), Outbox("the service", lambda error: isinstance(error, ConnectionError), most)


def test_what_is_sent_while_the_service_is_up_has_arrived_when_send_returns() -> None:
    service, box = make()
    for number in range(5):
        box.send(lambda n=number: service.take(n), "a number")  # type: ignore[misc]
        assert service.got[-1] == number
    assert box.lost == box.failures == 0


def test_an_outage_keeps_nobody_waiting_and_the_order_holds() -> None:
    service, box = make()
    service.up = False
    began = time.monotonic()
    for number in range(20):
        box.send(lambda n=number: service.take(n), "a number")  # type: ignore[misc]
    assert time.monotonic() - began < 4 and service.got == []
    service.up = True
    assert box.drain(30) == 0
    assert service.got == list(range(20)) and box.failures > 0


def test_what_is_refused_is_counted_and_does_not_hold_up_the_rest() -> None:
    service, box = make()
    for number in (1, -1, 2):
        box.send(lambda n=number: service.take(n), "a number", size=3)  # type: ignore[misc]
    assert service.got == [1, 2] and box.lost == 3


def test_of_too_many_the_oldest_go_and_are_counted() -> None:
    service, box = make(most=4)
    service.up = False
    for number in range(10):
        box.put(Letter(lambda n=number: service.take(n), "a number"))  # type: ignore[misc]
    service.up = True
    assert box.drain(30) == 0
    assert service.got == [0, 7, 8, 9] and box.lost == 6


def test_a_question_waits_for_the_service_and_for_what_was_sent_before() -> None:
    service, box = make()
    service.up = False
    box.put(Letter(lambda: service.take(1), "a number"))
    threading.Timer(0.5, lambda: setattr(service, "up", True)).start()
    assert box.ask(lambda: list(service.got), 30) == [1]
    with pytest.raises(ValueError, match="no"):
        box.ask(lambda: service.take(-1), 30)
    service.up = False
    with pytest.raises(ConnectionError):
        box.ask(lambda: service.take(2), 0.1)
