"""Results of the Python API, by vLLM's names: answers and their log-probabilities, embeddings, ranks, pieces of
text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ggpy.engine.request import Request, Timings
from ggpy.sampling.logprobs import Logprob
from ggpy.sampling.sampling_params import SamplingParams


@dataclass(frozen=True)
class CompletionOutput:
    """One answer. finish_reason: "stop" (an end token or a stop string), "length" (max_tokens, or a full context), or
    "error": the sentence is in `error`, and the other answers are as if it had not been asked for.

    logprobs: for each of `token_ids`, its log-probability and those of the likeliest, by id, where `logprobs` asked for
    them; `cumulative_logprob` is then the sum of the tokens' own.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None
    timings: Timings
    error: str | None = None
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its answers. `prompt` is None where the prompt came as token ids. prompt_logprobs: as a completion's
    `logprobs`, for each of `prompt_token_ids`; None for the first, before which there is nothing."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None


@dataclass(frozen=True)
class EmbeddingOutput:
    """One text as a vector: float32 [n_cols]; without pooling a vector for each of its tokens: [n_tokens, n_cols]."""

    embedding: NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddingRequestOutput:
    """A text and its embedding. `prompt` is None where it came as token ids."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput


@dataclass(frozen=True)
class RankOutput:
    """A document and how well it answers the query. `index`: its place in the list that was given; `score`: the higher
    the better, from 0 to 1, or the classifier's own number; `n_tokens`: of query and document together, as the model
    read them."""

    index: int
    score: float
    document: str
    n_tokens: int


class TextDelta(str):
    """A piece of an answer's text as it comes: a plain `str` that also says which answer it belongs to."""

    prompt_index: int
    output_index: int

    @property
    def text(self) -> str:
        return str(self)


def completion_output(index: int, request: Request, text: str | None = None) -> CompletionOutput:
    """A request's answer, finished or so far; `text` where a caller has put it together already."""
    return CompletionOutput(
        index,
        request.text if text is None else text,
        request.token_ids,
        request.finish_reason,
        request.stop_reason,
        request.timings,
        str(request.error) if request.error else None,
        request.cumulative_logprob,
        request.logprobs,
    )


@dataclass
class PromptGroup:
    """A prompt as it was given, what is asked of it, and a request for each answer that is generated."""

    prompt: str | None
    params: SamplingParams
    requests: list[Request]

    def output(self) -> RequestOutput:
        """The answers, once they are finished: the best `n` where more were generated."""
        first, requests = self.requests[0], self.requests
        if len(requests) > self.params.n:
            # By the mean, since a sum would favour short answers; of equal ones the earlier.
            requests = sorted(requests, key=lambda request: -request.mean_logprob)[: self.params.n]
        outputs = [completion_output(i, request) for i, request in enumerate(requests)]
        if self.params.logprobs is None:  # known all the same where answers were compared
            outputs = [replace(output, cumulative_logprob=None, logprobs=None) for output in outputs]
        return RequestOutput(self.prompt, first.prompt, outputs, prompt_logprobs=first.prompt_logprobs)
