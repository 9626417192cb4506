"""How close a caption comes to what people wrote: CIDEr-D, and CLIPScore without any reference."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

_MAX_N: Final = 4
_SIGMA: Final = 6.0
_WORD = re.compile(r"\w+(?:['’]\w+)?")
CLIP_SCORE_WEIGHT: Final = 2.5

Grams = list[Counter[tuple[str, ...]]]
Cosines = Callable[[Sequence[bytes], Sequence[str]], list[float]]  # of each picture with its own text


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each candidate (Vedantam et al. 2015): 0 for nothing in common, 10 for the one reference itself.

    TF-IDF vectors of n-grams (n = 1 … 4), the candidate's counts clipped to the reference's, times a Gaussian penalty
    on the difference in length (σ = 6), averaged over n and references, times 10. Document frequencies come from
    `references`, so a value is comparable only within its set. Words are lower-cased runs of letters and digits, where
    the published script uses the Penn Treebank tokenizer; words are not stemmed, as in that script.

    Args:
        candidates: one caption a picture.
        references: the people's captions of each picture, at least one.

    Raises:
        ValueError: the two differ in length, or a picture has no reference.
    """
    if len(candidates) != len(references) or not all(references):
        raise ValueError("every candidate needs its references")
    cooked = [[_grams(text) for text in texts] for texts in references]
    frequency = Counter(gram for texts in cooked for gram in {gram for grams in texts for n in grams for gram in n})
    log_pictures = math.log(max(len(references), 1))

    def vectors(grams: Grams) -> list[dict[tuple[str, ...], float]]:
        return [
            {gram: count * (log_pictures - math.log(max(1.0, frequency[gram]))) for gram, count in n.items()}
            for n in grams
        ]

    scores = []
    for candidate, texts in zip(candidates, cooked, strict=True):
        its = _grams(candidate)
        vector, length = vectors(its), its[1].total()
        total = 0.0
        for grams in texts:
            penalty = math.exp(-((length - grams[1].total()) ** 2) / (2 * _SIGMA**2))
            for ours, theirs in zip(vector, vectors(grams), strict=True):
                norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
                if norms:
                    common = sum(
                        min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs
                    )
                    total += penalty * common / norms
        scores.append(10 * total / _MAX_N / len(texts))
    return scores


def clip_scores(cosines: Sequence[float]) -> list[float]:
    """CLIPScore of each cosine between a picture and its caption: 2.5 · max(cosine, 0) (Hessel et al. 2021)."""
    return [CLIP_SCORE_WEIGHT * max(cosine, 0.0) for cosine in cosines]


def _grams(text: str) -> Grams:
    """Counts of the n-grams of each n."""
    words = _WORD.findall(text.lower())
    return [
        Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1)) for n in range(1, _MAX_N + 1)
    ]
