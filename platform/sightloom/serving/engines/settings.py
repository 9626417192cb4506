"""Which engine serves a model, and how: settings that travel, read without loading an engine."""

from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from sightloom.config import Frozen, validate
from sightloom.errors import UserMistake

MODEL: Final = "engine"  # the name that the server knows the model by
ExtraArg = Literal[
    "tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "gpu-memory-utilization", "max-num-seqs",
    "max-num-batched-tokens", "block-size", "kv-cache-dtype", "quantization", "enforce-eager", "seed",
    "mm-processor-cache-gb", "cpu-offload-gb", "no-enable-prefix-caching",
]  # fmt: skip
_SPAWNED: Final = ("python", "extra_args", "env", "cache", "start_timeout_s", "max_images", "num_gpus")
_REMOTE: Final = ("key_file", "model")
VllmVariable = Annotated[str, Field(pattern=r"^(VLLM_|NCCL_|CUDA_|TORCH_|OMP_|KMP_|LD_PRELOAD$)")]


class TransformersSettings(Frozen):
    """How the engine batches and streams."""

    kind: Literal["transformers"] = "transformers"
    dtype: str = "float32"
    device: str = "cpu"
    max_batch: int = 8
    gather_s: float = 0.005
    max_padded_tokens: int = 16_384
    flush_s: float = 0.020


class VllmSettings(Frozen):
    """How a vLLM server is started, or, with `url`, where the one is that the operator runs.

    `python`: an interpreter that has vLLM; None: this one if it has it, else the project's own (`make vllm`).
    `num_gpus`: what a replica on Ray reserves. `key_file`: holds the key of the server at `url`, `model` its name
    there. `flush_s`: pieces of a stream are gathered for about so long. `stall_s`: without a token so long it hangs.
    """

    kind: Literal["vllm"] = "vllm"
    python: str | None = None
    url: str | None = Field(default=None, pattern=r"^https?://[^/?#]+(/[^?#]*)?$")
    model: str = MODEL
    key_file: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int | None = Field(default=None, ge=1)
    num_gpus: float = Field(default=0, ge=0)
    max_images: int = Field(default=8, ge=0)
    extra_args: dict[ExtraArg, str | int | float | bool] = Field(default_factory=dict)
    env: dict[VllmVariable, str] = Field(default_factory=dict)
    cache: str | None = None
    start_timeout_s: float = 600.0
    stop_grace_s: float = 10.0
    flush_s: float = 0.020
    probe_every_s: float = 5.0
    stall_s: float = 120.0
    probe_timeout_s: float = 30.0
    max_restarts: int = 3
    restart_window_s: float = 600.0

    @model_validator(mode="after")
    def _one_place(self) -> "VllmSettings":
        theirs = _SPAWNED if self.url is not None else _REMOTE
        said = [
            name
            for name in theirs
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True)
        ]
        if said and self.url is not None:
            raise ValueError(f"'{said[0]}' means nothing beside 'url': the server at a URL is the operator's own")
        if said:
            raise ValueError(f"'{said[0]}' belongs to a server at a 'url'")
        return self


def _kind(settings: Any) -> str:
    kind = settings.get("kind", "transformers") if isinstance(settings, dict) else getattr(settings, "kind", None)
    return str(kind)


EngineSettings = Annotated[
    Annotated[TransformersSettings, Tag("transformers")] | Annotated[VllmSettings, Tag("vllm")],
    Discriminator(_kind, custom_error_type="engine", custom_error_message="the kind must be 'transformers' or 'vllm'"),
]
ENGINE_SETTINGS: Final[TypeAdapter[TransformersSettings | VllmSettings]] = TypeAdapter(EngineSettings)


def engine_settings(
    engine: str, python: str | None, key_file: str | None, extra: list[str], gpus: float, dtype: str, device: str
) -> TransformersSettings | VllmSettings:
    """The engine's settings from the command line.

    Raises:
        UserMistake: options that do not belong together, or an unknown one.
    """
    if engine == "transformers":
        if python or key_file or extra or gpus:
            raise UserMistake("--engine-python, -key, -arg and -gpus belong to vLLM", "add --engine vllm")
        return TransformersSettings(dtype=dtype, device=device)
    given: dict[str, Any] = {"kind": engine, "dtype": dtype, "python": python, "num_gpus": gpus}
    if engine.startswith(("http://", "https://")):
        given |= {"kind": "vllm", "url": engine, "key_file": key_file}
    elif engine != "vllm":
        raise UserMistake(f"--engine {engine} is not known", "use transformers, vllm, or a vLLM server's URL")
    pairs = [argument.partition("=") for argument in extra]
    given["extra_args"] = {name: yaml.safe_load(value) if sign else True for name, sign, value in pairs}
    return validate(VllmSettings, given, "command line")
