"""An OpenAI-compatible endpoint as the one who answers."""

import base64
import io
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from PIL import Image, UnidentifiedImageError

from sightloom.errors import SightloomError, UserMistake
from sightloom.evaluation.answerers import Prediction, failed, nobody, since_ms
from sightloom.evaluation.examples import Example
from sightloom.evaluation.result import Identity
from sightloom.records import Conversation

_SHA256 = re.compile("[0-9a-f]{64}")  # a server without a manifest says "unverified"
_CONCURRENCY = 16
_RETRIES = 8
_LONGEST_WAIT_S = 30.0
_BUSY = (429, 503)
_PATIENCE_S = 30.0  # a list of models that is not to be had just now


class Unreachable(UserMistake):
    """Nothing listens at the address."""


class NotNow(SightloomError):
    """A timeout, a broken connection, 429 or 5xx: the same call may be answered later."""


class EndpointAnswerer:
    """Answers through `POST /v1/chat/completions`, at most 16 requests at once.

    429 and 503 are retried after the server's own `retry-after`; every other failure is the example's error.

    Args:
        base_url: the server's address, with or without `/v1`.
        model: the name to ask for; empty takes the only one that the server lists.
        key: bearer token, empty for none.
        thinking_budget: sent as `thinking_token_budget`.

    Raises:
        UserMistake: the address does not answer, the key is refused or the model is not listed.
    """

    def __init__(
        self,
        base_url: str,
        model: str = "",
        key: str = "",
        thinking_budget: int | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        self._url = _api(base_url)
        self._client = _client(key, timeout_s)
        self._budget = thinking_budget
        self.model = self._checked_model(model)

    def answer(
        self,
        examples: Sequence[Example],
        thinking: bool | None,
        max_new_tokens: int,
        done: Callable[[int], None] = nobody,
    ) -> list[Prediction]:
        """Greedy answers over HTTP."""

        def one(example: Example) -> Prediction:
            prediction = self._one(example, thinking, max_new_tokens)
            done(1)
            return prediction

        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            return list(pool.map(one, examples))

    @property
    def url(self) -> str:
        """The address up to and with `/v1`."""
        return self._url

    def identity(self) -> Identity:
        """Who answers, as far as the server says it (`sightloom.version` and `.digest` of the model's card)."""
        card = self._card()
        if not card:
            return Identity(self.model)
        digest, name = card["digest"], self.model.partition("@")[0].partition(":")[0]
        return Identity(name, card["version"], digest if _SHA256.fullmatch(digest) else "")

    def way(self) -> str:
        """The engine and the address through which the model answers; empty where the server does not say it."""
        card = self._card()
        return f"{card['engine']} at {self._url}" if card else ""

    def _card(self) -> dict[str, str]:
        try:
            card = self._client.get(f"{self._url}/models/{self.model}").raise_for_status().json()["sightloom"]
            return {name: str(card[name]) for name in ("version", "digest", "engine")}
        except (httpx.HTTPError, ValueError, KeyError, TypeError):  # another server
            return {}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _one(self, example: Example, thinking: bool | None, max_new_tokens: int) -> Prediction:
        body = chat_body(self.model, example, thinking, max_new_tokens, self._budget)
        began = time.perf_counter()
        for attempt in range(_RETRIES):
            try:
                response = self._client.post(f"{self._url}/chat/completions", json=body)
            except httpx.HTTPError as error:
                return failed(example.id, f"{type(error).__name__}: {error}", since_ms(began))
            if response.status_code not in _BUSY:
                break
            time.sleep(_wait_s(response.headers.get("retry-after"), attempt))
        if response.status_code != 200:
            return failed(example.id, f"HTTP {response.status_code}: {response.text[:300]}", since_ms(began))
        try:
            return _from_response(example.id, response.json(), thinking, since_ms(began))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return failed(example.id, f"not a chat completion: {type(error).__name__}: {error}", since_ms(began))

    def _checked_model(self, model: str) -> str:
        names = _listed(self._client, self._url)
        if model and (model in names or model.partition("@")[0].partition(":")[0] in names):
            return model  # pinned names such as name:13 need not be listed
        models = [name for name in names if not any(name.startswith((f"{other}:", f"{other}@")) for other in names)]
        if not model and len(models) == 1:
            return models[0]  # what else is listed pins a version of it
        asked = f"no model '{model}'" if model else "no model is named"
        raise UserMistake(f"{asked}; {self._url} serves {', '.join(names) or 'nothing'}", "give --model")


def listed_models(base_url: str, key: str = "", patience_s: float = _PATIENCE_S) -> list[str]:
    """The names that an endpoint lists; with a key of the scope `pin` its versions, too.

    Raises:
        UserMistake: nothing listens at the address (`Unreachable`), or the key is refused.
        NotNow: it was asked again for `patience_s`.
        SightloomError: it is no OpenAI-compatible server.
    """
    with _client(key, _LONGEST_WAIT_S) as client:
        return _listed(client, _api(base_url), patience_s)


def _api(base_url: str) -> str:
    return base_url.rstrip("/").removesuffix("/v1") + "/v1"


def _client(key: str, timeout_s: float) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(headers=headers, timeout=httpx.Timeout(timeout_s, connect=10.0), trust_env=False)


def _listed(client: httpx.Client, url: str, patience_s: float = _PATIENCE_S) -> list[str]:
    until, attempt = time.monotonic() + patience_s, 0
    while True:
        retry_after: str | None = None
        try:
            response = client.get(f"{url}/models")
            if not _passing(response):
                return _names(response, url)
            trouble = f"HTTP {response.status_code}: {response.text[:300]}"
            retry_after = response.headers.get("retry-after")
        except (httpx.ConnectError, httpx.UnsupportedProtocol) as error:
            raise Unreachable(f"nothing answers at {url}: {error}", "is the server up?") from error
        except httpx.HTTPError as error:
            trouble = f"{type(error).__name__}: {error}"
        pause_s = _wait_s(retry_after, attempt)
        if time.monotonic() + pause_s > until:
            raise NotNow(f"{url}/models cannot be read just now: {trouble}", "try again; see the server's log")
        time.sleep(pause_s)
        attempt += 1


def _passing(response: httpx.Response) -> bool:
    """Whether the failure may pass by itself."""
    return response.status_code == 429 or response.status_code >= 500


def _names(response: httpx.Response, url: str) -> list[str]:
    if response.status_code in (401, 403):
        raise UserMistake(f"{url} refuses the key (HTTP {response.status_code})", "set SIGHTLOOM_API_KEY")
    try:
        return [str(entry["id"]) for entry in response.raise_for_status().json()["data"]]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
        raise SightloomError(f"{url}/models is no OpenAI-compatible list: {error}") from error


def chat_body(
    model: str, example: Example, thinking: bool | None, max_new_tokens: int, thinking_budget: int | None
) -> dict[str, Any]:
    """The body of a greedy chat completion of an example; a budget is sent where thinking is opened (`Decoding`)."""
    body: dict[str, Any] = {
        "model": model,
        "messages": _openai_messages(example.conversation, example.images),
        "temperature": 0,
        "max_completion_tokens": max_new_tokens,
    }
    if thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": thinking}
    if thinking and thinking_budget is not None:
        body["thinking_token_budget"] = thinking_budget
    return body


def _from_response(id: str, body: dict[str, Any], thinking: bool | None, latency_ms: float) -> Prediction:
    choice = body["choices"][0]
    message = choice["message"]
    content = (message.get("content") or "").strip()
    thought = message.get("reasoning_content") or message.get("reasoning")
    finish = str(choice.get("finish_reason"))
    outcome = (choice.get("sightloom") or {}).get("thinking")
    if outcome is None:  # another server: judged by what it returned
        if content:
            outcome = "complete" if thought else "malformed" if thinking else "off"
        else:
            outcome = "truncated" if finish == "length" else "malformed"
    tokens = int((body.get("usage") or {}).get("completion_tokens") or 0)
    return Prediction(id, content, thought, str(outcome), finish, tokens, latency_ms)


def _openai_messages(conversation: Conversation, images: Sequence[bytes]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for message in conversation.messages:
        content: Any = message.text
        if message.image and images:
            urls = [f"data:{_mime(image)};base64,{base64.b64encode(image).decode()}" for image in images]
            content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            content.append({"type": "text", "text": message.text})
        messages.append({"role": message.role, "content": content})
    return messages


def _mime(image: bytes) -> str:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return opened.get_format_mimetype() or "application/octet-stream"
    except (UnidentifiedImageError, OSError):
        return "application/octet-stream"  # the server shall say what it thinks of it


def _wait_s(retry_after: str | None, attempt: int) -> float:
    try:
        asked = float(retry_after or "")
    except ValueError:
        asked = 0.5 * 2**attempt
    return min(max(asked, 0.1), _LONGEST_WAIT_S)
