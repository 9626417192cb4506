import pytest

from sightloom.cluster.local.options import StackOptions, read_ports
from sightloom.errors import UserMistake


def test_ports_are_named_and_the_others_stay() -> None:
    ports = read_ports(["endpoint=8001", "mlflow=5001"])
    assert (ports.endpoint, ports.mlflow, ports.dashboard) == (8001, 5001, 8265)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("endpiont=8001", "did you mean 'endpoint'"),
        ("endpoint", "not of the form NAME=PORT"),
        ("endpoint=70000", "65535"),
        ("endpoint=8265", "port 8265 is given to dashboard and to endpoint"),
    ],
)
def test_a_port_that_cannot_be_is_told(word: str, said: str) -> None:
    with pytest.raises(UserMistake, match=said):
        read_ports([word])


def test_a_database_with_a_password_is_refused_and_the_password_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="PGPASSWORD"):
        StackOptions(database="postgresql://ann:hunter2@host/mlflow")
    assert StackOptions(database="postgresql://ann@host/mlflow").database.endswith("/mlflow")
