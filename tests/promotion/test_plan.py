from dataclasses import replace

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from sightloom.promotion.canary import CanaryStep
from sightloom.promotion.config import ManagerConfig
from sightloom.promotion.document import rayservice_patch
from sightloom.promotion.fold import State
from sightloom.promotion.plan import Planned, plan
from sightloom.promotion.states import ModelState, Trial
from sightloom.serving import builders
from sightloom.serving.clip import ClipSettings

from .serving_double import ServeDouble

CONFIG = ManagerConfig(store="sqlite:////x/mlflow.db")
NOW = "2026-01-01T12:00:00+00:00"
SINCE = dict.fromkeys(range(1, 6), "2026-01-01T00:00:00+00:00")
DIGESTS = {version: f"{version}" * 64 for version in range(1, 6)}


def state(generation: int, stages: dict[int, str], trial: Trial | None = None) -> State:
    its = ModelState(stages, DIGESTS, SINCE, trial or Trial())
    return State(generation=generation, models={"m": its})


def on_trial(step: CanaryStep) -> State:
    return state(9, {1: "champion", 2: "challenger"}, Trial((step,), salt="s", number=9))


def settle(serve: ServeDouble, wanted: State, ticks: int = 4) -> Planned:
    """Plan and PUT until nothing changes."""
    for _ in range(ticks):
        planned = plan(wanted, serve.read(), CONFIG, NOW)
        if not planned.changed:
            return planned
        serve.put(planned.document)
    raise AssertionError("it does not settle")


def shares(planned: Planned) -> list[tuple[str, int]]:
    return [(live.version, live.bp) for live in planned.routes.models["m"].live]


def apps(planned: Planned) -> list[str]:
    return [app["name"] for app in planned.document["applications"]]


@pytest.fixture
def serve() -> ServeDouble:
    return ServeDouble()


def test_an_empty_ledger_is_a_router_alone_and_serve_takes_the_document(serve: ServeDouble) -> None:
    planned = settle(serve, State())
    assert apps(planned) == ["router"]
    assert planned.settled
    planned = settle(serve, on_trial(CanaryStep(bp=1000)))
    schema = ServeDeploySchema.model_validate(planned.document)
    assert [app.name for app in schema.applications] == ["m-v1", "m-v2", "router"]
    patch = rayservice_patch(planned.document)
    assert ServeDeploySchema.model_validate(yaml.safe_load(patch["spec"]["serveConfigV2"])) == schema


def test_a_challenger_gains_weight_only_once_it_answers(serve: ServeDouble) -> None:
    settle(serve, state(3, {1: "champion"}))
    serve.down["m-v2"] = "DEPLOYING"
    planned = settle(serve, on_trial(CanaryStep(bp=1000)))
    assert shares(planned) == [("1", 10_000)]
    assert not planned.settled
    assert "m-v2" in apps(planned)
    del serve.down["m-v2"]
    planned = settle(serve, on_trial(CanaryStep(bp=1000)))
    assert shares(planned) == [("1", 9000), ("2", 1000)]
    assert planned.settled
    assert planned.routes.models["m"].salt == "s"


def test_a_shadow_takes_no_live_request(serve: ServeDouble) -> None:
    settle(serve, state(3, {1: "champion"}))
    planned = settle(serve, on_trial(CanaryStep(shadow=0.2)))
    assert shares(planned) == [("1", 10_000)]
    assert [(one.version, one.share) for one in planned.routes.models["m"].shadow] == [("2", 0.2)]


def test_a_new_champion_that_is_not_up_waits_behind_the_old_one(serve: ServeDouble) -> None:
    settle(serve, state(3, {1: "champion"}))
    serve.down["m-v2"] = "DEPLOYING"
    planned = settle(serve, state(6, {1: "previous", 2: "champion"}))
    assert shares(planned) == [("1", 10_000)]
    assert planned.fallbacks == {}
    del serve.down["m-v2"]
    assert shares(settle(serve, state(6, {1: "previous", 2: "champion"}))) == [("2", 10_000)]


def test_an_app_leaves_one_tick_after_the_routes_have_dropped_it(serve: ServeDouble) -> None:
    settle(serve, state(6, {1: "previous", 2: "champion"}))
    gone = state(7, {1: "retired", 2: "champion"})
    first = plan(gone, serve.read(), CONFIG, NOW)
    assert "1" not in first.routes.models["m"].pins
    assert "m-v1" in apps(first)
    serve.put(first.document)
    assert apps(plan(gone, serve.read(), CONFIG, NOW)) == ["m-v2", "router"]


