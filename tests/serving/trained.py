"""A nano export that was trained for seconds on a few colours: it thinks before it answers, and is certain.

Random weights cannot tell two engines apart from noise: their tokens are ties, and they never close a think block.
"""

import io
from pathlib import Path

import torch
from PIL import Image

from sightloom.model.chat import Encoder
from sightloom.model.load import load
from sightloom.model.scratch import build_folder
from sightloom.records import Conversation, Message

COLOURS = {
    "red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40), "white": (250,) * 3,
}  # fmt: skip
QUESTION = "What colour is the picture?"
STEPS = 120


def plain(colour: str, size: int = 64) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", (size, size), COLOURS[colour])


def encoded(colour: str, size: int = 64) -> bytes:
    """The same as a PNG file."""
    buffer = io.BytesIO()
    plain(colour, size).save(buffer, "PNG")
    return buffer.getvalue()


def thought(colour: str) -> str:
    """What the model was taught to think."""
    return f"I look at each part of it. Every pixel that I see is {colour}, so the whole picture is {colour}."


def conversation(colour: str, reasoning: bool) -> Conversation:
    """A question with its answer."""
    answer = Message("assistant", f"It is {colour}.", reasoning=thought(colour) if reasoning else None)
    return Conversation(
        f"c-{colour}", "conversation", "colour", "natural", (Message("user", QUESTION, image=True), answer)
    )


def make_trained(folder: Path) -> Path:
    """Build and train it; the same folder each time."""
    texts = [QUESTION, *(f"{thought(colour)} It is {colour}." for colour in COLOURS)] * 4
    build_folder("nano", texts, folder, seed=5)
    vlm = load(str(folder))
    encoder = Encoder(vlm.processor)
    documents = [
        encoder.encode(conversation(colour, mode is not False), plain(colour), thinking=mode)
        for colour in COLOURS
        for mode in (None, True, False)
    ]
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=2e-3, weight_decay=0.0)
    vlm.model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 10, (STEPS - step) / 40)
        optimizer.zero_grad()
        for document in documents:
            labels = document.input_ids.masked_fill(~document.loss_mask, -100)
            loss = vlm.model(
                input_ids=document.input_ids[None],
                mm_token_type_ids=(document.input_ids == encoder.image_token_id).int()[None],
                pixel_values=document.pixel_values,
                image_grid_thw=document.image_grid_thw,
                labels=labels[None],
            ).loss
            (loss / len(documents)).backward()
        optimizer.step()
    vlm.model.eval().save_pretrained(folder)
    return folder
