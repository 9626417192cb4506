"""A manager under KubeRay: its documents go into a RayService through the Kubernetes API, and the operator goes on."""

import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ray.serve.schema import ServeDeploySchema

from sightloom.errors import SightloomError
from sightloom.promotion.config import ManagerConfig, RayServiceWriter
from sightloom.promotion.ledger import utc_now
from sightloom.promotion.rayservice import RayServiceApi, serve_of
from sightloom.promotion.serve_api import ServeApi
from sightloom.promotion.tick import Reconciler

from .serving_double import ServeDouble
from .world import World

PATH = "/apis/ray.io/v1/namespaces/sightloom/rayservices/serve-nano"


def certificate(folder: Path) -> None:
    """A key and a certificate for 127.0.0.1, signed by itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(
        issuer_name=name, subject_name=name, public_key=key.public_key(), serial_number=x509.random_serial_number(),
        not_valid_before=now - datetime.timedelta(hours=1), not_valid_after=now + datetime.timedelta(hours=1),
    ).add_extension(names, False).sign(key, hashes.SHA256())  # fmt: skip
    (folder / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    (folder / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


class Kubernetes:
    """The API of a cluster with one RayService, and the operator that hands its configuration to Serve."""

    def __init__(self, folder: Path) -> None:
        self.serve = ServeDouble()
        self.tokens: list[str] = []
        self.spec = {"rayClusterConfig": {"rayVersion": "2"}, "serveConfigV2": ""}
        certificate(folder)
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(
                    api.patch(self.path, self.headers["authorization"], self.headers["content-type"], body)
                )
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                return

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "ca.crt", folder / "key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)

    def patch(self, path: str, authorization: str, form: str, body: dict[str, dict[str, str]]) -> int:
        if path != PATH:
            return 404
        if form != "application/merge-patch+json":
            return 415
        if not authorization.startswith("Bearer account-"):
            return 403
        self.tokens.append(authorization.removeprefix("Bearer "))
        self.spec |= body["spec"]
        self.serve.put(yaml.safe_load(self.spec["serveConfigV2"]))
        return 200


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[Kubernetes]:
    (tmp_path / "token").write_text("account-1\n")
    api = Kubernetes(tmp_path)
    thread = threading.Thread(target=api.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield api
    api.server.shutdown()
    thread.join()
    api.server.server_close()


@pytest.fixture
def where(kubernetes: Kubernetes, tmp_path: Path) -> RayServiceWriter:
    address = f"https://127.0.0.1:{kubernetes.server.server_port}"
    return RayServiceWriter(namespace="sightloom", name="serve-nano", api=address, account=str(tmp_path))


def test_a_canary_walks_through_the_rayservice_and_its_cluster_is_left_alone(
    make: Callable[[], World], kubernetes: Kubernetes, where: RayServiceWriter, tmp_path: Path
) -> None:
    world = make().promoted()
    config = ManagerConfig(store=world.uri, writer=where)
    writer = RayServiceApi(kubernetes.serve, where)
    reconciler = Reconciler(world.ledger, world.registry, writer, config, world.windows, utc_now)
    while not reconciler.tick().settled:
        continue
    world.on_trial(2)
    for _ in range(6):
        reconciler.tick()
        if world.state.challenger == 2:
            world.see(2)
    (tmp_path / "token").write_text("account-2")  # Kubernetes renews it
    world.write("rollback", 1)
    while not reconciler.tick().settled:
        continue
    assert world.kinds[-4:] == ["start", "step", "promote", "rollback"]
    document = yaml.safe_load(kubernetes.spec["serveConfigV2"])
    ServeDeploySchema.model_validate(document)
    apps = {app["name"]: app for app in document["applications"]}
    routes = apps["router"]["deployments"][0]["user_config"]["models"]["m"]
    assert routes["live"] == [{"version": "1", "app": "m-v1", "bp": 10_000}]
    assert kubernetes.spec["rayClusterConfig"] == {"rayVersion": "2"}, "a change of it would replace the cluster"
    assert set(kubernetes.tokens) == {"account-1", "account-2"} and kubernetes.tokens[-1] == "account-2"


def test_what_the_api_refuses_is_said(kubernetes: Kubernetes, where: RayServiceWriter, tmp_path: Path) -> None:
    def said(there: RayServiceWriter) -> str:
        with pytest.raises(SightloomError) as refusal:
            RayServiceApi(kubernetes.serve, there).put({"applications": []})
        return refusal.value.message

    assert "RayService sightloom/other (404)" in said(where.model_copy(update={"name": "other"}))
    (tmp_path / "token").write_text("nobody")
    assert "RayService sightloom/serve-nano (403)" in said(where)
    (tmp_path / "other").mkdir()
    certificate(tmp_path / "other")
    (tmp_path / "other" / "token").write_text("account-1")
    assert "does not answer" in said(where.model_copy(update={"account": str(tmp_path / "other")})), "another authority"
    assert "service account" in said(where.model_copy(update={"account": str(tmp_path / "gone")}))
    assert kubernetes.tokens == []


def test_the_writer_is_the_configurations(where: RayServiceWriter) -> None:
    config = ManagerConfig(store="sqlite:////x", writer=where)
    assert ManagerConfig.model_validate(config.model_dump(mode="json", exclude_unset=True)) == config
    assert isinstance(serve_of(config), RayServiceApi)
    assert isinstance(serve_of(config.model_copy(update={"writer": None})), ServeApi)
