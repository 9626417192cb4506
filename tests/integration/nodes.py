"""A Ray of several nodes on one machine: each node has its processes and, where allowed, its network namespace."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from tests.integration.services import free_ports

from sightloom.cluster.client import JobsApi
from sightloom.cluster.clusters import Cluster
from sightloom.cluster.local.state import MARK, PART, end, marked

_START_S, _TRIES = 180, 2
# A node sees a folder of its own at the path that is Ray's on every node: `ip netns exec` gave it mounts of its own.
# (With folders of different names an agent looks for its node's driver logs in the head's.)
_PRIVATE = 'mount --bind "$0" "$1" && shift && exec "$@"'


@dataclass(frozen=True)
class Node:
    name: str
    ip: str
    cpus: int
    resources: Mapping[str, float]
    inside: tuple[str, ...]  # the words that enter its namespace


class Nodes:
    """The cluster. `separate`: empty where every node has a network of its own, else why not."""

    def __init__(self, folder: Path, kinds: Mapping[str, tuple[int, Mapping[str, float]]]) -> None:
        self._id, self._folder = f"nodes-{os.getpid()}", folder
        self._bridge, self._net = f"slb{os.getpid() % 100_000}", f"10.{77 + os.getpid() % 100}.{os.getpid() % 250}"
        self.token = folder / "token"
        self.token.write_text("a-token-of-the-tests-0123456789")
        self._temp = tempfile.mkdtemp(prefix="sln-")
        self.separate = self._make_bridge()
        self.nodes = {
            name: self._make_node(name, number + 10, *kind) for number, (name, kind) in enumerate(kinds.items())
        }
        self.head = next(iter(self.nodes.values()))
        self._ports = {name: free_ports(4 * (number + 1))[-4:] for number, name in enumerate(kinds)}

    @property
    def address(self) -> str:
        return f"http://{self.head.ip}:{self._ports[self.head.name][1]}"

    @property
    def api(self) -> JobsApi:
        return JobsApi(Cluster(address=self.address), self.token.read_text())

    def start(self) -> None:
        for number, node in enumerate(self.nodes.values()):
            self._join(node, number + 1)

    def kill(self, name: str) -> None:
        """Every process of a node at once, without a word."""
        for process in marked(self._id, name):
            with contextlib.suppress(Exception):
                process.kill()
        end(self._id, name, grace_s=0)  # what these had started meanwhile

    def restart(self, name: str) -> None:
        self._join(self.nodes[name], len(self.nodes))

    def names(self) -> dict[str, str]:
        """Ray's ids of nodes, also of those that died, to our names."""
        return {str(one["node_id"]): str(one["node_name"]) for one in self.seen("nodes")}

    def close(self) -> None:
        end(self._id, grace_s=0)
        for node in self.nodes.values():
            if node.inside:
                subprocess.run(["ip", "netns", "del", node.inside[3]], check=False, capture_output=True)
                shutil.rmtree(node.inside[7], ignore_errors=True)
        subprocess.run(["ip", "link", "del", self._bridge], check=False, capture_output=True)
        shutil.rmtree(self._temp, ignore_errors=True)

    def _words(self, node: Node) -> list[str]:
        gcs, dashboard, *_ = self._ports[self.head.name]
        _, _, agent, client = self._ports[node.name]
        words = [
            "--block", f"--node-name={node.name}", f"--node-ip-address={node.ip}", f"--num-cpus={node.cpus}",
            "--disable-usage-stats", "--object-store-memory=100000000", f"--dashboard-agent-listen-port={agent}",
            f"--resources={json.dumps(dict(node.resources))}", f"--temp-dir={self._temp}",
        ]  # fmt: skip
        if node is not self.head:
            return [*words, f"--address={self.head.ip}:{gcs}"]
        return [
            *words, "--head", f"--port={gcs}", f"--dashboard-host={node.ip}", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
        ]  # fmt: skip

    def _spawn(self, node: Node) -> "subprocess.Popen[bytes]":
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
        environment |= {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "SPT_NOENV": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5",
            MARK: self._id, PART: node.name,
        }  # fmt: skip
        with open(self._folder / f"{node.name}.log", "ab") as log:
            return subprocess.Popen(
                [*node.inside, sys.executable, "-m", "ray.scripts.scripts", "start", *self._words(node)],
                cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _join(self, node: Node, count: int) -> None:
        """Start a node and wait until so many are alive; one that gave up while it started is started again.

        Raylet gives its helpers 15 s, hard-coded (ray#65983): on a busy machine that is too little now and then.
        """
        process, tries, until = self._spawn(node), _TRIES, time.monotonic() + _START_S
        while True:
            said = ""
            try:
                if self.alive() >= count:
                    return
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                said = repr(error)
            if process.poll() is not None and tries:
                self.kill(node.name)
                process, tries, until = self._spawn(node), tries - 1, time.monotonic() + _START_S
            logs = "\n".join(path.read_text()[-2000:] for path in self._folder.glob("*.log"))
            assert time.monotonic() < until, f"fewer than {count} nodes; {said}\n{logs}"
            time.sleep(0.5)

    def alive(self) -> int:
        answer = self.api._http.get("/api/v0/nodes", params={"detail": "true"})
        found = answer.json()["data"]["result"]["result"]
        return sum(one["state"] == "ALIVE" for one in found)

    def seen(self, what: str) -> list[dict[str, object]]:
        """Ray's own list of `tasks`, `actors` or `nodes`."""
        answer = self.api._http.get(f"/api/v0/{what}", params={"detail": "true", "limit": "10000"})
        found: list[dict[str, object]] = answer.json()["data"]["result"]["result"]
        return found

    def _make_bridge(self) -> str:
        for command in (
            ["ip", "link", "add", self._bridge, "type", "bridge"],
            ["ip", "addr", "add", f"{self._net}.1/24", "dev", self._bridge],
            ["ip", "link", "set", self._bridge, "up"],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                return "the program ip is not installed (iproute2)"
            if done.returncode:
                return f"`{' '.join(command)}`: {done.stderr.strip()}"
        return ""

    def _make_node(self, name: str, last: int, cpus: int, resources: Mapping[str, float]) -> Node:
        if self.separate:
            return Node(name, "127.0.0.1", cpus, resources, ())
        space, ip = f"{self._id}-{name}", f"{self._net}.{last}"
        veth = f"v{last}x{os.getpid() % 100_000}"
        for command in (
            ["netns", "add", space],
            ["link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", space],
            ["link", "set", veth, "master", self._bridge, "up"],
            ["-n", space, "addr", "add", f"{ip}/24", "dev", "eth0"],
            ["-n", space, "link", "set", "eth0", "up"],
            ["-n", space, "link", "set", "lo", "up"],
        ):
            subprocess.run(["ip", *command], check=True, capture_output=True)
        own = Path(f"{self._temp}-{name}")
        own.mkdir()
        inside = ("ip", "netns", "exec", space, "sh", "-c", _PRIVATE, str(own), self._temp)
        return Node(name, ip, cpus, resources, inside)


@contextlib.contextmanager
def nodes(folder: Path, kinds: Mapping[str, tuple[int, Mapping[str, float]]]) -> Iterator[Nodes]:
    """A running cluster; the first kind is the head."""
    made = Nodes(folder, kinds)
    try:
        made.start()
        yield made
    finally:
        made.close()
