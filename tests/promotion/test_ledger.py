import threading
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from sightloom.errors import SightloomError
from sightloom.promotion.events import LedgerBroken
from sightloom.promotion.ledger import LEDGER, Ledger, LostRace
from sightloom.tracking import normalized_uri


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of its own: these tests break ledgers."""
    return normalized_uri(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/mlflow.db")


def test_of_sixteen_writers_at_once_exactly_one_is_accepted(uri: str) -> None:
    ledgers = [Ledger(uri) for _ in range(16)]
    state = ledgers[0].read()
    outcomes: list[str] = []
    barrier = threading.Barrier(16)

    def write(number: int) -> None:
        barrier.wait()
        try:
            ledgers[number].append(state, "evaluate", "m", number + 1, f"w{number}", "race")
            outcomes.append("won")
        except LostRace as error:
            outcomes.append("lost")
            assert "lost to event" in error.message
            assert error.exit_code == 4

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 15 + ["won"]
    after = ledgers[0].read()
    assert [line.outcome for line in after.lines].count("accepted") == 1
    assert len(after.model("m").stages) == 1


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
