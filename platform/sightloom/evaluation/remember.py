"""Answers that were given before are not asked for again: a champion is the baseline of many gates.

Kept are the answers and not their scores, so that both sides of a gate are always judged by the same code. The key
holds the digests of model and questions, the decoding, the way of asking (an engine behind an address, or this process)
and Sightloom's version; what failed is not kept, and speed is none of this.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import sightloom
from sightloom import storage
from sightloom.config import canonical_json
from sightloom.evaluation.answerers import Answerer, Prediction, nobody
from sightloom.evaluation.endpoint import EndpointAnswerer
from sightloom.evaluation.examples import Example, suite_digest
from sightloom.evaluation.result import Decoding

_log = logging.getLogger(__name__)


class Remembering:
    """Answers for somebody whose answers are kept in a folder.

    Args:
        asked: who answers what is not there yet.
        folder: of the answers.
        digest: of the model's files; empty: nothing is kept.
        decoding: how answers are drawn.
    """

    def __init__(self, asked: Answerer, folder: Path, digest: str, decoding: Decoding) -> None:
        self.asked, self._folder, self._digest, self._decoding = asked, folder, digest, decoding

    def answer(
        self,
        examples: Sequence[Example],
        thinking: bool | None,
        max_new_tokens: int,
        done: Callable[[int], None] = nobody,
    ) -> list[Prediction]:
        """See `Answerer.answer`."""
        file = self._file(examples)
        known = None if file is None else _read(file, examples)
        if known is not None:
            _log.info("the answers of %s… are known: %s", self._digest[:12], file)
            done(len(examples))
            return known
        found = self.asked.answer(examples, thinking, max_new_tokens, done)
        if file is not None and not any(prediction.error for prediction in found):
            lines = [canonical_json(asdict(prediction)) for prediction in found]
            storage.write(str(file), b"\n".join(lines) + b"\n")
        return found

    def _file(self, examples: Sequence[Example]) -> Path | None:
        way = self.asked.way() if isinstance(self.asked, EndpointAnswerer) else type(self.asked).__name__
        if not self._digest or not way:
            return None
        parts = [self._digest, suite_digest(examples), self._decoding.model_dump(), way, sightloom.__version__]
        return self._folder / f"{hashlib.sha256(canonical_json(parts)).hexdigest()}.jsonl"


def _read(file: Path, examples: Sequence[Example]) -> list[Prediction] | None:
    """The answers in order of the questions; None where there are none, or they are not these questions'."""
    if not file.is_file():
        return None
    try:
        kept = {its.id: its for its in (Prediction(**json.loads(line)) for line in file.read_text().splitlines())}
        return [kept[example.id] for example in examples]
    except (ValueError, TypeError, KeyError) as error:
        _log.warning("the answers in '%s' are damaged and asked for again: %s", file, error)
        return None
