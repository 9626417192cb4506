import socket
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def moto_port() -> Iterator[int]:
    """A real S3-protocol server with a bucket `pool`; yields its port."""
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield port
    server.stop()


@pytest.fixture
def store(moto_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The environment of that server with an empty bucket; yields its port."""
    import s3fs

    settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{moto_port}", "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    if fs.exists("pool"):
        fs.rm("pool", recursive=True)
    fs.mkdir("pool")
    yield moto_port
    s3fs.S3FileSystem.clear_instance_cache()
