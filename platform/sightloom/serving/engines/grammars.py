"""JSON Schemas as constraints of the transformers engine's decode loop, by xgrammar, as vLLM uses it."""

from collections.abc import Sequence
from typing import Any

import torch
import xgrammar

from sightloom.serving.errors import invalid


class Grammars:
    """Compiles schemas for one tokenizer; compiled ones are kept.

    Args:
        tokenizer: a Hugging Face tokenizer.
        vocab_size: width of the model's logits.
        marks: think marks, which stand in no answer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, marks: Sequence[int]) -> None:
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=True, cache_limit_bytes=64 * 2**20)
        self._vocab_size = vocab_size
        self._marks = torch.tensor(list(marks), dtype=torch.int64)

    def constraint(self, schema: str) -> "GrammarConstraint":
        """The constraint of one answer.

        Raises:
            ApiError: 400 `invalid_schema`.
        """
        try:
            compiled = self._compiler.compile_json_schema(schema, any_whitespace=False, separators=(",", ":"))
        except RuntimeError as error:
            raise invalid("the schema cannot be used", "response_format", "invalid_schema") from error
        return GrammarConstraint(xgrammar.GrammarMatcher(compiled), self._vocab_size, self._marks)


class GrammarConstraint:
    """What one answer may go on with; behind its end only the model's end tokens."""

    def __init__(self, matcher: xgrammar.GrammarMatcher, vocab_size: int, marks: torch.Tensor) -> None:
        self._matcher = matcher
        self._mask = xgrammar.allocate_token_bitmask(1, vocab_size)
        self._marks = marks

    def mask(self, logits_V: torch.Tensor) -> None:
        """Give the tokens that may not be next a logit of -inf, in place."""
        if self._matcher.is_terminated():
            return
        self._matcher.fill_next_token_bitmask(self._mask)
        xgrammar.apply_token_bitmask_inplace(logits_V[None], self._mask.to(logits_V.device))
        logits_V[self._marks.to(logits_V.device)] = -torch.inf

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
        if not self._matcher.is_terminated():
            self._matcher.accept_token(token)
