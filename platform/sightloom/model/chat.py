"""The chat format: how a conversation becomes tokens.

`render` is the same format as `CHAT_TEMPLATE`, without jinja, so that a data reader can encode thousands of documents a
second; the tests hold the two equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from sightloom.model.thinking import THINK_CLOSE, THINK_OPEN
from sightloom.records import Conversation, Message

IMAGE_PAD: Final = "<|image_pad|>"
IMAGE_PART: Final = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"
TURN_END: Final = "<|im_end|>"

# `generation` marks what the model must write. The mode (enable_thinking) is a matter of the last answer only.
CHAT_TEMPLATE: Final = """\
{%- macro words(content) -%}
  {%- if content is string -%}{{- content | trim -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- elif part.type == 'text' -%}{{- part.text | trim -}}
      {%- else -%}{{- raise_exception('a content part must be text or image, got ' ~ part.type) -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set asked = enable_thinking if enable_thinking is defined else none -%}
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\\n' -}}
  {%- if message.role == 'assistant' -%}
    {%- set thought = (message.reasoning or message.reasoning_content or '') | trim -%}
    {%- set mode = asked if loop.last else none -%}
    {%- if mode is true -%}{{- '<think>\\n' -}}
    {%- elif mode is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}
    {%- endif -%}
    {%- generation -%}
      {%- if thought and mode is not false -%}
        {{- ('' if mode is true else '<think>\\n') + thought + '\\n</think>\\n\\n' -}}
      {%- elif mode is true -%}{{- '</think>\\n\\n' -}}
      {%- endif -%}
      {{- words(message.content) + '<|im_end|>' -}}
    {%- endgeneration -%}
    {{- '\\n' -}}
  {%- else -%}
    {{- words(message.content) + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
  {%- if asked is true -%}{{- '<think>\\n' -}}
  {%- elif asked is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}
  {%- endif -%}
{%- endif -%}
"""

# vLLM's `hf` reasoning parser reads this and refuses any other name than `thinking`.
RESPONSE_TEMPLATE: Final[dict[str, Any]] = {
    "start_anchor": "<|im_start|>assistant\n",
    "defaults": {"role": "assistant"},
    "fields": {
        "thinking": {"open": THINK_OPEN, "close": THINK_CLOSE, "optional": True},
        "content": {"close": [TURN_END, "<|endoftext|>"], "optional": True},
    },
}


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A sequence of tokens with its pictures' patches; what packs and prompts are made of.

    Shapes: T tokens, P patches, D = channels · temporal patch · patch², n images.
    `pool` marks a text whose last token's state is its feature (contrastive alignment).
    """

    input_ids: torch.Tensor  # int64 [T], image tokens expanded
    loss_mask: torch.Tensor  # bool [T], what the model must write
    pixel_values: torch.Tensor | None = None  # float32 [P, D]
    image_grid_thw: torch.Tensor | None = None  # int64 [n, 3], in patches
    pool: bool = False

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_patches(self) -> int:
        return 0 if self.pixel_values is None else self.pixel_values.shape[0]


def render(messages: tuple[Message, ...], thinking: bool | None = None) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation and the character spans of what the model must write, one for each assistant turn."""
    text = ""
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        text += f"<|im_start|>{message.role}\n"
        words = (IMAGE_PART if message.image else "") + message.text.strip() + TURN_END
        if message.role == "assistant":
            mode = thinking if index == len(messages) - 1 else None
            thought = (message.reasoning or "").strip()
            text += _opening(mode)
            start = len(text)
            if thought and mode is not False:
                text += ("" if mode else f"{THINK_OPEN}\n") + f"{thought}\n{THINK_CLOSE}\n\n"
            elif mode is True:  # nothing to think about: the model closes the block that the prompt opened
                text += f"{THINK_CLOSE}\n\n"
            text += words
            spans.append((start, len(text)))
        else:
            text += words
        text += "\n"
    return text, spans


def _opening(mode: bool | None) -> str:
    if mode is None:
        return ""
    return f"{THINK_OPEN}\n" if mode else f"{THINK_OPEN}\n\n{THINK_CLOSE}\n\n"


class Encoder:
    """Conversations and pictures to documents, with a processor of the Qwen-VL kind."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer.backend_tokenizer
        images = processor.image_processor
        self._images = images
        self._patch = int(images.patch_size)
        self._merge = int(images.merge_size)
        self.bounds = (int(images.size["shortest_edge"]), int(images.size["longest_edge"]))  # pixels of a picture
        self.image_token_id: int = processor.image_token_id

    def encode(
        self,
        conversation: Conversation,
        image: Image.Image | None,
        turns: Literal["all", "last"] = "all",
        thinking: bool | None = None,
    ) -> Document:
        """A training document: the whole conversation, the model's part marked.

        Args:
            turns: mark every assistant turn, or only the last one.
            thinking: how the last answer is opened: True = `<think>` is given, which a turn without reasoning closes
                at once; False = an empty closed block is given and the reasoning left out; None = nothing is given.

        Raises:
            ValueError: no assistant turn, or an image turn without a picture.
        """
        if not any(message.role == "assistant" for message in conversation.messages):
            raise ValueError(f"conversation {conversation.id}: no assistant turn to learn from")
        text, spans = render(conversation.messages, thinking)
        return self._document(text, spans if turns == "all" else spans[-1:], _pictures(conversation, image))

    def prompt(
        self,
        conversation: Conversation,
        image: Image.Image | None,
        thinking: bool | None = None,
        more: Sequence[Image.Image] = (),
    ) -> Document:
        """What the model reads before it answers: all turns but a closing assistant turn, then its own opening.

        Args:
            more: further pictures of the turn that shows one, in order behind `image`.

        Raises:
            ValueError: an image turn without a picture, or `more` where not exactly one turn shows pictures.
        """
        messages = conversation.messages
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        text = render(messages)[0] + "<|im_start|>assistant\n" + _opening(thinking)
        if more and sum(message.image for message in messages) != 1:
            raise ValueError(f"conversation {conversation.id}: several pictures belong to one turn that shows them")
        text = text.replace(IMAGE_PART, IMAGE_PART * (1 + len(more)), 1)
        return self._document(text, [], [*_pictures(conversation, image), *more])

    def caption(self, text: str) -> Document:
        """A caption alone; the state at its `<|im_end|>` is the text feature of contrastive alignment."""
        document = self._document(text.strip() + TURN_END, [], [])
        return Document(document.input_ids, document.loss_mask, pool=True)

    def blank(self) -> Document:
        """A document with the least picture and no label: it keeps the vision tower of an image-free rank in step."""
        part = self._tokenizer.encode(IMAGE_PART, add_special_tokens=False).ids
        width = 3 * int(self._images.temporal_patch_size) * self._patch**2
        ids = torch.tensor(part)
        grid = torch.tensor([[1, self._merge, self._merge]])
        return Document(ids, torch.zeros(len(part), dtype=torch.bool), torch.zeros(self._merge**2, width), grid)

    def num_image_tokens(self, width: int, height: int) -> int:
        """How many tokens a picture of that size becomes, without touching a pixel."""
        return self.num_patches(width, height) // self._merge**2

    def num_patches(self, width: int, height: int) -> int:
        """How many ViT patches a picture of that size becomes."""
        rows, columns = smart_resize(height, width, self._patch * self._merge, *self.bounds)
        return (rows // self._patch) * (columns // self._patch)

    def num_tokens(self, text: str) -> int:
        """How many tokens a rendered text has, each image counted as one placeholder."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def pixels(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches float32 [P, D] and grid int64 [1, 3] of one picture.

        Raises:
            ValueError: an aspect ratio beyond 200.
        """
        features = self._images(images=[image.convert("RGB")], return_tensors="pt")
        return features["pixel_values"], features["image_grid_thw"]

    def _document(self, text: str, spans: list[tuple[int, int]], images: Sequence[Image.Image]) -> Document:
        """`images`: one for every place that the text leaves for a picture, or a single one for all of them."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.int64)
        mask = np.zeros(len(ids), np.bool_)
        if spans:
            starts = np.fromiter((start for start, _ in encoding.offsets), np.int64, len(ids))
            for start, end in spans:
                mask |= (starts >= start) & (starts < end)
        if not images:
            return Document(torch.from_numpy(ids), torch.from_numpy(mask))
        places = ids == self.image_token_id
        parts = [self.pixels(image) for image in images]
        if len(parts) == 1:
            parts *= int(places.sum())
        repeats = np.ones(len(ids), np.int64)
        repeats[places] = [len(pixels) // self._merge**2 for pixels, _ in parts]
        return Document(
            torch.from_numpy(ids.repeat(repeats)),
            torch.from_numpy(mask.repeat(repeats)),
            parts[0][0] if len(parts) == 1 else torch.cat([pixels for pixels, _ in parts]),
            parts[0][1] if len(parts) == 1 else torch.cat([grid for _, grid in parts]),
        )


def _pictures(conversation: Conversation, image: Image.Image | None) -> list[Image.Image]:
    if not conversation.has_image:
        return []
    if image is None:
        raise ValueError(f"conversation {conversation.id}: a turn shows an image, but no picture is given")
    return [image]
