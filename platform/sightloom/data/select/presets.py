"""The selections of published recipes, as plain data; own rules and tops of a recipe come after theirs.

Sources: DataComp (arXiv:2304.14108, basic filtering, CLIP score, image-based ∩ CLIP), LAION-2B (arXiv:2210.08402), DFN
(arXiv:2309.17425, the best fifth by a filter network). `clip_l14`, `clip_b32` and `clip_filter` are scorers called
`l14`, `b32` and `filter` in `score.clip`; `head_image` is a head that is positive near the wanted image clusters.
"""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["datacomp-basic", "laion", "clip-top30", "filter-top20", "image-and-clip", "instruct"]

PRESETS: dict[str, dict[str, Any]] = {
    "datacomp-basic": {
        "rules": {
            "not_english": "text_lang == 'en'",
            "few_words": "text_words > 2",
            "few_characters": "text_chars > 5",
            "short_side": "min(width, height) >= 200",
            "elongated": "aspect <= 3",
        }
    },
    "laion": {"rules": {"not_english": "text_lang == 'en'", "low_clip": "clip_b32 >= 0.28"}},
    "clip-top30": {"top": [{"by": "clip_l14", "fraction": 0.3}]},
    "filter-top20": {"top": [{"by": "clip_filter", "fraction": 0.2}]},
    "image-and-clip": {
        "rules": {"far_from_clusters": "head_image > 0"},
        "top": [{"by": "clip_l14", "fraction": 0.3, "of": "input"}],
    },
    "instruct": {
        "rules": {
            "not_a_record": "kind in ['conversation', 'preference']",
            "no_answer": "turns > 0 or not is_null(answer_kind)",
        }
    },
}
