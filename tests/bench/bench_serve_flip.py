"""How long a weight takes to move, and what clients see of it: seconds from the PUT to the first answer it routes.

    python tests/bench/bench_serve_flip.py [--clients 16] [--flips 10]

A real Ray Serve and a real release manager; two random nanos on the transformers engine, few tokens. Flips alternate
promote (by a document that gives the other version all weight) under clients that ask without pause; then one promotion
and one rollback go through the ledger and the manager. The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.integration.releasing import MODEL, Stage, cluster, load, stage

from sightloom.promotion.document import document, router_app
from sightloom.promotion.live import ROUTER
from sightloom.promotion.manager import stop_manager
from sightloom.promotion.serve_api import ServeApi
from sightloom.serving.routes import Live

LIMIT_S = 0.5


def flip(there: Stage, api: ServeApi, version: int, generation: int) -> float:
    """Give a version all weight; seconds from the PUT to the first answer under the new routes."""
    live = api.read()
    model = live.routes.models[MODEL]
    takes = (Live(version=str(version), app=f"{MODEL}-v{version}"),)
    routes = live.routes.model_copy(
        update={"generation": generation, "models": {MODEL: model.model_copy(update={"live": takes})}}
    )
    others = [app for app in live.applications if app["name"] != ROUTER]
    whole = document(there.config, [*others, router_app(there.config, routes)])
    # A request that is refused after its way was chosen: its headers name the version, and no engine is waited for.
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "n": 2, "temperature": 0}
    began = time.monotonic()
    put = threading.Thread(target=api.put, args=(whole,))
    put.start()
    with httpx.Client(base_url=there.address, trust_env=False, timeout=60) as client:
        while True:
            headers = client.post("/v1/chat/completions", json=body).headers
            if headers.get("x-sightloom-model") == f"{MODEL}:{version}":
                break
            assert time.monotonic() - began < 60, "never routed"
            time.sleep(0.005)
    took = time.monotonic() - began
    put.join()
    return took


def until_pinned(there: Stage, version: int, generation: int) -> None:
    """Wait until a version takes requests under routes of this generation or a newer one."""
    end = time.monotonic() + 180
    while True:
        routes = there.serve.read().routes
        if routes.generation >= generation and str(version) in routes.models[MODEL].pins:
            return
        assert time.monotonic() < end, (routes, there.status())
        time.sleep(0.2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--clients", type=int, default=16)
    arguments.add_argument("--flips", type=int, default=10)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch, cluster() as dashboard:
        folder = Path(scratch)
        with stage(f"sqlite:///{folder}/mlflow.db", folder, dashboard, 2) as there:
            with load(there.address, given.clients) as through_manager:
                there.write("evaluate", 2)
                there.write("verdict", 2, outcome="passed")
                until_pinned(there, 2, there.write("start", 2, override=True, plan=[], auto=False))
                there.write("promote", 2)
                promoted_s = there.until_answered_by(2)
                there.write("rollback", 1)
                rolled_back_s = there.until_answered_by(1)
            until_pinned(there, 2, there.write("evaluate", 2))  # its app is up again for the flips
            stop_manager()  # one writer: from here on it is this program
            api, seconds = there.serve, []
            generation = api.read().routes.generation
            with load(there.address, given.clients) as seen:
                for number in range(given.flips):
                    seconds.append(flip(there, api, 2 - number % 2, generation + 1 + number))
                    print(f"flip {number + 1}: {seconds[-1]:.3f} s", flush=True)
    failed = [*through_manager.failed, *seen.failed]
    for trouble in failed[:5]:
        print("failed:", trouble)
    result = {
        "name": "serve_flip",
        "ours": round(statistics.median(seconds), 3),
        "worst": round(max(seconds), 3),
        "limit": LIMIT_S,
        "unit": "s",
        "ratio": round(LIMIT_S / statistics.median(seconds), 2),
        "target": 1,
        "clients": given.clients,
        "requests": through_manager.total + seen.total + len(failed),
        "failed": len(failed),
        "promote_s": round(promoted_s, 2),
        "rollback_s": round(rolled_back_s, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
