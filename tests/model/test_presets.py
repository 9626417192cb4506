import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from sightloom.errors import UserMistake
from sightloom.model.modules import describe
from sightloom.model.presets import PRESETS, build_config, get_preset

# Millions of parameters: vision, fusion, decoder with embedding, untied head; training.md §2.
COUNTS = {
    "2b": (306, 101, 1409 + 311, 0),
    "4b": (306, 109, 3634 + 389, 0),
    "8b": (416, 161, 6946 + 622, 622),
    "32b": (416, 179, 31206 + 778, 778),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_size_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(build_config(name))
    assert [round(count / 1e6) for count in describe(model).values()] == pytest.approx(COUNTS[name], abs=1)


def test_an_unknown_preset_is_a_user_mistake_that_names_the_known_ones() -> None:
    with pytest.raises(UserMistake, match=r"nanoo.*nano, micro, 2b"):
        get_preset("nanoo")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_rotary_sections_fill_half_a_head_and_pictures_fit_the_position_grid(preset) -> None:
    assert sum(preset.mrope) == preset.head_dim // 2
    assert preset.patch_size * 2 <= preset.min_pixels**0.5
    assert max(preset.fused_blocks) < preset.vision_depth
