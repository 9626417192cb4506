"""What of a running stage is kept, and how it goes back: tensors by name, independent of the number of workers.

Only what trains is kept, with its optimizer state: frozen weights are those that the stage started from, which its
digest names. torch.distributed.checkpoint writes each worker's part and reads it for any other number of workers.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.storage import StorageReader

from sightloom.errors import SightloomError

_MODEL: Final = "model"
_OPTIMIZER: Final = "optimizer"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a stage stands: `step` optimizer steps are done; `objective` is its objective's own state."""

    step: int
    objective: dict[str, Any]
    skipped: int = 0


def tensors_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The trained weights and the optimizer's state, flat: `model/<name>` and `optimizer/<name>/<entry>`."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    kept: dict[str, Any] = {
        f"{_MODEL}/{name}": parameter.detach() for parameter, name in names.items() if parameter.requires_grad
    }
    for parameter, name in names.items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.int64)
            kept[f"{_OPTIMIZER}/{name}/{entry}"] = tensor
    return kept


def load_tensors(reader: StorageReader, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read them back in place; where there is a process group all workers call it together.

    Raises:
        SightloomError: the checkpoint holds other weights than those that train.
    """
    named = dict(model.named_parameters())
    wanted: dict[str, torch.Tensor] = {}
    state: dict[str, tuple[str, str]] = {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        kind, _, rest = key.partition("/")
        name, entry = (rest, "") if kind == _MODEL else tuple(rest.rsplit("/", 1))
        if name not in named or not isinstance(stored, TensorStorageMetadata):
            raise SightloomError(f"a checkpoint holds '{key}', which this stage does not train")
        parameter, dtype = named[name], stored.properties.dtype
        if kind == _MODEL:
            wanted[key] = parameter.detach()
            continue
        state[key] = (name, entry)
        if stored.size == parameter.shape:
            wanted[key] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        else:
            wanted[key] = torch.zeros(stored.size, dtype=dtype, device=parameter.device)
    missing = {f"{_MODEL}/{name}" for name, parameter in named.items() if parameter.requires_grad} - set(wanted)
    if missing:
        raise SightloomError(f"a checkpoint lacks {len(missing)} of the weights that train, e.g. '{min(missing)}'")
    with quiet_alone():
        load(wanted, storage_reader=reader, no_dist=not torch.distributed.is_initialized())
    for key, (name, entry) in state.items():
        value = wanted[key]
        counter = value.dtype == torch.int64 and value.ndim == 0
        optimizer.state[named[name]][entry] = int(value) if counter else value


@contextlib.contextmanager
def quiet_alone() -> Iterator[None]:
    """Without torch's warning that a process saves and loads for itself: it is meant to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class Clock:
    """Decides at which steps a checkpoint is due; rank 0's clock decides for all."""

    def __init__(self, every_minutes: float, every_steps: int | None, now: Callable[[], float]) -> None:
        self._seconds, self._steps, self._now = every_minutes * 60, every_steps, now
        self._last = now()

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps; saying yes starts the next interval."""
        if self._steps is not None:
            return step % self._steps == 0
        if self._now() - self._last < self._seconds:
            return False
        self._last = self._now()
        return True
