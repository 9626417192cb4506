"""A trained reward model: a model folder with one more file, the weights of the head that scores answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sightloom.errors import UserMistake
from sightloom.model.chat import Encoder
from sightloom.model.heads import RewardHead, TrainableVLM
from sightloom.model.load import load
from sightloom.model.packs import pack_documents
from sightloom.records import Conversation

HEAD_FILE: Final = "reward_head.safetensors"


def save_head(head: RewardHead, folder: Path) -> None:
    """Write the head beside the model's own weights."""
    save_file({name: value.contiguous() for name, value in head.state_dict().items()}, folder / HEAD_FILE)


class RewardModel:
    """Scores the last answer of a conversation; only differences between answers to the same question mean something.

    Args:
        source: a folder that an `rm` stage exported, or its address in an object store.

    Raises:
        UserMistake: no model there, or one without a reward head.
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        vlm = load(source, device=device)
        if not (vlm.folder / HEAD_FILE).is_file():
            raise UserMistake(f"'{source}' is no reward model: it has no {HEAD_FILE}", "give the export of an rm stage")
        head = RewardHead(vlm.model.config.get_text_config().hidden_size).to(device)
        head.load_state_dict(load_file(vlm.folder / HEAD_FILE, device=device))
        self._model: Any = TrainableVLM(vlm.model, head).eval()
        self._encoder, self._device = Encoder(vlm.processor), device

    @torch.no_grad()
    def score(self, conversation: Conversation, image: Image.Image | None, thinking: bool | None = None) -> float:
        """The reward of the conversation's last turn; `thinking` as the model was trained (None: no worked steps)."""
        document = self._encoder.encode(conversation, image, "last", thinking)
        ended = replace(document, pool=True)
        pack = pack_documents([ended], self._model.image_token_id, self._model.merge_size).to(self._device)
        return float(self._model(pack, want=("reward",)).rewards[0])
