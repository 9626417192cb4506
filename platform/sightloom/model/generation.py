"""Generating text: a plain decode loop on the Hugging Face model, for rollouts, evaluation and serving alike.

`generate` of transformers spends more time around a small model than in it; this loop feeds the same forward. Prompts
are padded on the left with explicit positions, a row writes the same tokens alone and in a batch, finished rows leave
the batch, and a prompt that many requests share is read once.

Shapes: B rows, U unique prompts, T prompt tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import torch
from PIL import Image

from sightloom.model.cache import GrowingCache
from sightloom.model.chat import Document
from sightloom.model.load import VLM
from sightloom.model.positions import rope_positions
from sightloom.model.sampling import Sampler, Sampling, never_written
from sightloom.model.thinking import THINK_CLOSE, THINK_OPEN

Finish = Literal["stop", "length", "cancelled"]
COMPACT_BELOW: Final = 0.75  # share of rows still running at which the others are cut away


class Constraint(Protocol):
    """What an answer is bound to; it begins behind the thinking."""

    def mask(self, logits_V: torch.Tensor) -> None:
        """Give the tokens that may not be next a logit of -inf, in place."""

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer that is asked for.

    `thinking_budget`: tokens inside a think block after which `</think>` is forced; None: no limit. A row stops at the
    model's own end tokens and at `stop_token_ids`, and never writes the tokens of pictures. `image`: the prompt's
    picture, for engines that prepare it themselves.
    """

    prompt: Document
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    thinking_budget: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    constraint: Constraint | None = None
    image: Image.Image | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What was written. `token_ids` ends with the stop token if there was one; `text` has the control tokens removed.

    `logprobs`: of each token under the distribution it was drawn from (temperature and filters applied; the model's
    own at temperature 0). `forced[i]`: token i was forced by the thinking budget, not chosen.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    text: str
    forced: tuple[bool, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


OnToken = Callable[[int, int], None]  # index of the request, token
Cancelled = Callable[[int], bool]  # index of the request → stop writing it


class Generator:
    """Answers requests with one model, at most `batch_size` at a time. Not for use by several threads at once."""

    def __init__(self, vlm: VLM, batch_size: int = 64) -> None:
        self._model = vlm.model
        self._tokenizer = vlm.tokenizer
        self._batch_size = batch_size
        config = vlm.model.config
        self._never = never_written(config).to(vlm.model.device)
        self._image_token_id = config.image_token_id
        self._merge_size = config.vision_config.spatial_merge_size
        self._num_layers = config.get_text_config().num_hidden_layers
        self._pad = vlm.tokenizer.pad_token_id or 0
        ends = vlm.model.generation_config.eos_token_id
        self._ends = frozenset([ends] if isinstance(ends, int) else ends or ())
        vocabulary = vlm.tokenizer.get_vocab()
        self._think = (vocabulary.get(THINK_OPEN, -1), vocabulary.get(THINK_CLOSE, -1))

    @torch.inference_mode()
    def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_token: OnToken | None = None,
        cancelled: Cancelled | None = None,
    ) -> list[Generation]:
        """Answer all requests, in their order.

        Args:
            on_token: called with (index of the request, token) as soon as a token is chosen.
            cancelled: asked before each step for each running row; True ends it with what it has.
        """
        results: dict[int, Generation] = {}
        training = self._model.training
        self._model.eval()
        # Rows of like length share a batch, so that little is padded and they end together.
        order = sorted(range(len(requests)), key=lambda i: (-requests[i].max_new_tokens, -len(requests[i].prompt)))
        for start in range(0, len(order), self._batch_size):
            indices = order[start : start + self._batch_size]
            rows = [_Row(index, requests[index], self._opened(requests[index].prompt)) for index in indices]
            for row in self._write(rows, on_token, cancelled):
                results[row.index] = Generation(
                    tuple(row.tokens),
                    tuple(row.logprobs),
                    row.finish,
                    self._tokenizer.decode(row.tokens, skip_special_tokens=True),
                    tuple(row.forced),
                )
        self._model.train(training)
        return [results[index] for index in range(len(requests))]

    @torch.inference_mode()
    def logits(self, prompt: Document) -> torch.Tensor:
        """Logits [V] behind a prompt; -inf for tokens that are never written."""
        return self._read([prompt], GrowingCache(self._num_layers))[0][0]

    def _opened(self, prompt: Document) -> bool:
        """Whether the prompt's last think mark is an opening one."""
        marks = [token for token in prompt.input_ids.tolist() if token in self._think]
        return bool(marks) and marks[-1] == self._think[0]

    def _write(self, rows: list["_Row"], on_token: OnToken | None, cancelled: Cancelled | None) -> list["_Row"]:
        everything = rows
        rows = [row for row in rows if row.request.max_new_tokens > 0]
        if not rows:
            return everything
        cache = GrowingCache(self._num_layers)
        logits, visible, next_position = self._read([row.request.prompt for row in rows], cache)
        device = logits.device
        sampler = Sampler([row.sampling() for row in rows], device)
        running = list(range(len(rows)))
        while True:
            for slot in running:
                if (constraint := rows[slot].constraint) is not None:
                    constraint.mask(logits[slot])
            chosen, logprobs = sampler.choose(logits)
            tokens = chosen.tolist()
            for slot in running:
                if rows[slot].must_close(self._think):
                    tokens[slot] = self._think[1]
            ids = torch.tensor(tokens, device=device)[:, None]
            scores = logprobs.gather(1, ids)[:, 0].tolist()
            for slot in running:
                row = rows[slot]
                row.take(tokens[slot], scores[slot], self._think, self._ends)
                if on_token is not None:
                    on_token(row.index, tokens[slot])
                if cancelled is not None and not row.done and cancelled(row.index):
                    row.done, row.finish = True, "cancelled"
            running = [slot for slot in running if not rows[slot].done]
            if not running:
                return everything
            if len(running) <= COMPACT_BELOW * len(rows):
                kept = torch.tensor(running, device=device)
                cache.select(kept)
                sampler.keep(running)
                rows = [rows[slot] for slot in running]
                ids, visible, next_position = ids[kept], visible[kept], next_position[kept]
                running = list(range(len(rows)))
            visible = torch.cat([visible, visible.new_ones(len(rows), 1)], dim=1)
            hidden = self._model.model(
                input_ids=ids,
                position_ids=next_position[None, :, None].expand(3, -1, 1),
                attention_mask=visible[:, None, None, :],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            next_position = next_position + 1
            logits = self._logits(hidden)

    def _logits(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] behind the last position, of the tokens that may be written."""
        return self._model.lm_head(hidden_BTD[:, -1]).index_fill_(1, self._never, -torch.inf)

    def _read(self, prompts: list[Document], cache: GrowingCache) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read the prompts into the cache: logits [B, V] behind them, visible positions [B, T], next position [B]."""
        device = self._model.device
        unique = list({id(prompt): prompt for prompt in prompts}.values())
        slots = {id(prompt): slot for slot, prompt in enumerate(unique)}
        longest = max(len(prompt) for prompt in unique)
        ids_UT = torch.full((len(unique), longest), self._pad)
        visible_UT = torch.zeros(len(unique), longest, dtype=torch.bool)
        positions_3UT = torch.zeros(3, len(unique), longest, dtype=torch.int64)
        for slot, prompt in enumerate(unique):
            pad = longest - len(prompt)
            ids_UT[slot, pad:] = prompt.input_ids
            visible_UT[slot, pad:] = True
            positions_3UT[:, slot, pad:] = rope_positions(prompt, self._image_token_id, self._merge_size)
        causal_TT = torch.ones(longest, longest, dtype=torch.bool).tril()
        # A padded query sees itself, so that no row of the softmax is empty; no real token sees padding.
        mask_UTT = (visible_UT[:, None, :] & causal_TT) | torch.eye(longest, dtype=torch.bool)
        pictures = [prompt.pixel_values for prompt in unique if prompt.pixel_values is not None]
        grids = [prompt.image_grid_thw for prompt in unique if prompt.image_grid_thw is not None]
        vision: dict[str, Any] = {}
        if pictures:
            vision["pixel_values"] = torch.cat(pictures).to(device)
            vision["image_grid_thw"] = torch.cat(grids).to(device)
        hidden = self._model.model(
            input_ids=ids_UT.to(device),
            position_ids=positions_3UT.to(device),
            attention_mask=mask_UTT[:, None].to(device),
            past_key_values=cache,
            use_cache=True,
            **vision,
        ).last_hidden_state
        logits = self._logits(hidden)
        next_position = positions_3UT.amax((0, 2)).to(device) + 1
        visible = visible_UT.to(device)
        if len(unique) == len(prompts):
            return logits, visible, next_position
        rows = torch.tensor([slots[id(prompt)] for prompt in prompts], device=device)
        cache.select(rows)
        return logits[rows], visible[rows], next_position[rows]


class _Row:
    """One answer in the making."""

    def __init__(self, index: int, request: GenerationRequest, thinking: bool) -> None:
        self.index = index
        self.request = request
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.forced: list[bool] = []
        self.finish: Finish = "length"
        self.done = request.max_new_tokens <= 0
        self._thinking = thinking
        self._num_thinking = 0
        self._force = False

    def sampling(self) -> Sampling:
        request = self.request
        return Sampling(request.temperature, request.top_p, request.top_k, request.seed)

    @property
    def constraint(self) -> Constraint | None:
        """What the next token is bound to."""
        return None if self._thinking else self.request.constraint

    def must_close(self, think: tuple[int, int]) -> bool:
        """Whether the thinking budget is used up, so that `</think>` is the next token."""
        budget = self.request.thinking_budget
        self._force = self._thinking and budget is not None and self._num_thinking >= budget and think[1] >= 0
        return self._force

    def take(self, token: int, logprob: float, think: tuple[int, int], ends: frozenset[int]) -> None:
        """Append a token and see whether the row ends with it."""
        if (constraint := self.constraint) is not None:
            constraint.accept(token)
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.forced.append(self._force)
        if token == think[0]:
            self._thinking = True
        elif token == think[1]:
            self._thinking = False
        elif self._thinking:
            self._num_thinking += 1
        if token in ends or token in self.request.stop_token_ids:
            self.done, self.finish = True, "stop"
        elif len(self.tokens) >= self.request.max_new_tokens:
            self.done = True
