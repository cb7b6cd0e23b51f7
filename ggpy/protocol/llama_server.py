"""llama-server's own API as data: request bodies to the one request type, and its response bodies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field

from ggpy.errors import GGPYError
from ggpy.protocol.body import Body, only, read, wrong
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import CompletionRequest, Delta, Event, Finished, Started, TokenLogprob
from ggpy.protocol.openai import sampling_params
from ggpy.protocol.openai_bodies import Sampling
from ggpy.protocol.openai_responses import timings_body
from ggpy.protocol.replies import Reply
from ggpy.sampling.structured import StructuredOutputsParams
from ggpy.text.reply.events import ContentDelta

Json = dict[str, Any]

#: Kinds of errors by their status; others are the server's own.
_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    501: "not_supported_error", 503: "unavailable_error",
}  # fmt: skip


class CompletionBody(Sampling):
    """A body of /completion. Fields that say how to run it are passed over."""

    prompt: Any = None
    model: str | None = None
    n_predict: int | None = None
    stream: bool = False
    n_probs: int = 0
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    return_tokens: Annotated[bool, only(False)] = False
    lora: Annotated[list[Any], only([])] = Field(default_factory=list)
    post_sampling_probs: Annotated[bool, only(False)] = False
    n_indent: Annotated[int, only(0)] = 0
    cache_prompt: Annotated[bool, only(True)] = True
    id_slot: Annotated[int, only(-1)] = -1
    n_keep: Any = None
    n_discard: Any = None
    min_keep: Any = None
    t_max_predict_ms: Annotated[int, only(0, -1)] = 0
    timings_per_token: Any = None
    return_progress: Annotated[bool, only(False)] = False


class InfillExtra(Body):
    filename: str = ""
    text: str


class InfillBody(CompletionBody):
    """A body of /infill."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[InfillExtra] = Field(default_factory=list)


class TokenizeBody(Body):
    """A body of /tokenize."""

    content: str
    model: str | None = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Body):
    """A body of /detokenize."""

    tokens: list[int]
    model: str | None = None


def error_body(error: RequestError) -> Json:
    kind = _ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"code": error.status, "message": str(error), "type": kind}}


def completion_request(given: Any) -> CompletionRequest:
    """The request of a body of /completion. Raises RequestError."""
    body = read(CompletionBody, given, "/completion")
    return _request(body, [_prompt(body.prompt)])


def infill_body(given: Any) -> InfillBody:
    """The body of /infill, whose prompt is made of the model's own tokens. Raises RequestError."""
    body = read(InfillBody, given, "/infill")
    if not isinstance(body.prompt, str | None):
        raise wrong("prompt", body.prompt, "a text")
    return body


def infill_request(body: InfillBody, prompt: list[int]) -> CompletionRequest:
    return _request(body, [prompt])


def _prompt(given: Any) -> str | list[int]:
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list):
        given = given[0]
    if isinstance(given, str) or (isinstance(given, list) and given and all(type(one) is int for one in given)):
        return given
    raise wrong("prompt", given, "a text, or a list of token ids")


def _request(body: CompletionBody, prompts: list[str | list[int]]) -> CompletionRequest:
    changes: dict[str, Any] = {"logit_bias": _biases(body.logit_bias)}
    if body.seed == -1:
        changes["seed"] = None
    if body.n_predict is not None and body.n_predict >= 0:
        changes["max_tokens"] = body.n_predict
    if body.n_predict == 0:
        raise wrong("n_predict", 0, "a number of tokens, or -1 until the model ends")
    form = None
    if body.grammar and body.json_schema is not None:
        raise RequestError("grammar and json_schema both give the answer's form; give one of them.", "grammar")
    try:
        if body.grammar:
            form = StructuredOutputsParams(grammar=body.grammar)
        elif body.json_schema is not None:
            form = StructuredOutputsParams(json=body.json_schema)
    except GGPYError as error:
        raise RequestError(str(error), "grammar" if body.grammar else "json_schema") from None
    if not 0 <= body.n_probs <= 100:
        raise wrong("n_probs", body.n_probs, "a whole number from 0 to 100")
    params = sampling_params(body.model_copy(update=changes), structured_outputs=form, logprobs=body.n_probs or None)
    return CompletionRequest(body.model, prompts, params, body.stream)


def _biases(given: Any) -> Any:
    """Biases as an object by token id; llama-server takes pairs, in which false stands for never."""
    if not isinstance(given, list):
        return given
    found = {}
    for pair in given:
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) is not int:
            raise wrong("logit_bias", given, "a list of token ids with their biases: [[15043, 1.0], [29871, false]]")
        found[str(pair[0])] = -100.0 if pair[1] is False else pair[1]
    return found


class CompletionEvents:
    """The bodies of a streamed completion."""

    def __init__(self) -> None:
        self._model, self._n_prompt = "", 0

    def bodies(self, event: Event) -> Iterator[Json]:
        """The bodies that an event makes."""
        match event:
            case Started(model, prompt_tokens):
                self._model, self._n_prompt = model, prompt_tokens
            case Delta():
                text = event.event.text if isinstance(event.event, ContentDelta) else ""
                yield {"index": 0, "content": text, "tokens": [], "stop": False, **_probabilities(event.logprobs)}
            case Finished():
                yield completion_body(self._model, Reply(end=event), stream=True)


def completion_body(model: str, reply: Reply, stream: bool = False) -> Json:
    """The body for a whole completion, or the last of a stream."""
    end = reply.end
    assert end is not None
    word = end.stop_reason if isinstance(end.stop_reason, str) else ""
    kind = "limit" if end.finish_reason == "length" else "word" if word else "eos"
    cached = end.usage.cached_tokens or 0
    return {
        "index": 0, "content": reply.content, "tokens": [], "id_slot": -1, "stop": True, "model": model,
        "tokens_predicted": end.usage.completion_tokens, "tokens_evaluated": end.usage.prompt_tokens,
        "tokens_cached": end.usage.prompt_tokens + end.usage.completion_tokens, "prompt": "",
        "has_new_line": "\n" in reply.content, "truncated": False, "stop_type": kind, "stopping_word": word,
        "generation_settings": {}, "timings": {**timings_body(end), "cache_n": cached},
        **({} if stream else _probabilities(reply.logprobs)),
    }  # fmt: skip


def _probabilities(tokens: Sequence[TokenLogprob]) -> Json:
    if not tokens:
        return {}

    def one(text: str, logprob: float) -> Json:
        return {"token": text, "bytes": list(text.encode("utf-8", "surrogatepass")), "logprob": logprob}

    return {
        "completion_probabilities": [
            {
                "id": token.token,
                **one(token.chosen.decoded_token, token.chosen.logprob),
                "top_logprobs": [one(other.decoded_token, other.logprob) for other in token.top],
            }
            for token in tokens
        ]
    }
