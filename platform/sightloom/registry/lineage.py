"""An export as MLflow's LoggedModel: which run made it of what; the weights stay where they are."""

from collections.abc import Mapping
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from sightloom.errors import SightloomError
from sightloom.registry.files import MANIFEST


def record_export(uri: str, name: str, folder: Path, run_id: str, tags: Mapping[str, str]) -> str:
    """Make the LoggedModel of an exported folder and return its id; its artifact is the folder's manifest alone.

    Args:
        uri: `sqlite:///path` or a server's address.
        tags: the model's digest, its parents, where its folder lies.

    Raises:
        SightloomError: MLflow did not take it.
    """
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        experiment = client.get_run(run_id).info.experiment_id
        model = client.create_logged_model(experiment, name, run_id, tags=dict(tags), model_type="vlm")
        client.log_model_artifact(model.model_id, str(folder / MANIFEST))
        client.finalize_logged_model(model.model_id, "READY")
    except (MlflowException, OSError) as error:
        raise SightloomError(f"the lineage of {name} was not taken by MLflow at {uri}: {error}") from error
    return str(model.model_id)
