"""What the ledger says is projected onto MLflow's aliases and tags, again and again until both agree.

Aliases are last-writer-wins, so they are never asked what is true. The tag `sightloom.projected` says what was
projected last: where the aliases differ from that without an event in between, a person moved them.
"""

from dataclasses import dataclass
from typing import Final

from sightloom.promotion.canary import BASIS_POINTS
from sightloom.promotion.fold import State
from sightloom.promotion.states import ModelState
from sightloom.registry import About, Registry

ALIASES: Final = ("champion", "challenger", "previous")
_PROJECTED: Final = "sightloom.projected"
_STAGE: Final = "sightloom.stage"
_WEIGHT: Final = "sightloom.weight"

Moves = dict[str, tuple[int | None, int | None]]


@dataclass(frozen=True, slots=True)
class Observation:
    """How MLflow differs from the ledger: alias to (as found, as it should be); `by_hand`: a person did it."""

    moves: Moves
    by_hand: bool

    @property
    def words(self) -> str:
        """E.g. `champion 13 instead of 12`."""
        return ", ".join(
            f"{alias} {found or 'none'} instead of {wanted or 'none'}" for alias, (found, wanted) in self.moves.items()
        )


def drift(state: ModelState, found: dict[str, int]) -> Moves:
    """Aliases that differ: name to (as found, as it should be). Aliases of other names are the users' own."""
    wanted = state.aliases()
    return {alias: (found.get(alias), wanted.get(alias)) for alias in ALIASES if found.get(alias) != wanted.get(alias)}


def observe(its: ModelState, about: About) -> Observation:
    """Compare; a drift that an event has recorded already and that was not yet repaired is nobody's again."""
    moves = drift(its, about.aliases)
    return Observation(moves, bool(moves) and about.tags.get(_PROJECTED) == projected(its))


def projected(its: ModelState) -> str:
    """What the tag says after a projection: the aliases, and the last drift that was repaired."""
    aliases = its.aliases()
    return ",".join(f"{alias}={aliases[alias]}" for alias in ALIASES if alias in aliases) + f"#{its.drift}"


def project(state: State, registry: Registry, model: str) -> Moves:
    """Set the aliases of a model and its versions' tags to what the ledger says; returns what differed."""
    its = state.model(model)
    about = registry.about(model)
    changed = drift(its, about.aliases)
    for alias, (_, version) in changed.items():
        if version is None:
            registry.drop_alias(model, alias)
        else:
            registry.set_alias(model, alias, version)
    if about.tags.get(_PROJECTED) != projected(its) or changed:
        registry.set_model_tag(model, _PROJECTED, projected(its))
    for registered in registry.versions(model):
        stage = its.stages.get(registered.version)
        if stage is None:
            continue
        wanted = {_STAGE: stage, _WEIGHT: str(weight(its, registered.version))}
        differing = {key: value for key, value in wanted.items() if registered.tags.get(key) != value}
        registry.set_tags(registered, differing)
    return changed


def weight(its: ModelState, version: int) -> int:
    """The share of live requests that the ledger gives a version, in basis points."""
    step = its.trial.current
    share = (step.bp or 0) if its.challenger is not None and step is not None else 0
    if version == its.challenger:
        return share
    return BASIS_POINTS - share if version == its.champion else 0
