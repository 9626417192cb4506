"""One tick of the release manager: read the ledger and Serve, move what differs, judge (serving.md §10).

Nothing is remembered between ticks: whatever a kill leaves half done, the next tick finds and ends.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from sightloom.promotion.config import ManagerConfig
from sightloom.promotion.document import app_name
from sightloom.promotion.fold import State, accepted
from sightloom.promotion.judge import Judgement, figures, judge
from sightloom.promotion.ledger import Ledger, LostRace
from sightloom.promotion.live import Live
from sightloom.promotion.plan import Planned, plan
from sightloom.promotion.reconcile import observe, project
from sightloom.promotion.serve_api import Serve
from sightloom.promotion.states import ModelState
from sightloom.promotion.windows import Windows
from sightloom.registry import Registry
from sightloom.serving.observe import Row
from sightloom.serving.routes import ModelRoutes

ACTOR: Final = "release-manager"
_REASON_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Tick:
    """What a tick found and did.

    Attributes:
        generation: of the routes that it left.
        settled: whether all that the ledger asks for is live.
        events: what it wrote into the ledger, in words.
        moving: whether the next tick should come soon.
        models: what is to be seen of each canary, for displays.
        state: the ledger as the tick leaves it.
        drift: aliases that a person had moved, and models whose champion another version answers for.
    """

    generation: int
    settled: bool
    events: tuple[str, ...]
    moving: bool
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    state: State = field(default_factory=State)
    drift: int = 0

    def to_json(self) -> dict[str, Any]:
        """As the manager's status carries it."""
        return {
            "generation": self.generation,
            "settled": self.settled,
            "events": list(self.events),
            "models": self.models,
        }


class Reconciler:
    """Ticks.

    Args:
        ledger: what shall be.
        registry: where aliases and tags are projected to.
        serve: what runs.
        config: how apps are deployed.
        windows: what routers have seen.
        clock: now, ISO 8601 in UTC.
    """

    def __init__(
        self,
        ledger: Ledger,
        registry: Registry,
        serve: Serve,
        config: ManagerConfig,
        windows: Windows,
        clock: Callable[[], str],
    ) -> None:
        self._ledger, self._registry, self._serve = ledger, registry, serve
        self._config, self._windows, self._clock = config, windows, clock

    def tick(self) -> Tick:
        """One tick.

        Raises:
            LedgerBroken: nothing was changed.
            SightloomError: MLflow or Serve does not answer; what was done stays done.
        """
        written: list[str] = []
        state = self._ledger.read()
        live = self._serve.read()
        state, planned = self._planned(state, live, written)
        if planned.changed:
            self._serve.put(planned.document)
        drift = sum(_answered_by_another(state, name, routes) for name, routes in planned.routes.models.items())
        for name in state.models:
            state, moved = self._project(state, name, written)
            drift += moved
        models: dict[str, dict[str, Any]] = {}
        for name in state.models:
            its = state.model(name)
            if planned.stale or (its.challenger is None and "evaluating" not in its.stages.values()):
                continue
            seen = self._seen(name, its)
            models[name] = _progress(its, *seen)
            state = self._judge(state, name, live, seen, written)
        moving = bool(written) or bool(models) or not planned.settled
        return Tick(planned.routes.generation, planned.settled, tuple(written), moving, models, state, drift)

    def _planned(self, state: State, live: Live, written: list[str]) -> tuple[State, Planned]:
        """The plan, after a fall back to another version and the return from it have been put on record."""
        planned = plan(state, live, self._config, self._clock())
        for name, (down, instead) in planned.fallbacks.items():
            words = f"champion {down} does not answer; {instead} answers for it"
            state = self._note(state, name, down, words, {"fallback": instead}, written)
        for name, routes in planned.routes.models.items():
            champion = state.model(name).champion
            if champion is not None and routes.live and not _answered_by_another(state, name, routes):
                last = _last_drift(state, name)
                if last.get("fallback") is not None:
                    words = f"champion {champion} answers again"
                    state = self._note(state, name, champion, words, {"recovered": champion}, written)
        return state, plan(state, live, self._config, self._clock()) if written else planned

    def _note(
        self, state: State, name: str, version: int, words: str, args: dict[str, Any], written: list[str]
    ) -> State:
        """Record a drift, unless it is the last one on record."""
        if _last_drift(state, name) == args:
            return state
        after = self._ledger.append(state, "drift", name, version, ACTOR, words, args)
        written.append(f"drift {words}")
        return after

    def _project(self, state: State, name: str, written: list[str]) -> tuple[State, int]:
        """Repair aliases; a person's move goes on record. Returns how many a person had moved, too."""
        observed = observe(state.model(name), self._registry.about(name))
        if observed.by_hand:
            args = {"aliases": {alias: list(pair) for alias, pair in observed.moves.items()}}
            version = state.model(name).champion or 0
            state = self._ledger.append(state, "drift", name, version, ACTOR, f"aliases: {observed.words}", args)
            written.append(f"drift {observed.words}")
        project(state, self._registry, name)
        return state, len(observed.moves) if observed.by_hand else 0

    def _seen(self, name: str, its: ModelState) -> tuple[Row, Row]:
        """What was seen of challenger and champion since the step began."""
        trial = its.trial
        shadowed = trial.current is not None and trial.current.shadow is not None
        challenger = self._windows.of(name, its.challenger or 0, trial.number, shadowed)
        return challenger, self._windows.of(name, its.champion or 0, trial.number, False)

    def _judge(self, state: State, name: str, live: Live, seen: tuple[Row, Row], written: list[str]) -> State:
        its = state.model(name)
        judgements = [judge(its, *seen, _failure(live, name, its.challenger), self._clock())]
        for version in sorted(its.stages):
            if its.stages[version] == "evaluating" and (why := _failure(live, name, version)):
                judgements.append(Judgement("abort", version, f"its app does not come up: {why}"))
        for found in judgements:
            if found is None:
                continue
            digest = its.digests.get(found.version, "")
            proof = {**found.evidence, "digest": digest}
            try:
                state = self._ledger.append(state, found.kind, name, found.version, ACTOR, found.reason, evidence=proof)
            except LostRace:
                continue  # a person was faster: the next tick sees what they did
            written.append(f"{found.kind} {name}:{found.version}: {found.reason}")
        return state


def _failure(live: Live, name: str, version: int | None) -> str:
    """Why a version's app will not come up by waiting, empty if it may. A traceback's cause stands at its end."""
    app = live.apps.get(app_name(name, version)) if version is not None else None
    return (app.message or app.status)[-_REASON_CHARS:] if app is not None and app.failed else ""


def _answered_by_another(state: State, name: str, routes: ModelRoutes) -> bool:
    champion = state.model(name).champion
    return champion is not None and bool(routes.live) and routes.live[0].version != str(champion)


def _last_drift(state: State, name: str) -> dict[str, Any]:
    for line in reversed(accepted(state.lines)):
        if line.event is not None and line.event.model == name and line.event.kind == "drift":
            args = dict(line.event.args)
            if "aliases" not in args:
                return args
    return {}


def _progress(its: ModelState, challenger: Row, champion: Row) -> dict[str, Any]:
    trial = its.trial
    step = None if trial.done else trial.plan[trial.step]
    return {
        "champion": its.champion,
        "challenger": its.challenger,
        "step": trial.step,
        "steps": len(trial.plan),
        "share": "done" if step is None else step.words,
        "needs": 0 if step is None else step.min_requests,
        "seen": {"challenger": figures(challenger), "champion": figures(champion)},
    }
