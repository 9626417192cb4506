"""Rollouts by a real vLLM on a CPU, of one fixed version, against our own generator and the trainer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sightloom.model.chat import Document, Encoder
from sightloom.model.generation import GenerationRequest, Generator
from sightloom.model.heads import TrainableVLM
from sightloom.model.load import VLM, load
from sightloom.training.tasks.batch import Packer
from sightloom.training.vllm_engine import EngineLost, VllmEngine

from ..serving.running import vllm_python
from ..serving.trained import COLOURS, conversation, make_trained, plain

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
ATOL = 1e-4  # fp32 on both sides, other kernels; training.md §7 measured 5e-6
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return load(str(make_trained(tmp_path_factory.mktemp("trained") / "nano")))


@pytest.fixture(scope="module")
def engine(vlm: VLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    weights = tmp_path_factory.mktemp("weights")
    cache = {"VLLM_CACHE_ROOT": str(tmp_path_factory.mktemp("vllm-cache"))}
    found = VllmEngine(vlm, weights, 256, limit_s=300.0, python=vllm_python(), dtype="float32", environment=CPU | cache)
    yield found
    found.close()


def requests(vlm: VLM, temperature: float, seed: int) -> list[GenerationRequest]:
    encoder = Encoder(vlm.processor)
    prompts = [(encoder.prompt(conversation(c, True), plain(c), thinking=True), plain(c)) for c in COLOURS]
    return [
        GenerationRequest(prompt, 48, temperature, seed=seed + place, image=image)
        for place, (prompt, image) in enumerate(prompts)
    ]


def test_greedy_answers_have_our_generators_tokens_and_log_probabilities(vlm: VLM, engine: VllmEngine) -> None:
    asked = requests(vlm, 0.0, 0)
    ours, theirs = Generator(vlm).generate(asked), engine.generate(asked)
    for mine, other, colour in zip(ours, theirs, COLOURS, strict=True):
        assert other.token_ids == mine.token_ids and other.finish == mine.finish == "stop"
        assert other.text == mine.text and colour in other.text
        torch.testing.assert_close(torch.tensor(other.logprobs), torch.tensor(mine.logprobs), rtol=0, atol=ATOL)


def test_drawn_answers_repeat_with_their_seed_and_have_the_trainers_log_probabilities(
    vlm: VLM, engine: VllmEngine
) -> None:
    temperature = 2.0  # the trained model is certain; this makes it waver
    asked = requests(vlm, temperature, 7)
    first, again, other = (
        engine.generate(asked),
        engine.generate(asked[::-1])[::-1],
        engine.generate(requests(vlm, temperature, 99)),
    )
    assert [a.token_ids for a in first] == [a.token_ids for a in again]
    assert [a.token_ids for a in first] != [a.token_ids for a in other]
    documents = []
    for request, answer in zip(asked, first, strict=True):
        prompt, tokens = request.prompt, torch.tensor(answer.token_ids)
        mask = torch.cat([torch.zeros(len(prompt), dtype=torch.bool), torch.ones(len(tokens), dtype=torch.bool)])
        documents.append(
            Document(torch.cat([prompt.input_ids, tokens]), mask, prompt.pixel_values, prompt.image_grid_thw)
        )
    pack = Packer(Encoder(vlm.processor), vlm.model.config).pack(documents)
    with torch.no_grad():
        trainers = TrainableVLM(vlm.model)(pack, temperature=temperature, sampled=True).logprobs
    engines = torch.tensor([score for answer in first for score in answer.logprobs])
    assert float(engines.min()) < -0.5  # they did waver
    torch.testing.assert_close(engines, trainers, rtol=0, atol=ATOL)


def test_other_weights_are_refused_on_a_cpu_and_a_dead_process_is_an_error(vlm: VLM, engine: VllmEngine) -> None:
    engine.load_weights(1, None)
    with pytest.raises(EngineLost, match="packed copies of old weights"):
        engine.generate(requests(vlm, 0.0, 0)[:1])
    folders = list(Path(engine._folder).iterdir())
    assert [folder.name for folder in folders] == ["version-000001"]
    assert (folders[0] / "model.safetensors").exists()
