"""What the ledger says is projected onto MLflow's aliases and tags, again and again until both agree."""

from sightloom.promotion.states import ModelState, State
from sightloom.registry import Registry

ALIASES = ("champion", "challenger", "previous")


def drift(state: ModelState, found: dict[str, int]) -> dict[str, tuple[int | None, int | None]]:
    """Aliases that differ: name to (as found, as it should be). Aliases of other names are the users' own."""
    wanted = state.aliases()
    return {alias: (found.get(alias), wanted.get(alias)) for alias in ALIASES if found.get(alias) != wanted.get(alias)}


def project(state: State, registry: Registry, model: str) -> dict[str, tuple[int | None, int | None]]:
    """Set the aliases of a model and its versions' stage tags to what the ledger says; returns what differed."""
    its = state.model(model)
    changed = drift(its, registry.aliases(model))
    for alias, (_, version) in changed.items():
        if version is None:
            registry.drop_alias(model, alias)
        else:
            registry.set_alias(model, alias, version)
    for registered in registry.versions(model):
        stage = its.stages.get(registered.version)
        if stage is not None and registered.tags.get("sightloom.stage") != stage:
            registry.set_tags(registered, {"sightloom.stage": stage})
    return changed
