"""What is seen of the ledger: its head, what differs from it, and the events that it took or refused."""

from sightloom.promotion.tick import Tick
from sightloom.serving.meters import Meters


class LedgerGauges:
    """Says it after every tick. Events that were there before the first tick are not counted."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._counted: int | None = None

    def tell(self, tick: Tick) -> None:
        """What a tick has found."""
        lines = tick.state.lines
        for line in lines[len(lines) if self._counted is None else self._counted :]:
            if line.event is not None:
                self._meters.add("ledger_events_total", 1, kind=line.event.kind, outcome=line.outcome)
        self._counted = len(lines)
        self._meters.set("ledger_head", tick.state.generation)
        self._meters.set("ledger_drift", tick.drift)
