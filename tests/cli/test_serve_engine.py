"""`sightloom serve`: which engine the options ask for."""

import pytest

from sightloom.errors import UserMistake
from sightloom.serving.clip import ClipSettings, clip_settings
from sightloom.serving.engines.settings import TransformersSettings, VllmSettings, engine_settings


def test_each_engine_gets_its_options() -> None:
    assert engine_settings("transformers", None, None, [], 0, "bfloat16", "cuda") == TransformersSettings(
        dtype="bfloat16", device="cuda"
    )
    extra = ["tensor-parallel-size=2", "enforce-eager", "gpu-memory-utilization=0.8"]
    assert engine_settings("vllm", "/v/python", None, extra, 2, "auto", "cpu") == VllmSettings(
        python="/v/python",
        extra_args={"tensor-parallel-size": 2, "enforce-eager": True, "gpu-memory-utilization": 0.8},
        num_gpus=2,
    )
    assert engine_settings("http://h:8000", None, "key", [], 0, "auto", "cpu") == VllmSettings(
        url="http://h:8000", key_file="key"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("transformers", "/v/python", None, [], 0), "belong to vLLM"),
        (("transformers", None, None, [], 1), "belong to vLLM"),
        (("tgi", None, None, [], 0), "is not known"),
        (("vllm", None, None, ["allowed-local-media-path=/"], 0), "extra_args"),
        (("http://h:8000", "/v/python", None, [], 0), "means nothing beside 'url'"),
    ],
)
def test_options_that_do_not_belong_together_are_said(options: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserMistake, match=message):
        engine_settings(*options, "auto", "cpu")  # type: ignore[arg-type]


def test_clip_models_have_names() -> None:
    assert clip_settings(["b=ViT-B-32,openai", "own=local-dir:/models/own"]) == {
        "b": ClipSettings(model="ViT-B-32", pretrained="openai"),
        "own": ClipSettings(model="local-dir:/models/own"),
    }
    with pytest.raises(UserMistake, match="has no name"):
        clip_settings(["ViT-B-32"])
