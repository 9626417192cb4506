"""From a valid chat request to what an engine is asked: every default filled in, what the engine cannot do refused."""

import secrets
from dataclasses import replace

from sightloom.serving.engines.base import EngineInfo, EngineRequest, Sampling, Thinking, Turn
from sightloom.serving.errors import ApiError, invalid, unsupported
from sightloom.serving.media import Reference
from sightloom.serving.protocol import ChatRequest, TextPart

DEFAULT_MAX_TOKENS = 1024


def references(chat: ChatRequest) -> list[Reference]:
    """The pictures of a request, in order."""
    return [
        Reference(part.image_url.url, part.image_url.detail, f"messages[{i}].content[{j}].image_url.url")
        for i, message in enumerate(chat.messages)
        if not isinstance(message.content, str)
        for j, part in enumerate(message.content)
        if not isinstance(part, TextPart)
    ]


def check_features(chat: ChatRequest, info: EngineInfo) -> None:
    """Refuse what was asked for and the engine cannot do.

    Raises:
        ApiError: 400 `unsupported_parameter`.
    """
    structured = chat.response_format is not None and chat.response_format.type != "text"
    asked = {
        "min_p": ("min_p", chat.min_p != 0),
        "repetition_penalty": ("penalties", chat.repetition_penalty != 1),
        "presence_penalty": ("penalties", chat.presence_penalty != 0),
        "frequency_penalty": ("penalties", chat.frequency_penalty != 0),
        "top_k": ("top_k", (chat.top_k or 0) > 0),
        "ignore_eos": ("ignore_eos", chat.ignore_eos),
        "response_format": ("structured_output", structured),
        "messages": ("images", bool(references(chat))),
    }
    for param, (feature, wanted) in asked.items():
        if wanted and feature not in info.features:
            raise unsupported(param, f"the engine '{info.kind}' has no {feature.replace('_', ' ')}")


def most_tokens(chat: ChatRequest, info: EngineInfo) -> int:
    """The most tokens that a request may use, all samples together; a token of text is taken for four characters."""
    vote = chat.sightloom.self_consistency
    samples = chat.n if vote is None else vote.n
    texts = sum(len(part) for turn in _turns(chat) for part in turn.parts if isinstance(part, str))
    return texts // 4 + samples * min(_bound(chat), info.max_model_len)


def resolve(
    chat: ChatRequest,
    images: list[bytes],
    info: EngineInfo,
    request_id: str,
    deadline_s: float,
    grammar: str | None = None,
    traceparent: str = "",
) -> list[EngineRequest]:
    """The engine requests, one a sample.

    Where a grammar binds the answer and thinking is left to the model, it is off: whether the model will think is not
    known before its first token, and the grammar must begin somewhere.

    Raises:
        ApiError: 400: parameters that contradict each other.
    """
    temperature = info.temperature if chat.temperature is None else chat.temperature
    vote = chat.sightloom.self_consistency
    if vote is not None:
        if chat.n > 1:
            raise invalid("'n': a vote has one winner; leave it out beside 'sightloom.self_consistency'", "n")
        if chat.temperature not in (None, vote.temperature):
            raise _disagree("temperature", "sightloom.self_consistency.temperature")
        temperature = vote.temperature
    if chat.n > 1 and temperature == 0:
        raise invalid("'n': at temperature 0 all samples are the same; ask for one", "n")
    seed = secrets.randbits(62) if chat.seed is None else chat.seed
    thinking = _thinking(chat, info)
    if grammar is not None and thinking.enabled is None and "thinking" in info.features:
        thinking = replace(thinking, enabled=False)
    first = EngineRequest(
        request_id=request_id,
        messages=_turns(chat),
        images=tuple(images),
        sampling=Sampling(
            temperature=temperature,
            top_p=info.top_p if chat.top_p is None else chat.top_p,
            top_k=max(0, info.top_k if chat.top_k is None else chat.top_k),
            seed=seed,
            min_p=chat.min_p,
            repetition_penalty=chat.repetition_penalty,
            presence_penalty=chat.presence_penalty,
            frequency_penalty=chat.frequency_penalty,
            ignore_eos=chat.ignore_eos,
            seeded=chat.seed is not None,
        ),
        thinking=thinking,
        max_tokens=_bound(chat),
        deadline_s=deadline_s,
        grammar=grammar,
        traceparent=traceparent,
        pieces="token" if chat.stops else "streamed" if chat.stream and vote is None else "large",
    )
    return [
        replace(first, request_id=f"{request_id}-{index}", sampling=replace(first.sampling, seed=seed + index))
        for index in range(chat.n if vote is None else vote.n)
    ]


def _bound(chat: ChatRequest) -> int:
    return chat.max_completion_tokens or chat.max_tokens or DEFAULT_MAX_TOKENS


def _turns(chat: ChatRequest) -> tuple[Turn, ...]:
    turns, image = [], 0
    for message in chat.messages:
        parts: list[str | int] = []
        if isinstance(message.content, str):
            parts.append(message.content)
        else:
            for part in message.content:
                if isinstance(part, TextPart):
                    parts.append(part.text)
                else:
                    parts.append(image)
                    image += 1
        turns.append(Turn("system" if message.role == "developer" else message.role, tuple(parts)))
    return tuple(turns)


def _thinking(chat: ChatRequest, info: EngineInfo) -> Thinking:
    """What the three ways of asking mean together.

    Raises:
        ApiError: two of them disagree, or the model knows no thinking.
    """
    policy = info.thinking
    modes: dict[str, bool] = {}
    budgets: dict[str, int] = {}
    if chat.chat_template_kwargs.enable_thinking is not None:
        modes["chat_template_kwargs.enable_thinking"] = chat.chat_template_kwargs.enable_thinking
    if chat.reasoning_effort is not None:
        modes["reasoning_effort"] = chat.reasoning_effort != "none"
        if modes["reasoning_effort"]:
            budgets["reasoning_effort"] = policy.efforts[chat.reasoning_effort]
    if chat.thinking_token_budget is not None:
        modes["thinking_token_budget"] = chat.thinking_token_budget > 0
        if modes["thinking_token_budget"]:
            budgets["thinking_token_budget"] = chat.thinking_token_budget
    for said in (modes, budgets):
        if len(set(said.values())) > 1:
            names = list(said)
            raise _disagree(names[-1], names[-2] if said[names[-1]] != said[names[-2]] else names[0])
    enabled = next(iter(modes.values()), policy.default)
    if "thinking" not in info.features:
        if enabled and modes:
            raise unsupported(next(iter(modes)), "the model knows no thinking")
        enabled = None
    return Thinking(enabled, next(iter(budgets.values()), None), policy.reserve)


def _disagree(one: str, other: str) -> ApiError:
    return invalid(f"'{one}' and '{other}' disagree; send one of them", one)
