"""One of several texts by a model's own probabilities, instead of an answer that is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ggpy import arguments
from ggpy.engine.follow import at_once, follow
from ggpy.engine.scored_request import ScoredRequest
from ggpy.errors import GGPYError, quoted

if TYPE_CHECKING:
    from ggpy.engine.engine import Engine
    from ggpy.llm import LLM


@dataclass(frozen=True)
class OptionOutput:
    """A text that an answer may be. token_ids: its tokens, as they go on from the prompt. logprob: the sum of their
    log-probabilities, natural logarithms, and of the answer's end after them where that was asked for.
    probability: exp(logprob) as a part of that of all options, which sum to one."""

    text: str
    token_ids: list[int]
    logprob: float
    probability: float


@dataclass(frozen=True)
class ChoiceOutput:
    """A prompt and its options, in the order in which they were given. `prompt` is None where it came as token ids."""

    prompt: str | None
    prompt_token_ids: list[int]
    options: list[OptionOutput]

    @property
    def best(self) -> OptionOutput:
        """The likeliest option; of equally likely ones the first."""
        return max(self.options, key=lambda option: option.logprob)


def choose(llm: LLM, prompt: Any, options: Any, score_end: bool, template_values: Mapping[str, Any]) -> ChoiceOutput:
    """The probabilities of options after a prompt, or after the messages of a conversation. Raises GGPYError."""
    llm.check_writes()
    text: str | None
    if isinstance(prompt, Sequence) and len(prompt) and isinstance(prompt[0], Mapping):
        text = llm.render_chat(prompt, template_kwargs=template_values)
        ids = llm.tokenize_chat(text)
    else:
        if template_values:
            raise GGPYError(f"{next(iter(template_values))} is for a conversation's template; give messages.")
        text, ids = llm.encode(prompt)
    requests = _option_requests(llm.engine, ids, options, score_end)
    for _ in follow(llm.engine, llm.lock, requests.values(), at_once(llm.engine), llm.check_open):
        pass
    return _choice_output(text, ids, requests)


def _option_requests(engine: Engine, ids: Sequence[int], options: Any, score_end: bool) -> dict[str, ScoredRequest]:
    """A request for each option, in their order, which gives its log-probability after a prompt. Raises GGPYError."""
    texts = arguments.texts("options", options)
    if not texts:
        raise arguments.wrong("options", options, "a list of texts, one at least")
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise GGPYError(f"options name {quoted(twice, 40)} twice; leave one of them out.")
    if arguments.flag("score_end", score_end) and not engine.tokenizer.eog:
        raise GGPYError("score_end needs a token that ends an answer, and the model's file names none.")
    requests: dict[str, ScoredRequest] = {}
    for text in texts:
        tokens = engine.tokenizer.tokenize(text, add_special=False, continues=True)
        if not tokens:
            raise GGPYError(f"The option {quoted(text, 40)} is no token in this model's vocabulary; leave it out.")
        requests[text] = ScoredRequest(engine, ids, tokens, score_end)
    return requests


def _choice_output(prompt: str | None, ids: list[int], requests: Mapping[str, ScoredRequest]) -> ChoiceOutput:
    """The probabilities that finished requests have found. Raises the error of one that failed."""
    failed = next((request.error for request in requests.values() if request.error is not None), None)
    if failed is not None:
        raise failed
    logprobs = np.array([request.logprob for request in requests.values()])
    peak = logprobs.max()
    parts = np.exp(logprobs - peak) if peak > -math.inf else np.ones(len(requests))
    parts /= parts.sum()
    options = [
        OptionOutput(text, request.continuation, request.logprob, part)
        for (text, request), part in zip(requests.items(), parts.tolist(), strict=True)
    ]
    return ChoiceOutput(prompt, ids, options)
