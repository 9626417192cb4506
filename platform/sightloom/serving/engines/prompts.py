"""Prompts of the transformers engine: messages and pictures, through the model's own chat template, to a document."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from sightloom.model.chat import Document, Encoder
from sightloom.serving.engines.base import EngineRequest
from sightloom.serving.errors import ApiError, invalid


class PromptMaker:
    """Makes prompts with a processor of the Qwen-VL kind; equal to `Encoder.prompt` where that one applies."""

    def __init__(self, processor: Any, max_model_len: int) -> None:
        self._processor = processor
        self._encoder = Encoder(processor)
        self._tokenizer = processor.tokenizer.backend_tokenizer
        self._merge = int(processor.image_processor.merge_size) ** 2
        self._window = max_model_len
        control = {*processor.tokenizer.all_special_tokens, *processor.tokenizer.get_added_vocab()}
        self._control = sorted(token for token in control if token)

    def prompt(self, request: EngineRequest) -> Document:
        """The document that the model reads.

        Raises:
            ApiError: 400: a text holds one of the model's control tokens (it could pose as another role), a picture
                does not suit the model, or the prompt leaves no room in the window.
        """
        messages = []
        order: list[int] = []
        for place, turn in enumerate(request.messages):
            parts: list[dict[str, str]] = []
            for part in turn.parts:
                if isinstance(part, int):
                    order.append(part)
                    parts.append({"type": "image"})
                    continue
                if found := next((token for token in self._control if token in part), None):
                    raise invalid(f"the text holds the control token '{found}'", f"messages[{place}].content")
                parts.append({"type": "text", "text": part})
            messages.append({"role": turn.role, "content": parts})
        enabled = request.thinking.enabled
        mode = {} if enabled is None else {"enable_thinking": enabled}
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **mode)
        document = self._document(text, [request.images[index] for index in order])
        if len(document) >= self._window:
            raise ApiError(
                400,
                "context_length_exceeded",
                f"the prompt has {len(document)} tokens; the model's window holds {self._window}, the answer included",
                "messages",
            )
        return document

    def num_image_tokens(self, document: Document) -> int:
        """How many of the prompt's tokens are pictures."""
        return int((document.input_ids == self._encoder.image_token_id).sum())

    def _document(self, text: str, images: list[bytes]) -> Document:
        ids = np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        no_loss = torch.zeros(len(ids), dtype=torch.bool)
        if not images:
            return Document(torch.from_numpy(ids), no_loss)
        try:
            pixels = [self._encoder.pixels(Image.open(io.BytesIO(image))) for image in images]
        except ValueError as error:
            raise invalid(f"a picture does not suit the model: {error}", "messages", "invalid_image") from error
        repeats = np.ones(len(ids), np.int64)
        repeats[ids == self._encoder.image_token_id] = [len(patches) // self._merge for patches, _ in pixels]
        ids = ids.repeat(repeats)
        return Document(
            torch.from_numpy(ids),
            torch.zeros(len(ids), dtype=torch.bool),
            torch.cat([patches for patches, _ in pixels]),
            torch.cat([grid for _, grid in pixels]),
        )
