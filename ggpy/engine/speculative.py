"""Speculation: tokens that may follow are evaluated together with the one that is known, and kept as far as they are
those that the sampler chooses.

A step reads all weights, whether for one token or for several, so that a few more tokens cost little. Every token is
still chosen from its own logits, with its own random number: the text is the same with and without. How many tokens are
worth their time is a matter of how likely they are, which whoever drafts them says (`ngram_lookup`, `draft_model`), and
of what steps of so many tokens have taken (`drafts`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ggpy import arguments
from ggpy.engine.drafts import Draft, Drafter, StepCost, StepTimes
from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.engine.draft_model import DraftRuntime
    from ggpy.engine.prediction_head import Head
    from ggpy.engine.request import Request
    from ggpy.engine.scheduler import Batch, Limits

METHODS = ("ngram", "mtp", "draft_model")


@dataclass(frozen=True)
class SpeculativeConfig:
    """Settings of speculation; the names are vLLM's. num_speculative_tokens: the most tokens drafted for a request in a
    step. prompt_lookup_min: the shortest run of last tokens that is looked up; prompt_lookup_max: the longest. model:
    the small model that drafts, as `LLM` takes one."""

    method: str = "ngram"
    num_speculative_tokens: int = 24
    prompt_lookup_max: int = 12
    prompt_lookup_min: int = 2
    model: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise arguments.wrong("speculative method", self.method, " or ".join(map(repr, METHODS)))
        if (self.method == "draft_model") != (self.model is not None):
            raise GGPYError(
                "Speculation with the method 'draft_model' needs a model, and no other does: give both, or neither."
            )
        if self.model is not None:
            arguments.path("draft_model", self.model)
        for name, most in (("num_speculative_tokens", 256), ("prompt_lookup_min", 64), ("prompt_lookup_max", 64)):
            arguments.whole(name, getattr(self, name), 1, most, f"a whole number from 1 to {most}")
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise GGPYError(
                f"prompt_lookup_min is {self.prompt_lookup_min}, but prompt_lookup_max is {self.prompt_lookup_max}; "
                "the least may not be above the most."
            )


def speculative_config(speculative: Any, draft_model: Any, config: Any) -> SpeculativeConfig | None:
    """The settings that three parameters of `LLM` ask for: a method's name, a model, or a mapping with settings; None
    where all are None. Raises GGPYError for what they do not mean."""
    given = {"speculative": speculative, "draft_model": draft_model, "speculative_config": config}
    if len(names := [name for name, value in given.items() if value is not None]) > 1:
        raise GGPYError(f"{names[0]} and {names[1]} both say how to speculate; leave one of them out.")
    if speculative is not None:
        return SpeculativeConfig(arguments.text("speculative", speculative))
    if draft_model is not None:
        return SpeculativeConfig("draft_model", model=arguments.path("draft_model", draft_model))
    if config is None:
        return None
    words = "a dict with 'method' or 'model', and 'num_speculative_tokens', 'prompt_lookup_max' or 'prompt_lookup_min'"
    if not isinstance(config, Mapping) or not set(config) <= set(SpeculativeConfig.__dataclass_fields__):
        raise arguments.wrong("speculative_config", config, words)
    given = dict(config)
    if given.get("model") is not None:
        given.setdefault("method", "draft_model")
    low, high = given.get("prompt_lookup_min"), given.get("prompt_lookup_max")
    if isinstance(high, int) and low is None:
        given["prompt_lookup_min"] = min(high, SpeculativeConfig.prompt_lookup_min)
    if isinstance(low, int) and high is None:
        given["prompt_lookup_max"] = max(low, SpeculativeConfig.prompt_lookup_max)
    return SpeculativeConfig(**given)


class Speculator:
    """The choice of drafts for an engine's batches. draft: the runtime of a small model, where one drafts; head: the
    model's own."""

    def __init__(
        self,
        config: SpeculativeConfig,
        limits: Limits,
        n_ctx: int,
        draft: DraftRuntime | None = None,
        head: Head | None = None,
    ) -> None:
        self.config, self._limits, self._n_ctx = config, limits, n_ctx
        self.times = StepTimes()
        self.drafter: Drafter
        if config.method == "draft_model":
            from ggpy.engine.draft_model import DraftModel

            assert draft is not None
            self.drafter = DraftModel(draft, limits.n_vocab)
        elif config.method == "mtp":
            from ggpy.engine.prediction_head import HeadDrafter

            assert head is not None
            self.drafter = HeadDrafter(head, n_ctx)
        else:
            from ggpy.engine.ngram_lookup import NGramDrafter

            self.drafter = NGramDrafter(config.prompt_lookup_min, config.prompt_lookup_max)
        self._started: tuple[list[Request], int, float] | None = None  # the batch under way: its tokens, and since when

    def add_drafts(self, batch: Batch) -> None:
        """Add to a batch of generated tokens those that may follow them, as far as they are worth their time."""
        self._started = None
        if not batch.requests or not all(request.draftable for request in batch.requests):
            return
        n_tokens = sum(map(len, batch.chunks))
        cost = StepCost(self.times, n_tokens, self._limits.reach.carried)
        rooms = [self._room(request, len(chunk)) for request, chunk in batch]
        began = time.perf_counter()
        drafts = self.drafter.draft(batch.requests, rooms, cost)
        if any(one.tokens for one in drafts):
            spent = time.perf_counter() - began if self.config.method != "ngram" else 0.0
            n_tokens += self._add_worth(batch, drafts, cost, spent)
        self._started = batch.requests, n_tokens, time.perf_counter()

    def _add_worth(self, batch: Batch, drafts: Sequence[Draft], cost: StepCost, spent: float) -> int:
        """Add as much of the drafts as is worth its time. Returns how many tokens that is."""
        found = ((chance, i) for i, one in enumerate(drafts) for chance in one.chances)
        chances = sorted(found, key=lambda c: -c[0])[: max(0, self._limits.n_batch - cost.n_known)]
        n_worth = cost.worth(len(batch.requests), [chance for chance, _ in chances], spent)
        counts = [0] * len(drafts)
        for _, i in chances[:n_worth]:
            counts[i] += 1
        for request, one, n in zip(batch.requests, drafts, counts, strict=True):
            if n:
                batch.drafts[request] = one.tokens[:n]
        return n_worth

    def observe(self, batch: Batch) -> None:
        """Have the drafter look at a batch that was just evaluated."""
        self.drafter.observe(batch)

    def learn(self) -> None:
        """Take in how long the batch took that `add_drafts` saw last, now that its tokens are chosen."""
        if self._started is not None:
            requests, n_tokens, began = self._started
            self.times.learn(n_tokens, time.perf_counter() - began)
            self.drafter.learn(requests)

    def _room(self, request: Request, n_chunk: int) -> int:
        """The most tokens to draft for a request."""
        if n_chunk != request.n_pending:
            return 0
        room = self._n_ctx - len(request.tokens)
        if request.params.max_tokens is not None:  # the last token is not evaluated
            room = min(room, request.params.max_tokens - request.n_chosen - 1)
        return max(0, min(self.config.num_speculative_tokens, room))
