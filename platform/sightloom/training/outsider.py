"""Someone who has never heard of Sightloom loads an export and holds it against its probes: run as a program.

It reads a folder a line and answers one JSON object a line: `{"problem": text or null, "drift": number}`. Only
transformers and torch are there for it; whatever is called `sightloom` is refused.
"""

import base64
import io
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

# The same weights under other kernels (plain attention, another order of sums) and numbers of threads, as a share of
# the largest logit: fp32 1e-6 measured; bf16 rounds to 2^-8.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


class Refused(MetaPathFinder):
    """Makes the project's own code unimportable."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "sightloom":
            raise ImportError("this program reads models without sightloom")


def problem_of(folder: Path) -> tuple[str | None, float]:
    """What differs from the probes, or None, and the largest difference of a logit as a share of the largest."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    kept = load_file(folder / "probes.logits")
    worst = 0.0
    for number, line in enumerate((folder / "probes.jsonl").read_text().splitlines()):
        probe = json.loads(line)
        inputs = inputs_of(processor, probe)
        asked = inputs["input_ids"][0].tolist()
        if asked != probe["prompt_ids"]:
            return f"probe {number}: its processor and template give other tokens", worst
        answer = torch.tensor([probe["token_ids"]])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, answer.shape[1]))
        with torch.inference_mode():
            logits_TV = model(**inputs).logits[0, len(asked) - 1 : -1].float()
        expected_V = kept[f"logits.{number}"]
        written = torch.isfinite(expected_V)  # tokens of pictures are never written
        scale = float(expected_V[written].abs().max().clamp(min=1.0))
        drift = float((logits_TV[0] - expected_V)[written].abs().max()) / scale
        logprobs_TV = logits_TV.masked_fill(~written, -torch.inf).log_softmax(-1)
        said = logprobs_TV.gather(1, answer.T)[:, 0]
        drift = max(drift, float((said - torch.tensor(probe["logprobs"])).abs().max()) / scale)
        tolerance = TOLERANCE[model.dtype]
        worst = max(worst, drift)
        if drift > tolerance:
            return f"probe {number}: its logits differ by {drift:.2g} of the largest, {tolerance:g} may be", worst
        if float((logprobs_TV.amax(-1) - said).max()) > tolerance * scale:
            return f"probe {number}: it would not answer {probe['text']!r}", worst
    return None, worst


def inputs_of(processor: Any, probe: dict[str, Any]) -> dict[str, Any]:
    """The model's inputs for a probe's question, made as anyone would make them."""
    messages = probe["conversation"]["messages"]
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    mode = {} if probe["thinking"] is None else {"enable_thinking": probe["thinking"]}
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **mode)
    images = None
    if probe["image"] is not None:
        with Image.open(io.BytesIO(base64.b64decode(probe["image"]))) as opened:
            images = [opened.convert("RGB")]
    return dict(processor(text=[text], images=images, return_tensors="pt"))


def main() -> None:
    """Answer until there is nothing more to read."""
    sys.meta_path.insert(0, Refused())
    for line in sys.stdin:
        try:
            problem, drift = problem_of(Path(line.strip()))
        except Exception as error:  # noqa: BLE001  whatever keeps others from loading it is the answer
            problem, drift = f"{type(error).__name__}: {error}", -1.0
        sys.stdout.write(json.dumps({"problem": problem, "drift": drift}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
