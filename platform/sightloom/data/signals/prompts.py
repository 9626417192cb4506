"""Built-in prompt sets of banks: for each label its prompts; `{}` in a prompt is the label's own words."""

from __future__ import annotations

PROMPTS: dict[str, dict[str, tuple[str, ...]]] = {
    "domain": {
        "natural": ("a photo", "a photograph of a real place", "a photo of people", "a photo of an object"),
        "document": ("a scanned document", "a page of printed text", "a receipt or an invoice", "a filled-in form"),
        "science": (
            "a scientific figure",
            "a chart with axes and a legend",
            "a geometric diagram from a textbook",
            "a microscope or medical image",
        ),
        "ui": (
            "a screenshot of a web page",
            "a screenshot of a mobile app",
            "a screenshot of a computer program with buttons and menus",
        ),
        "art": ("a painting", "a drawing", "a digital illustration", "a cartoon", "a computer-generated rendering"),
    },
    "nsfw": {
        "safe": (
            "a photo that is safe for work",
            "an ordinary photo of everyday life",
            "a photo of dressed people",
            "a neutral picture without people",
        ),
        "unsafe": (
            "a pornographic picture",
            "a nude person",
            "a sexually explicit photo",
            "a gory picture of violence and blood",
        ),
    },
    "watermark": {
        "clean": ("a clear image without any text on it", "a photo without a watermark"),
        "marked": (
            "an image with a watermark",
            "a stock photo with a watermark across it",
            "a photo with a logo or a copyright notice printed over it",
        ),
    },
}
