"""Cosines of pictures with captions by any open_clip model, for CLIPScore."""

from collections.abc import Sequence

import numpy as np
import torch

from sightloom.data.decode import decode
from sightloom.data.signals.clip import ClipModel
from sightloom.data.signals.config import ClipScorer, DecodeLimits
from sightloom.data.signals.crops import crop
from sightloom.data.signals.scorers import resolve
from sightloom.evaluation.captions import Cosines


def caption_cosines(scorer: ClipScorer) -> Cosines:
    """A function of N pictures and N captions to N cosines; the same preprocessing as in curation.

    Raises:
        UserMistake: no such model or weights.
    """
    spec = resolve(scorer)
    model = ClipModel(spec, "cuda" if torch.cuda.is_available() else "cpu")

    def cosines(images: Sequence[bytes], captions: Sequence[str]) -> list[float]:
        crops_NHWC = np.stack([crop(decode(image, DecodeLimits()).image, spec.crop) for image in images])
        return [float(value) for value in model.score(crops_NHWC, captions).cosine_N]

    return cosines
