"""The ledger behind MLflow's accounts, as infra/ configures them: who may look may not promote."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.server import get_app_client
from tests.integration import services
from tests.mlflow_server import Server

from sightloom.errors import SightloomError
from sightloom.promotion.ledger import Ledger

INI = Path(__file__).parents[2] / "infra" / "mlflow-auth.ini"
pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with services.postgres() as database:
        address = database.replace("postgresql://", "postgresql+psycopg2://")
        (tmp_path / "auth.ini").write_text(
            INI.read_text().replace("postgresql+psycopg2://mlflow@postgres/mlflow", address)
        )
        made = Server(
            tmp_path, address, ("--app-name", "basic-auth"), PGPASSWORD=services.PASSWORD,
            MLFLOW_AUTH_CONFIG_PATH=f"{tmp_path}/auth.ini", MLFLOW_AUTH_ADMIN_PASSWORD="of-the-jobs-0123",
            MLFLOW_FLASK_SERVER_SECRET_KEY="of-the-pages",
        )  # fmt: skip
        yield made
        made.down()


def test_an_account_may_read_the_ledger_the_jobs_account_writes_it_and_nobody_else_does_either(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def become(name: str, password: str) -> Ledger:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        return Ledger(server.uri)

    def evaluate(ledger: Ledger, version: int) -> None:
        ledger.append(ledger.read(), "evaluate", "sightloom", version, "ann", "test", {}, {"digest": "0" * 64})

    with pytest.raises(SightloomError, match="401"):
        Ledger(server.uri).read()
    with pytest.raises(SightloomError, match="401"):
        become("sightloom", "guessed").read()
    jobs = become("sightloom", "of-the-jobs-0123")
    evaluate(jobs, 1)
    get_app_client("basic-auth", tracking_uri=server.uri).create_user("ann", "a-person-0123")
    person = become("ann", "a-person-0123")
    assert [line.event.kind for line in person.read().lines if line.event is not None] == ["evaluate"]
    with pytest.raises(SightloomError, match="403"):
        evaluate(person, 2)
    assert len(become("sightloom", "of-the-jobs-0123").read().lines) == 1
