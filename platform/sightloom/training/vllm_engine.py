"""Rollouts by vLLM, in a process of its own beside the trainer: on a GPU; on a CPU for one fixed version only.

After a reload vLLM on a CPU goes on with packed copies of the old weights, so policy optimisation with it is refused
there (`tasks.build`).
"""

import base64
import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from sightloom.model.generation import Generation, GenerationRequest
from sightloom.model.load import VLM
from sightloom.model.sampling import never_written
from sightloom.training.child import Child, ChildLost

_START_S: Final = 1200.0  # loading, profiling and compiling a large model
_NEVER: Final = -100.0  # vLLM's strongest bias against a token
_PROGRAM: Final = Path(__file__).with_name("vllm_child.py")


class EngineLost(Exception):
    """vLLM died, took too long or refused; it is started anew at the next call."""


class VllmEngine:
    """A `RolloutEngine`. vLLM is started at the first call, and again after each that it did not survive.

    Args:
        vlm: the trainer's model, whose weights of each version are handed over through `folder`.
        folder: this worker's own, for weights; the newest version lies there.
        python: an interpreter that has vLLM.
        dtype: what it computes in; `window`: tokens of prompt and response together.
        memory: the share of the GPU that is vLLM's; the trainer needs the rest.
        environment: of the process, beside this one's own.
    """

    def __init__(
        self,
        vlm: VLM,
        folder: Path,
        window: int,
        batch_size: int = 256,
        limit_s: float = 600.0,
        python: str = sys.executable,
        dtype: str = "bfloat16",
        memory: float = 0.3,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._vlm, self._folder, self._limit_s, self._python = vlm, folder, limit_s, python
        self._start = {
            "model": str(vlm.folder), "dtype": dtype, "window": window, "batch_size": batch_size, "memory": memory,
        }  # fmt: skip
        # in one process, so that ending it ends all of it
        self._environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **(environment or {})}
        self._image_token = vlm.model.config.image_token_id
        self._never = {int(token): _NEVER for token in never_written(vlm.model.config)}
        self._child: Child | None = None
        self._weights: str | None = None  # where the version's are, None: those of the model's own folder
        self._loaded = True  # whether vLLM has them

    def load_weights(self, version: int, uri: str | None) -> None:
        """Take over a version's weights: from `uri`, a folder with safetensors, or, where it is None, the trainer's.

        Version 0 is the model's own folder, which vLLM starts with. They are loaded at the next call of `generate`.
        """
        if version > 0 or uri is not None:
            self._weights, self._loaded = uri or self._written(version), False

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Answer all requests; the same seed gives the same answer to a request, another one than our own sampler's.

        Raises:
            EngineLost: vLLM died, took too long or reported an error.
            ValueError: a request asks for a thinking budget or a constraint.
        """
        if self._child is None:
            self._child = Child([self._python, str(_PROGRAM)], self._environment)
            self._ask({"start": self._start}, _START_S)
            self._loaded = self._weights is None
        if not self._loaded:
            self._ask({"reload": self._weights}, _START_S)
            self._loaded = True
        reply = self._ask({"generate": [self._request(request) for request in requests]}, self._limit_s)
        return [self._generation(answer) for answer in reply["answers"]]

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        assert self._child is not None
        try:
            reply = self._child.ask(request, limit_s)
        except ChildLost as lost:
            self._child = None
            raise EngineLost(f"vLLM {lost}") from None
        if "error" in reply:
            self.close()
            raise EngineLost(f"vLLM: {reply['error']}")
        return reply

    def _request(self, request: GenerationRequest) -> dict[str, Any]:
        if request.thinking_budget is not None or request.constraint is not None:
            raise ValueError("rollouts by vLLM have neither a thinking budget nor a constraint")
        prompt = request.prompt.input_ids.tolist()
        if request.prompt.pixel_values is not None:
            if request.image is None:
                raise ValueError("vLLM reads the picture itself: the request needs it")
            # it puts a picture's tokens in itself, for one place holder
            prompt = [t for i, t in enumerate(prompt) if t != self._image_token or prompt[i - 1] != t]
        return {
            "prompt": prompt,
            "image": None if request.image is None else _png(request.image),
            "sampling": {
                "max_tokens": request.max_new_tokens,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "top_k": request.top_k,
                "seed": request.seed & (2**63 - 1),
                "stop_token_ids": list(request.stop_token_ids),
                "logit_bias": self._never,
            },
        }

    def _generation(self, answer: dict[str, Any]) -> Generation:
        tokens = tuple(answer["tokens"])
        if answer["finish"] not in ("stop", "length"):
            raise EngineLost(f"vLLM ended an answer with '{answer['finish']}'")
        text = self._vlm.tokenizer.decode(tokens, skip_special_tokens=True)
        return Generation(tokens, tuple(answer["logprobs"]), answer["finish"], text, (False,) * len(tokens))

    def _written(self, version: int) -> str:
        """The trainer's weights as a folder; those of older versions go."""
        place = self._folder / f"version-{version:06d}"
        self._vlm.model.save_pretrained(place)
        for old in self._folder.glob("version-*"):
            if old != place:
                shutil.rmtree(old)
        return str(place)


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()
