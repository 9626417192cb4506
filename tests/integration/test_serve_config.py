"""Serve's own configuration, as a RayService carries it, starts an endpoint that answers."""

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from sightloom.cluster.jobspec import JobSpec
from sightloom.cluster.renderers import Placed
from sightloom.cluster.renderers.rayservice import serve_config
from sightloom.model.scratch import build_folder
from sightloom.serving.ports import wait_until_ready

KEY = "sl-abcdefgh-" + "k" * 43


@pytest.fixture
def address(tmp_path: Path, ray_session: None) -> Iterator[str]:
    from ray import serve
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    folder = build_folder("nano", ["what is it? x is it"] * 50, tmp_path / "nano", 0)
    keys = [{"id": "abcdefgh", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = (str(folder), "--on", "ray", "--name", "nano", "--port", str(port), "--keys", str(tmp_path / "keys.json"))
    config = serve_config(JobSpec(name="s", kind="serve", argv=argv), Placed())
    schema = ServeDeploySchema.model_validate(yaml.safe_load(yaml.safe_dump(config)))
    client = serve_start(http_options={**schema.http_options.model_dump(), "location": "HeadOnly"})
    client.deploy_apps(schema, _blocking=True)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.mark.long
def test_a_rayservices_configuration_starts_the_endpoint_with_its_keys(address: str) -> None:
    wait_until_ready(address, 120)
    request = Request(f"{address}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    with urlopen(request, timeout=30) as answer:
        assert [model["id"] for model in json.load(answer)["data"]] == ["nano"]
    with pytest.raises(HTTPError, match="401"):
        urlopen(f"{address}/v1/models", timeout=30)
