import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from mlflow.tracking import MlflowClient

from sightloom.errors import SightloomError, UserMistake
from sightloom.promotion.events import LedgerBroken
from sightloom.promotion.ledger import LEDGER, Ledger, LostRace
from sightloom.store_address import normalized_uri


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of its own: these tests break ledgers."""
    return normalized_uri(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/mlflow.db")


@pytest.mark.parametrize("store", ["uri", pytest.param("server_uri", marks=pytest.mark.long)])
def test_of_sixteen_promoters_at_once_exactly_one_wins(store: str, request: pytest.FixtureRequest) -> None:
    uri = request.getfixturevalue(store)
    ledgers = [Ledger(uri) for _ in range(16)]
    state = ledgers[0].read()
    outcomes: list[str] = []
    barrier = threading.Barrier(16)

    def write(number: int) -> None:
        barrier.wait()
        try:
            mine = ledgers[number].append(state, "evaluate", "m", 1, f"w{number}", "race")
            mine = ledgers[number].append(mine, "verdict", "m", 1, f"w{number}", "race", {"outcome": "passed"})
            ledgers[number].append(mine, "promote", "m", 1, f"w{number}", "race")
            outcomes.append("won")
        except LostRace as error:
            outcomes.append("lost")
            assert re.fullmatch(
                r"lost to event \d+ \((evaluate|verdict|promote) \d+ by w\d+, \d+ s earlier\); nothing was changed",
                error.message,
            ), error.message
            assert error.exit_code == 4

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 15 + ["won"]
    after = ledgers[0].read()
    assert [line.outcome for line in after.lines].count("accepted") == 3
    assert list(after.model("m").stages.values()) == ["champion"]


def test_versions_are_evaluated_side_by_side_and_one_becomes_champion(uri: str) -> None:
    ledgers = [Ledger(uri) for _ in range(4)]
    state = ledgers[0].read()
    outcomes: list[str] = []
    passed = threading.Barrier(4)

    def write(number: int) -> None:
        mine = ledgers[number].append(state, "evaluate", "side", number + 1, f"w{number}", "race")
        mine = ledgers[number].append(mine, "verdict", "side", number + 1, f"w{number}", "race", {"outcome": "passed"})
        passed.wait()
        try:
            ledgers[number].append(mine, "promote", "side", number + 1, f"w{number}", "race")
            outcomes.append("won")
        except LostRace as error:
            outcomes.append("lost")
            assert re.match(r"lost to event \d+ \(promote \d+ by w\d+", error.message), error.message

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 3 + ["won"]
    assert sorted(ledgers[0].read().model("side").stages.values()) == ["champion", "passed", "passed", "passed"]


def test_of_two_writers_the_later_event_is_witnessed_whoever_ends_first(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Ledger(uri), Ledger(uri)
    held = first.set_tag

    def late(name: str, value: str, attempts: int = 10) -> None:
        monkeypatch.setattr(first, "set_tag", held)
        second.append(second.read(), "evaluate", "witnessed", 2, "bob", "why")
        held(name, value, attempts)

    monkeypatch.setattr(first, "set_tag", late)
    first.append(first.read(), "evaluate", "witnessed", 1, "ann", "why")
    state = first.read()
    assert first.head() == state.head
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    text = client.get_model_version(LEDGER, str(state.generation)).tags["sightloom.event"]
    client.delete_model_version_tag(LEDGER, str(state.generation), "sightloom.event")
    with pytest.raises(LedgerBroken, match="edited or cut"):
        first.read()
    client.set_model_version_tag(LEDGER, str(state.generation), "sightloom.event", text)
    assert first.read().head == state.head


def test_events_of_another_model_do_not_make_a_writer_lose(uri: str) -> None:
    ledger = Ledger(uri)
    state = ledger.read()
    ledger.append(state, "evaluate", "elsewhere", 1, "ann", "why")
    ledger.append(ledger.read(), "drift", "here", 1, "ann", "why")
    after = ledger.append(state, "evaluate", "here", 1, "bob", "why")
    assert after.model("here").stages == {1: "evaluating"}
    with pytest.raises(LostRace, match=r"lost to event \d+ \(evaluate 1 by bob"):
        ledger.append(state, "evaluate", "here", 1, "cid", "why")


def test_events_follow_each_other_and_what_is_not_legal_is_not_even_written(uri: str) -> None:
    ledger = Ledger(uri, clock=lambda: "2026-01-01T00:00:00+00:00")
    state = ledger.append(ledger.read(), "evaluate", "chain", 1, "ann", "why", evidence={"run_id": "r"})
    state = ledger.append(state, "verdict", "chain", 1, "ann", "why", {"outcome": "passed"})
    state = ledger.append(state, "promote", "chain", 1, "ann", "why")
    assert state.model("chain").champion == 1
    lines = len(state.lines)
    with pytest.raises(SightloomError, match="not possible now"):
        ledger.append(state, "rollback", "chain", 1, "ann", "why")
    with pytest.raises(SightloomError, match="too large"):
        ledger.append(state, "drift", "chain", 1, "ann", "x" * 20_000)
    assert len(Ledger(uri).read().lines) == lines
    event = state.lines[-1].event
    assert event is not None
    assert (event.at, event.actor) == ("2026-01-01T00:00:00+00:00", "ann")


def test_an_event_edited_in_mlflow_is_found(tmp_path: Path, uri: str) -> None:
    ledger = Ledger(uri)
    state = ledger.append(ledger.read(), "evaluate", "edited", 1, "ann", "why")
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_model_version(LEDGER, "elsewhere://x")
    assert ledger.read().lines[-1].outcome == "foreign"
    number = next(line.number for line in reversed(state.lines) if line.outcome == "accepted")
    text = client.get_model_version(LEDGER, str(number)).tags["sightloom.event"]
    client.set_model_version_tag(LEDGER, str(number), "sightloom.event", text.replace("ann", "eve"))
    with pytest.raises(LedgerBroken, match="edited or cut"):
        ledger.read()
    client.set_model_version_tag(LEDGER, str(number), "sightloom.event", text)
    assert ledger.read().head == state.head
    client.delete_model_version(LEDGER, str(number))
    with pytest.raises(LedgerBroken, match="is missing"):
        ledger.read()
    with pytest.raises(UserMistake, match="is whole"):
        Ledger(f"sqlite:///{tmp_path}/other.db").reanchor("ann", "why")
    after = ledger.reanchor("ann", "looked at it")
    assert after.model("edited").stages == {1: "evaluating"} or number not in {line.number for line in after.lines}
    assert ledger.read().head == after.head
    again = ledger.append(ledger.read(), "evaluate", "edited", 2, "ann", "why")
    assert again.model("edited").stages[2] == "evaluating"


@pytest.fixture
def server_uri(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server with four workers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "4"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/kept"]
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # four workers on a busy machine take their time to say goodbye
        process.wait(20)
