"""Answers to prompts over one engine: requests made when it is their turn, whole answers or deltas of text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from ggpy import arguments
from ggpy.engine.engine import Engine
from ggpy.engine.follow import at_once, follow
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.outputs import PromptGroup, RequestOutput, TextDelta
from ggpy.progress import requests_bar
from ggpy.sampling.sampling_params import SamplingParams, params_or_default


@dataclass(frozen=True)
class Asked:
    """A prompt, as text where it was given so, and what is asked of it."""

    text: str | None
    token_ids: list[int]
    params: SamplingParams


class Answers:
    """The way from prompts to answers. lock: held while the engine is used. check_open: called before each step; raises
    GGPYError where the model was closed meanwhile. defaults: what the model's file says of sampling."""

    def __init__(
        self, engine: Engine, lock: threading.RLock, check_open: Callable[[], None], defaults: Mapping[str, Any]
    ) -> None:
        self._engine, self._lock, self._check_open, self._defaults = engine, lock, check_open, defaults

    def answer(
        self, prompts: Sequence[tuple[str | None, list[int]]], sampling_params: Any, stream: bool, progress: bool
    ) -> list[RequestOutput] | Iterator[TextDelta]:
        """The answers to prompts, each its text, None where it came as token ids, and its token ids; or pieces of their
        texts as they come. Raises GGPYError."""
        arguments.flag("stream", stream)
        if arguments.flag("progress", progress) and stream:
            raise GGPYError("progress is for answers that come at the end; leave it out, or stream=True.")
        params = params_for_each(sampling_params, len(prompts))
        if stream and any(one.best_of is not None and one.best_of > one.n for one in params):
            raise GGPYError("best_of compares whole answers, so none can be streamed; leave it out, or stream=True.")
        # What is wrong with any of them is said before the first is evaluated.
        asked = []
        for (text, ids), one_set in zip(prompts, params, strict=True):
            ids, resolved = self.resolved(ids, one_set)
            self._engine.check(ids, resolved)
            asked.append(Asked(text, ids, resolved))
        return self._deltas(asked) if stream else self._outputs(asked, progress)

    def follow(self, requests: Sequence[Request]) -> Generator[tuple[int, str], None, None]:
        """Run requests until all are finished; yields (index in `requests`, new text)."""
        for index, _, text in follow(self._engine, self._lock, requests, check=self._check_open):
            if text:
                yield index, text
        raise_if_all_failed([request.error for request in requests])

    def resolved(self, ids: list[int], params: SamplingParams) -> tuple[list[int], SamplingParams]:
        """Arguments for `Engine.request` from a prompt and its parameters."""
        resolved = params.resolved(self._defaults)
        if (most := resolved.truncate_prompt_tokens) is not None:
            ids = ids[-(self._engine.runtime.n_ctx if most == -1 else most) :]
        return ids, resolved

    def _groups(self, asked: Sequence[Asked]) -> Iterator[PromptGroup]:
        """The requests of each prompt, made when it is their turn."""
        for one in asked:
            requests = [self._engine.request(one.token_ids, params) for params in answers_of(one.params)]
            yield PromptGroup(one.text, one.params, requests)

    def _run(self, requests: Iterator[Request]) -> Iterator[tuple[int, Request, str]]:
        return follow(self._engine, self._lock, requests, at_once(self._engine), self._check_open)

    def _outputs(self, asked: Sequence[Asked], progress: bool) -> list[RequestOutput]:
        """The answers to prompts, in their order. Of thousands, only those that run and the next few are requests."""
        outputs: dict[int, RequestOutput] = {}
        groups: dict[Request, tuple[int, PromptGroup]] = {}
        errors: list[GGPYError | None] = []

        def requests() -> Iterator[Request]:
            for place, group in enumerate(self._groups(asked)):
                groups.update((request, (place, group)) for request in group.requests)
                yield from group.requests

        with requests_bar(len(asked)) if progress else nullcontext(lambda n_tokens: None) as advance:
            for _, request, _ in self._run(requests()):
                if not request.finished:
                    continue
                errors.append(request.error)
                place, group = groups.pop(request)
                if not any(other in groups for other in group.requests):
                    outputs[place] = group.output()
                    advance(sum(other.n_chosen for other in group.requests))
        raise_if_all_failed(errors)
        return [outputs[place] for place in range(len(asked))]

    def _deltas(self, asked: Sequence[Asked]) -> Iterator[TextDelta]:
        """Pieces of the answers' texts as they come."""
        places = [(i, j) for i, one in enumerate(asked) for j in range(one.params.n)]
        errors: list[GGPYError | None] = []
        requests = (request for group in self._groups(asked) for request in group.requests)
        for index, request, text in self._run(requests):
            if text:
                delta = TextDelta(text)
                delta.prompt_index, delta.output_index = places[index]
                yield delta
            if request.finished:
                errors.append(request.error)
        raise_if_all_failed(errors)


def params_for_each(sampling_params: Any, n: int) -> list[SamplingParams]:
    """Parameters for each of n prompts, of which callers give one for all, a list, or None. Raises GGPYError."""
    one = sampling_params is None or isinstance(sampling_params, SamplingParams)
    words = "SamplingParams, or a list of them"
    given = [sampling_params] * n if one else arguments.several("sampling_params", sampling_params, words)
    params = [params_or_default("sampling_params", value) for value in given]
    if len(params) != n:
        raise GGPYError(f"There are {n} prompts, but {len(params)} sets of sampling parameters.")
    return params


def answers_of(params: SamplingParams) -> list[SamplingParams]:
    """Parameters for each answer that is generated, with seeds of their own. The prompt is scored once."""
    seed, count = params.seed, max(params.n, params.best_of or 1)
    compared = 0 if params.logprobs is None and count > params.n else params.logprobs
    return [
        replace(
            params,
            n=1,
            best_of=None,
            seed=None if seed is None else (seed + i) % 2**64,
            logprobs=compared,
            prompt_logprobs=None if i else params.prompt_logprobs,
        )
        for i in range(count)
    ]


def raise_if_all_failed(errors: Sequence[GGPYError | None]) -> None:
    """Raise the first error where no request is without one; else each is its own request's result."""
    first = next(iter(errors), None)
    if first is not None and None not in errors:
        raise first
