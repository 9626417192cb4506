"""The engine protocol: what the endpoint asks of an engine, and what comes back (serving.md §4).

Everything here travels through Ray Serve handles, so it is plain frozen data.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Finish = Literal["stop", "length"]
Pieces = Literal["token", "streamed", "large"]
Outcome = Literal["complete", "truncated", "off", "malformed"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; every value is explicit, the endpoint has resolved the defaults."""

    temperature: float
    top_p: float
    top_k: int  # 0 = all
    seed: int
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False
    seeded: bool = True  # the client gave the seed: the same answer is expected again


@dataclass(frozen=True, slots=True)
class Thinking:
    """Whether the model thinks before it answers.

    `enabled`: True = the prompt opens the think block, False = it holds an empty closed one, None = the model decides.
    `budget`: most reasoning tokens, None = as many as fit. `reserve`: tokens that are kept free for the answer.
    """

    enabled: bool | None
    budget: int | None
    reserve: int

    def effective_budget(self, max_tokens: int) -> int:
        """Most reasoning tokens in a reply of `max_tokens`, so that the reply ends with an answer.

        A bound that is not larger than the reserve is split in half.
        """
        room = max_tokens - self.reserve if max_tokens > self.reserve else max(1, max_tokens // 2)
        return room if self.budget is None else min(self.budget, room)


@dataclass(frozen=True, slots=True)
class ThinkingPolicy:
    """What an export says about thinking: its default, the meaning of efforts in tokens, the answer's reserve."""

    default: bool | None = None
    efforts: Mapping[str, int] = field(
        default_factory=lambda: {"minimal": 64, "low": 256, "medium": 1024, "high": 4096}
    )
    reserve: int = 128


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: its role and its parts in order; a `str` is text, an `int` the index of a picture."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sample to generate.

    `grammar`: the JSON Schema, as text, that binds the answer, not the thinking. `pieces`: a delta is a token (a stop
    string is looked for, and the tokens up to it are counted), as much as a reader along wants, or all that comes.
    `traceparent`: the span that the engine's own belong below, empty for none.
    """

    request_id: str
    messages: tuple[Turn, ...]
    images: tuple[bytes, ...]  # encoded, checked, still, upright, RGB
    sampling: Sampling
    thinking: Thinking
    max_tokens: int
    deadline_s: float
    grammar: str | None = None
    pieces: Pieces = "streamed"
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class PromptUsage:
    """Tokens of a prompt; `image` of `prompt` are a picture's, `cached` were not computed again."""

    prompt: int
    image: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds from the engine's receipt: until the batch began, until the first token, until the last."""

    queue_s: float
    first_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a reply; several tokens are gathered into one. Counts are of this piece.

    The first carries `usage`, the last `finish`, `thinking` and `timing`.
    """

    reasoning: str = ""
    answer: str = ""
    num_reasoning_tokens: int = 0
    num_answer_tokens: int = 0
    usage: PromptUsage | None = None
    finish: Finish | None = None
    thinking: Outcome | None = None
    timing: Timing | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and can do. A parameter that is not in `features` is refused by the endpoint.

    `limits`: what it does worse than others, in words.
    """

    kind: str
    version: str
    digest: str
    max_model_len: int
    dtype: str
    features: frozenset[str]
    thinking: ThinkingPolicy
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    limits: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes with the weights and with the engine."""
        return f"sightloom-v{self.version}-{self.digest[:8]}-{self.kind}"


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is; `kv_used` as a share, None where the engine has no such cache.

    `restarts`: how often it was started again since it began, by reason.
    """

    alive: bool
    running: int
    waiting: int
    kv_used: float | None = None
    restarts: Mapping[str, int] = field(default_factory=dict)


class Engine(Protocol):
    """Turns requests into replies; several at a time. `startup`: seconds of the last start's parts."""

    startup: dict[str, float]

    @property
    def info(self) -> EngineInfo:
        """What the engine is; known after `start`."""
        ...

    async def start(self) -> None:
        """Load the model; returns when a warm-up picture has been answered."""
        ...

    def generate(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Answer one request; closing the iterator aborts it.

        Raises:
            ApiError: the request cannot be answered (too long for the window, a picture beyond the model).
        """
        ...

    def load(self) -> EngineLoad:
        """How busy it is now."""
        ...

    def check(self) -> None:
        """See that the engine still can answer, now or after a restart of its own.

        Raises:
            SightloomError: it has ended for good and must be replaced.
        """
        ...

    async def stop(self, grace_s: float) -> None:
        """Let running requests end for `grace_s` seconds, then end."""
        ...
