"""The promoted form of a model: a folder that Hugging Face loads, probes that prove it, a manifest that seals it."""

import base64
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image
from safetensors.torch import save_file

from sightloom import storage
from sightloom.config import canonical_json
from sightloom.errors import SightloomError
from sightloom.model.chat import Document, Encoder
from sightloom.model.generation import Generation, GenerationRequest, Generator
from sightloom.model.heads import RewardHead
from sightloom.model.load import VLM, load
from sightloom.model.reward import save_head
from sightloom.records import Conversation

PROBES: Final = "probes.jsonl"
PROBE_LOGITS: Final = "probes.logits"  # safetensors by another name: loaders take every *.safetensors for weights
MANIFEST: Final = "manifest.json"
INFO: Final = "sightloom.json"
_PROBE_TOKENS: Final = 24
# fp32 log-probabilities of one thread against those of another number of threads: other orders of summation
_LOGPROB_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Probe:
    """A question whose greedy answer and log-probabilities are kept beside the weights."""

    conversation: Conversation
    image: bytes | None


def export(
    vlm: VLM,
    folder: Path,
    info: dict[str, Any],
    probes: Sequence[Probe],
    thinking: bool | None,
    reward_head: RewardHead | None = None,
) -> str:
    """Write the model folder whole (built aside, then renamed) and return its digest, the manifest's own SHA-256."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    vlm.model.save_pretrained(partial)
    vlm.processor.save_pretrained(partial)
    if reward_head is not None:
        save_head(reward_head, partial)
    (partial / INFO).write_bytes(canonical_json(info))
    answers, prompts = _answers(vlm, probes, thinking), _prompts(vlm, probes, thinking)
    lines = [
        canonical_json(
            {
                "conversation": probe.conversation.to_json(),
                "image": base64.b64encode(probe.image).decode() if probe.image is not None else None,
                "thinking": thinking,
                "prompt_ids": prompt.input_ids.tolist(),
                "text": answer.text,
                "token_ids": list(answer.token_ids),
                "logprobs": [round(value, 6) for value in answer.logprobs],
            }
        )
        for probe, prompt, answer in zip(probes, prompts, answers, strict=True)
    ]
    reader = Generator(vlm)
    logits = {f"logits.{number}": reader.logits(prompt).float().cpu() for number, prompt in enumerate(prompts)}
    save_file(logits, partial / PROBE_LOGITS)
    (partial / PROBES).write_bytes(b"".join(line + b"\n" for line in lines))
    (partial / MANIFEST).write_bytes(_manifest(partial))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return model_digest(folder)


def model_digest(folder: Path) -> str:
    """SHA-256 of a model folder's manifest."""
    return storage.sha256_file(folder / MANIFEST)


def seal(folder: Path, info: dict[str, Any]) -> str:
    """Give a folder that was not trained here (a fresh model) its info and manifest; returns its digest."""
    (folder / INFO).write_bytes(canonical_json(info))
    storage.write(str(folder / MANIFEST), _manifest(folder))
    return model_digest(folder)


def _manifest(folder: Path) -> bytes:
    """What the registry verifies: each file's digest and size."""
    files = [file for file in sorted(folder.iterdir()) if file.name != MANIFEST]
    listed = {file.name: {"sha256": storage.sha256_file(file), "bytes": file.stat().st_size} for file in files}
    return canonical_json({"files": listed})


def verify(folder: Path) -> VLM:
    """Load an export as anyone would and hold it against its manifest and probes.

    Raises:
        SightloomError: a file differs from the manifest, or an answer from its probe.
    """
    files = json.loads((folder / MANIFEST).read_bytes())["files"]
    for name, expected in files.items():
        if not (folder / name).is_file() or storage.sha256_file(folder / name) != expected["sha256"]:
            raise SightloomError(f"the model in '{folder}' is damaged: {name} differs from its manifest")
    vlm = load(str(folder))
    lines, probes = _lines(folder), kept_probes(folder)
    if probes:
        for line, answer in zip(lines, _answers(vlm, probes, lines[0]["thinking"]), strict=True):
            drift = max((abs(a - b) for a, b in zip(line["logprobs"], answer.logprobs, strict=False)), default=0.0)
            # where two tokens are equally likely the argmax may turn with the last bit; the numbers before it may not
            if line["token_ids"][:1] != list(answer.token_ids[:1]) or drift > _LOGPROB_TOLERANCE:
                raise SightloomError(
                    f"the model in '{folder}' does not answer its probes as it did in training (drift {drift:.2g})"
                )
    return vlm


def kept_probes(folder: Path) -> list[Probe]:
    """The questions of an export's probes."""
    return [
        Probe(
            Conversation.from_json(line["conversation"]),
            base64.b64decode(line["image"]) if line["image"] is not None else None,
        )
        for line in _lines(folder)
    ]


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / PROBES).read_bytes().splitlines()]


def _answers(vlm: VLM, probes: Sequence[Probe], thinking: bool | None) -> list[Generation]:
    prompts = _prompts(vlm, probes, thinking)
    requests = [GenerationRequest(prompt, max_new_tokens=_PROBE_TOKENS) for prompt in prompts]
    return Generator(vlm).generate(requests) if requests else []


def _prompts(vlm: VLM, probes: Sequence[Probe], thinking: bool | None) -> list[Document]:
    encoder = Encoder(vlm.processor)
    return [encoder.prompt(probe.conversation, _picture(probe.image), thinking) for probe in probes]


def _picture(data: bytes | None) -> Image.Image | None:
    if data is None:
        return None
    with Image.open(io.BytesIO(data)) as opened:
        return opened.convert("RGB")
