"""What is said about a step's rollouts: rewards by part and domain, lengths, and how many groups carried signal."""

import math
from collections.abc import Sequence
from typing import Final

from sightloom.training.parallel import Workers
from sightloom.training.rollout_rows import PARTS, Group

# `rollout/length` is the number of tokens, not what is paid for it
_NAMES: Final = {name: name for name in (*PARTS, "reward")} | {"length": "length_reward"}


def rollout_numbers(
    everything: Sequence[Group], kept: Sequence[Group], seconds: float, workers: Workers
) -> dict[str, float]:
    """Numbers over all workers, the same on each; they call it together.

    `kept_share` of the groups were trained on; `flat_share` had equal rewards; `unscored` responses have no reward.
    """
    total: dict[str, float] = {}
    for part in workers.gather(_sums(everything, kept)):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    seconds = max(workers.gather(seconds))
    count, groups = max(total["responses"], 1.0), max(total["groups"], 1.0)
    numbers = {
        "rollout/length": total["tokens"] / count,
        "rollout/stopped_share": total["stopped"] / count,
        "rollout/groups": total["groups"],
        "rollout/kept_share": total["kept"] / groups,
        "rollout/flat_share": total["flat"] / groups,
        "rollout/unscored": total["unscored"],
        "rollout/seconds": seconds,
        "rollout/tokens_per_s": total["tokens"] / max(seconds, 1e-9),
    }
    for name, value in total.items():
        if name.startswith("of/"):
            numbers[f"rollout/{name[3:]}"] = value / max(total["num/" + name[3:]], 1.0)
    return numbers


def _sums(everything: Sequence[Group], kept: Sequence[Group]) -> dict[str, float]:
    sums = dict.fromkeys(("responses", "tokens", "stopped", "flat", "unscored"), 0.0)
    for name in _NAMES.values():
        sums[f"of/{name}"] = sums[f"num/{name}"] = 0.0
    for group in everything:
        sums["flat"] += len({response.reward for response in group.responses}) == 1
        for response in group.responses:
            sums["responses"] += 1
            sums["tokens"] += response.generation.num_tokens
            sums["stopped"] += response.generation.finish == "stop"
            sums["unscored"] += math.isnan(response.reward)
            for part, value in {**response.parts, "reward": response.reward}.items():
                if math.isnan(value):
                    continue
                for key in (_NAMES[part], f"{group.domain}/{_NAMES[part]}"):
                    sums[f"of/{key}"] = sums.get(f"of/{key}", 0.0) + value
                    sums[f"num/{key}"] = sums.get(f"num/{key}", 0.0) + 1
    return sums | {"groups": float(len(everything)), "kept": float(len(kept))}
