"""The replies of `POST /v1/chat/completions`: one object, or chunks (serving.md §2)."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from sightloom.serving.assemble import Piece
from sightloom.serving.engines.base import PromptUsage, Timing


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class PromptDetails(BaseModel):
    """Parts of the prompt."""

    cached_tokens: int
    image_tokens: int


class CompletionDetails(BaseModel):
    """Parts of the completion."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens: prompt (text and image), completion (reasoning and answer, all samples)."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class VoteExtension(BaseModel):
    """How the samples voted: how many were drawn, how many agree, their share of the well-formed ones."""

    n: int
    votes: int
    agreement: float


class ChoiceExtension(BaseModel):
    """How the thinking went."""

    thinking: Literal["complete", "truncated", "off", "malformed"]


class VotedExtension(ChoiceExtension):
    """The same of a choice that won a vote."""

    self_consistency: VoteExtension


class ReplyMessage(BaseModel):
    """The answer; both reasoning fields hold the same text, because clients are split over the name."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning_content: str | None
    reasoning: str | None
    refusal: None = None


class Choice(BaseModel):
    """One sample."""

    index: int
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None
    sightloom: VotedExtension | ChoiceExtension


class ChatCompletion(BaseModel):
    """The whole reply."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


@dataclass(slots=True)
class Tally:
    """Counts a reply's tokens over all its samples."""

    prompt: PromptUsage = field(default_factory=lambda: PromptUsage(0, 0))
    num_reasoning: int = 0
    num_answer: int = 0

    def add(self, piece: Piece) -> None:
        """Count a piece; the prompt, which all samples share, once."""
        self.prompt = piece.usage or self.prompt
        self.num_reasoning += piece.num_reasoning_tokens
        self.num_answer += piece.num_answer_tokens

    @property
    def total(self) -> int:
        """All tokens."""
        return self.prompt.prompt + self.num_reasoning + self.num_answer

    def usage(self) -> Usage:
        """The usage object."""
        return Usage(
            prompt_tokens=self.prompt.prompt,
            completion_tokens=self.num_reasoning + self.num_answer,
            total_tokens=self.total,
            prompt_tokens_details=PromptDetails(cached_tokens=self.prompt.cached, image_tokens=self.prompt.image),
            completion_tokens_details=CompletionDetails(reasoning_tokens=self.num_reasoning),
        )


@dataclass(slots=True)
class Draft:
    """One sample, gathered from its pieces."""

    reasoning: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    last: Piece | None = None
    timing: Timing | None = None

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        self.reasoning.append(piece.reasoning)
        self.answer.append(piece.answer)
        self.last = piece if piece.finish is not None else self.last
        self.timing = piece.timing or self.timing


@dataclass(frozen=True, slots=True)
class Head:
    """What is the same in all parts of one reply."""

    id: str
    model: str
    fingerprint: str
    include_reasoning: bool
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, drafts: Sequence[Draft], tally: Tally) -> ChatCompletion:
        """The whole reply."""
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            system_fingerprint=self.fingerprint,
            choices=[self._choice(index, draft) for index, draft in enumerate(drafts)],
            usage=tally.usage(),
        )

    def chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """One chunk of a stream."""
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        if usage is not None:
            chunk["usage"] = usage.model_dump()
        return chunk

    def opening(self, index: int) -> dict[str, Any]:
        """A sample's first chunk: its role."""
        return self.chunk([_delta(index, {"role": "assistant", "content": ""})])

    def pieces(self, piece: Piece, usage: Usage | None) -> list[dict[str, Any]]:
        """The chunks that a piece becomes: reasoning, then content, then the finish."""
        chunks = []
        if piece.reasoning and self.include_reasoning:
            texts = {"reasoning_content": piece.reasoning, "reasoning": piece.reasoning}
            chunks.append(self.chunk([_delta(piece.index, texts)], usage))
        if piece.answer:
            chunks.append(self.chunk([_delta(piece.index, {"content": piece.answer})], usage))
        if piece.finish is not None:
            last = _delta(piece.index, {}, piece.finish) | {"sightloom": _extension(piece).model_dump()}
            chunks.append(self.chunk([last], usage))
        return chunks

    def _choice(self, index: int, draft: Draft) -> Choice:
        assert draft.last is not None and draft.last.finish is not None
        reasoning = "".join(draft.reasoning) if self.include_reasoning else ""
        return Choice(
            index=index,
            message=ReplyMessage(
                content="".join(draft.answer), reasoning_content=reasoning or None, reasoning=reasoning or None
            ),
            finish_reason=draft.last.finish,
            sightloom=_extension(draft.last),
        )


def _extension(last: Piece) -> ChoiceExtension:
    assert last.thinking is not None
    if last.ballot is None:
        return ChoiceExtension(thinking=last.thinking)
    return VotedExtension(thinking=last.thinking, self_consistency=VoteExtension(**asdict(last.ballot)))


def _delta(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
