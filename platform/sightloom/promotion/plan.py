"""What Serve should run now, from what the ledger says and from what runs: pure (serving.md §10).

1. Apps: every version in a living stage; the previous champion until its time is up.
2. A version gains weight only when it answers; until then the last routes stay.
3. An app leaves one tick after the routes have dropped it.
4. The champion is down and the previous one is up: the routes fall back.
5. Routes of an older generation than the live ones are never written.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sightloom.promotion.config import ManagerConfig
from sightloom.promotion.document import LOGGING, app_name, clip_apps, document, router_app, version_app
from sightloom.promotion.fold import State
from sightloom.promotion.live import ROUTER, Live, normal
from sightloom.promotion.states import LIVING, ModelState
from sightloom.serving import routes as routing
from sightloom.serving.routes import BASIS_POINTS, ModelRoutes, Routes, Shadow


@dataclass(frozen=True, slots=True)
class Planned:
    """What should be live.

    Attributes:
        document: Serve's whole document.
        routes: the router's part of it.
        changed: whether it differs from what is live.
        settled: whether nothing is waited for: every champion and challenger has the weight that the ledger gives it.
        fallbacks: model to (champion that is down, version that answers for it), where the routes fall back just now.
        stale: the live routes are newer than this ledger: nothing may be written.
    """

    document: Mapping[str, Any]
    routes: Routes
    changed: bool
    settled: bool
    fallbacks: Mapping[str, tuple[int, int]]
    stale: bool = False


def plan(state: State, live: Live, config: ManagerConfig, now: str) -> Planned:
    """The document that should be live.

    Args:
        state: the folded ledger.
        live: what Serve says.
        config: how apps are deployed.
        now: ISO 8601, with time zone.
    """
    models: dict[str, ModelRoutes] = {}
    applications: dict[str, dict[str, Any]] = {}
    fallbacks: dict[str, tuple[int, int]] = {}
    settled = True
    for name, its in sorted(state.models.items()):
        wanted = _wanted(its, config.rollback_ttl_s, now)
        if not wanted:
            continue
        for version in wanted:
            app = version_app(config, name, version, its.digests[version])
            applications[app["name"]] = app
        last = live.routes.models.get(name, ModelRoutes())
        models[name] = _routes(name, its, wanted, live, last)
        settled &= _settled(name, its, models[name])
        if (fallback := _fallback(name, its, models[name], last)) is not None:
            fallbacks[name] = fallback
    routes = Routes(generation=state.generation, models=models)
    for routed in live.routes.apps | routes.apps:  # what was routed until now goes with the next tick
        if routed not in applications and routed in live.apps and live.apps[routed].config:
            applications[routed] = dict(live.apps[routed].config)
    applications |= {app["name"]: {"logging_config": LOGGING, **app} for app in config.extra_apps}
    applications |= clip_apps(config)
    applications[ROUTER] = router_app(config, routes)
    ordered = [normal(applications[name]) for name in sorted(applications)]
    stale = live.routes.generation > state.generation
    changed = not stale and ordered != live.applications
    return Planned(document(config, ordered), routes, changed, settled and not changed, fallbacks, stale)


def _wanted(its: ModelState, rollback_ttl_s: float, now: str) -> list[int]:
    """The versions that should have an app."""
    wanted = []
    for version, stage in sorted(its.stages.items()):
        if stage not in LIVING or version not in its.digests:
            continue
        if stage == "previous" and _age_s(its.since.get(version, now), now) > rollback_ttl_s:
            continue
        wanted.append(version)
    return wanted


def _routes(name: str, its: ModelState, wanted: list[int], live: Live, last: ModelRoutes) -> ModelRoutes:
    champion, challenger = its.champion, its.challenger
    lead = _lead(name, its, live, last)
    takes: tuple[routing.Live, ...] = ()
    shadow: tuple[Shadow, ...] = ()
    step = its.trial.current
    ready = challenger is not None and live.up(app_name(name, challenger))
    if lead is not None:
        share = step.bp if ready and step is not None and step.bp and lead == champion else 0
        takes = (routing.Live(version=str(lead), app=app_name(name, lead), bp=BASIS_POINTS - share),)
        if share and challenger is not None:
            other = routing.Live(version=str(challenger), app=app_name(name, challenger), bp=share)
            takes = (*takes, other)
        if ready and step is not None and step.shadow and challenger is not None:
            shadow = (Shadow(version=str(challenger), app=app_name(name, challenger), share=step.shadow),)
    pins = {str(version): app_name(name, version) for version in wanted if live.up(app_name(name, version))}
    aliases = {alias: str(version) for alias, version in its.aliases().items()}
    return ModelRoutes(live=takes, shadow=shadow, pins=pins, aliases=aliases, salt=its.trial.salt)


def _lead(name: str, its: ModelState, live: Live, last: ModelRoutes) -> int | None:
    """The version that answers by default: the champion once it is up, else the last one, else the previous."""
    if its.champion is None:
        return None
    lead = int(last.live[0].version) if last.live else None
    candidates = [its.champion, lead, its.previous]
    up = next((one for one in candidates if one is not None and live.up(app_name(name, one))), None)
    return up if up is not None else lead


def _settled(name: str, its: ModelState, routes: ModelRoutes) -> bool:
    answering = {live.version for live in routes.live} | {shadow.version for shadow in routes.shadow}
    wanted = {str(version) for version in (its.champion, its.challenger) if version is not None}
    on_trial = {str(version) for version, stage in its.stages.items() if stage == "evaluating"}
    return wanted <= answering and on_trial <= routes.pins.keys()


def _fallback(name: str, its: ModelState, routes: ModelRoutes, last: ModelRoutes) -> tuple[int, int] | None:
    """The routes leave a champion that they had, for another version."""
    if its.champion is None or not routes.live or not last.live:
        return None
    had, has = int(last.live[0].version), int(routes.live[0].version)
    return (its.champion, has) if had == its.champion != has else None


def _age_s(since: str, now: str) -> float:
    then, at = (datetime.datetime.fromisoformat(text) for text in (since, now))
    return (at - then).total_seconds()
