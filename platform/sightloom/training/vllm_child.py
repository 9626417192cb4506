"""A process that holds vLLM and writes rollouts: run as a program, one JSON object a line each way.

`{"start": {...}}` loads the model, `{"reload": folder}` takes over a version's weights in place, `{"generate": [...]}`
answers. It runs in whatever environment has vLLM and imports nothing of this package.
"""

import base64
import io
import json
import os
import sys
from typing import Any

from PIL import Image


class Engine:
    """vLLM with the trainer's view of a log-probability: of the distribution that a token was drawn from."""

    def __init__(self, model: str, dtype: str, window: int, batch_size: int, memory: float) -> None:
        from vllm import LLM  # noqa: PLC0415  the extra; this program alone needs it

        self._llm = LLM(
            model,
            dtype=dtype,
            max_model_len=window,
            max_num_seqs=batch_size,
            gpu_memory_utilization=memory,
            limit_mm_per_prompt={"image": 1, "video": 0},
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
        )

    def reload(self, folder: str) -> dict[str, Any]:
        """Take over the weights of a folder; caches made with the old ones are emptied."""
        from vllm.platforms import current_platform  # noqa: PLC0415

        if current_platform.is_cpu():
            return {"error": "vLLM on a CPU keeps packed copies of old weights when it reloads"}
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self._llm.reset_prefix_cache()
        self._llm.llm_engine.reset_encoder_cache()  # without it the engine dies on the next picture that it knows
        self._llm.reset_mm_cache()
        return {}

    def generate(self, requests: list[dict[str, Any]]) -> dict[str, Any]:
        """Answer all requests: tokens, their log-probabilities, and whether each ended by itself."""
        from vllm import SamplingParams  # noqa: PLC0415

        prompts, sampling = [], []
        for request in requests:
            prompt = {"prompt_token_ids": request["prompt"]}
            if request["image"] is not None:
                picture = Image.open(io.BytesIO(base64.b64decode(request["image"])))
                prompt["multi_modal_data"] = {"image": picture.convert("RGB")}
            prompts.append(prompt)
            bias = {int(token): value for token, value in (request["sampling"]["logit_bias"] or {}).items()}  # JSON
            own = {**request["sampling"], "logit_bias": bias}
            sampling.append(SamplingParams(logprobs=0, skip_special_tokens=False, **own))
        answers = []
        for output in self._llm.generate(prompts, sampling, use_tqdm=False):
            (answer,) = output.outputs
            tokens = list(answer.token_ids)
            scores = [entry[token].logprob for entry, token in zip(answer.logprobs, tokens, strict=True)]
            answers.append({"tokens": tokens, "logprobs": scores, "finish": answer.finish_reason})
        return {"answers": answers}


def main() -> None:
    """Answer line after line; what vLLM prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine: Engine | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "start" in request:
                engine, reply = Engine(**request["start"]), {}
            elif engine is None:
                reply = {"error": "no model is loaded"}
            elif "reload" in request:
                reply = engine.reload(request["reload"])
            else:
                reply = engine.generate(request["generate"])
        except Exception as error:  # noqa: BLE001  the other side decides what a failure costs
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