def test_the_previous_champion_stays_warm_until_its_time_is_up(serve: ServeDouble) -> None:
    two = state(6, {1: "previous", 2: "champion"})
    assert "m-v1" in apps(settle(serve, two))
    late = plan(two, serve.read(), CONFIG, "2026-01-02T00:00:01+00:00")
    serve.put(late.document)
    assert "m-v1" not in apps(plan(two, serve.read(), CONFIG, "2026-01-02T00:00:01+00:00"))


def test_a_champion_that_is_down_is_answered_for_by_the_previous_one_and_comes_back(serve: ServeDouble) -> None:
    two = state(6, {1: "previous", 2: "champion"})
    settle(serve, two)
    serve.down["m-v2"] = "UNHEALTHY"
    planned = plan(two, serve.read(), CONFIG, NOW)
    assert shares(planned) == [("1", 10_000)]
    assert planned.fallbacks == {"m": (2, 1)}
    serve.put(planned.document)
    assert plan(two, serve.read(), CONFIG, NOW).fallbacks == {}, "it is told once"
    del serve.down["m-v2"]
    assert shares(settle(serve, two)) == [("2", 10_000)]


def test_with_all_down_the_last_routes_stay(serve: ServeDouble) -> None:
    two = state(6, {1: "previous", 2: "champion"})
    settle(serve, two)
    serve.down |= {"m-v1": "UNHEALTHY", "m-v2": "UNHEALTHY"}
    assert shares(plan(two, serve.read(), CONFIG, NOW)) == [("2", 10_000)]


def test_routes_older_than_the_live_ones_are_never_written(serve: ServeDouble) -> None:
    settle(serve, state(6, {1: "previous", 2: "champion"}))
    planned = plan(state(5, {1: "champion"}), serve.read(), CONFIG, NOW)
    assert planned.stale
    assert not planned.changed


def test_an_evaluated_version_is_reachable_by_its_pin_alone_and_one_without_a_digest_is_not_started(
    serve: ServeDouble,
) -> None:
    planned = settle(serve, state(6, {1: "champion", 2: "evaluating"}))
    assert shares(planned) == [("1", 10_000)]
    assert planned.routes.models["m"].pins == {"1": "m-v1", "2": "m-v2"}
    bare = state(7, {1: "champion", 2: "evaluating"})
    its = replace(bare.model("m"), digests={1: DIGESTS[1]})
    assert "m-v2" not in settle(serve, replace(bare, models={"m": its})).routes.models["m"].pins.values()


def test_apps_of_others_that_the_configuration_names_stay(serve: ServeDouble) -> None:
    config = CONFIG.model_copy(update={"extra_apps": ({"name": "clip", "route_prefix": None, "import_path": "a:b"},)})
    planned = plan(state(3, {1: "champion"}), serve.read(), config, NOW)
    assert "clip" in apps(planned)


def test_open_clip_models_have_apps_beside_the_versions_and_the_router_knows_their_names() -> None:
    clips = {"tiny": ClipSettings(model="local-dir:/models/tiny"), "b": ClipSettings(model="b", pretrained="p")}
    config, serve = CONFIG.model_copy(update={"clips": clips}), ServeDouble()
    for _ in range(2):
        planned = plan(state(3, {1: "champion"}), serve.read(), config, NOW)
        serve.put(planned.document)
    apps = {app["name"]: app for app in serve.documents[-1]["applications"]}
    assert apps.keys() == {"router", "m-v1", "clip-tiny", "clip-b"}
    assert not plan(state(3, {1: "champion"}), serve.read(), config, NOW).changed
    assert builders.RouterArgs.model_validate(apps["router"]["args"]).clips == ("b", "tiny")
    for name, its in clips.items():
        assert ClipSettings.model_validate(apps[f"clip-{name}"]["args"]) == its
        assert type(builders.clip_app(its)).__name__ == "Application"
    ServeDeploySchema.model_validate(serve.documents[-1])
    gone = plan(state(3, {1: "champion"}), serve.read(), CONFIG, NOW)
    assert apps.keys() - {app["name"] for app in gone.document["applications"]} == {"clip-tiny", "clip-b"}
