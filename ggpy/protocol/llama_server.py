"""llama-server's own API as data: request bodies to the one request type, and its response bodies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field

from ggpy.errors import GGPYError
from ggpy.protocol.body import Body, only, read, wrong
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import (
    CompletionRequest,
    Delta,
    EmbeddingsRequest,
    Event,
    Finished,
    Progress,
    Started,
    Telling,
    TokenLogprob,
)
from ggpy.protocol.openai import limited, sampling_params
from ggpy.protocol.openai_bodies import PARAMETERS, Sampling, prompts
from ggpy.protocol.openai_responses import progress_body, timings_body
from ggpy.protocol.replies import replies
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.sampling.structured import StructuredOutputsParams
from ggpy.text.line_limits import LineLimits
from ggpy.text.reply.events import ContentDelta

Json = dict[str, Any]

#: Kinds of errors by their status; others are the server's own.
_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    501: "not_supported_error", 503: "unavailable_error",
}  # fmt: skip


class CompletionBody(Sampling):
    """A body of /completion. Fields that say how to run it are passed over: the slot that holds most of a prompt is
    found without its number, and what a full context keeps is the server's own setting."""

    prompt: Any = None
    model: str | None = None
    n_predict: int | None = None
    stream: bool = False
    n_probs: int = 0
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    return_tokens: bool = False
    response_fields: list[str] = Field(default_factory=list)
    lora: Annotated[list[Any], only([])] = Field(default_factory=list)
    post_sampling_probs: Annotated[bool, only(False)] = False
    n_indent: int = 0
    cache_prompt: bool = True
    id_slot: int = -1
    n_keep: Any = None
    n_discard: Any = None
    min_keep: Annotated[Any, only(0, 1)] = None
    t_max_prompt_ms: Any = None  # llama-server passes it over, too
    t_max_predict_ms: int = 0
    timings_per_token: bool = False
    return_progress: bool = False


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


class ModelBody(Body):
    """A body of /models/load and /models/unload."""

    model: str | None = None


class EmbeddingBody(Body):
    """A body of /embedding."""

    content: Any = None
    input: Any = None
    model: str | None = None
    embd_normalize: Annotated[int, only(2)] = 2  # vectors have length 1


class DetokenizeBody(Body):
    """A body of /detokenize."""

    tokens: list[int]
    model: str | None = None


def error_body(error: RequestError) -> Json:
    kind = _ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"code": error.status, "message": str(error), "type": kind}}


def completion_body(given: Any) -> CompletionBody:
    """The body of /completion. Raises RequestError."""
    return read(CompletionBody, given, "/completion")


def completion_request(body: CompletionBody) -> CompletionRequest:
    """The request of a body of /completion. Raises RequestError."""
    return _request(body, _prompts("prompt", body.prompt))


def embedding_request(given: Any) -> EmbeddingsRequest:
    """The request of a body of /embedding. Raises RequestError."""
    body = read(EmbeddingBody, given, "/embedding")
    name, value = ("content", body.content) if body.content is not None else ("input", body.input)
    return EmbeddingsRequest(body.model, _prompts(name, value))


def _prompts(name: str, value: Any) -> list[str | list[int | str]]:
    try:
        return prompts(name, value)
    except GGPYError as error:
        raise RequestError(str(error), name) from None


def infill_body(given: Any) -> InfillBody:
    """The body of /infill, whose prompt is made of the model's own tokens. Raises RequestError."""
    body = read(InfillBody, given, "/infill")
    if not isinstance(body.prompt, str | None):
        raise wrong("prompt", body.prompt, "a text")
    return body


def infill_request(body: InfillBody, prompt: list[int | str]) -> CompletionRequest:
    return _request(body, [prompt])


def _request(body: CompletionBody, prompts: list[str | list[int | str]]) -> CompletionRequest:
    biases, text_biases = _biases(body.logit_bias)
    changes: dict[str, Any] = {"logit_bias": biases}
    if body.seed == -1:
        changes["seed"] = None
    if body.n_predict == 0:
        changes["max_tokens"] = 1
    ends = None
    if body.n_indent > 0 or body.t_max_predict_ms > 0:
        ends = LineLimits(body.n_indent, body.t_max_predict_ms / 1000 if body.t_max_predict_ms > 0 else None)
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
    asked = limited(body, body.n_predict).model_copy(update=changes)
    params = sampling_params(asked, structured_outputs=form, logprobs=body.n_probs or None)
    telling = Telling(
        body.stream and body.return_progress, body.stream or body.return_tokens, body.stream and body.timings_per_token
    )
    return CompletionRequest(
        body.model,
        prompts,
        params,
        body.stream,
        reuse=body.cache_prompt,
        prompt_alone=body.n_predict == 0,
        text_biases=text_biases,
        ends=ends,
        telling=telling,
    )


def _biases(given: Any) -> tuple[Any, dict[str, float]]:
    """Biases as an object by token id, and those of texts; llama-server takes pairs, too, in which false stands for
    never."""
    ids: dict[str, Any] = {}
    texts: dict[str, float] = {}
    if given is None:
        return None, texts
    for pair in given.items() if isinstance(given, dict) else given if isinstance(given, list) else [given]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or type(pair[0]) not in (int, str):
            words = "a list of token ids or texts with their biases: [[15043, 1.0], [29871, false]]"
            raise wrong("logit_bias", given, words)
        key, bias = pair[0], -100.0 if pair[1] is False else pair[1]
        if isinstance(key, int) or (key.isascii() and key.isdigit()):
            ids[str(key)] = bias
        elif isinstance(bias, int | float) and not isinstance(bias, bool) and -100 <= bias <= 100:
            texts[key] = float(bias)
        else:
            raise wrong("logit_bias", given, "biases from -100 to 100, or false")
    return ids, texts


class CompletionEvents:
    """The bodies of completions, whole and streamed. truncated: some of what was given was left out of the prompt."""

    def __init__(self, body: CompletionBody, truncated: bool = False) -> None:
        self._asked, self._truncated = body, truncated
        self._model = ""
        self._params = SamplingParams()
        self._said: dict[int, str] = {}  # in a stream: its last line, or an empty one

    def bodies(self, event: Event) -> Iterator[Json]:
        """The bodies that an event makes in a stream."""
        match event:
            case Started():
                self._take(event)
            case Progress(choice):
                piece = {"index": choice, "content": "", "tokens": [], "stop": False}
                yield {**piece, "prompt_progress": progress_body(event)}
            case Delta(choice):
                text = event.event.text if isinstance(event.event, ContentDelta) else ""
                if "\n" in text:
                    self._said[choice] = "\n"
                piece = {"index": choice, "content": text, "tokens": event.tokens, "stop": False}
                timings = {} if event.so_far is None else {"timings": timings_body(*event.so_far)}
                yield {**piece, **_probabilities(event.logprobs), **timings}
            case Finished(choice):
                line_end = self._said.get(choice, "")
                yield self._body(choice, {"content": "", "tokens": []}, event, line_end)

    def whole(self, events: list[Event]) -> Json | list[Json]:
        """The body for all events, or a list of them where there are several completions."""
        self._take(next(event for event in events if isinstance(event, Started)))
        found = []
        for choice, reply in enumerate(replies(events)):
            assert reply.end is not None
            said = {"content": reply.content, "tokens": reply.tokens, **_probabilities(reply.logprobs)}
            found.append(self._body(choice, said, reply.end, reply.content))
        return found[0] if len(found) == 1 else found

    def _take(self, event: Started) -> None:
        self._model, self._params = event.model, event.params or self._params

    def _body(self, choice: int, said: Json, end: Finished, text: str) -> Json:
        prompt = self._asked.prompt
        body = {
            "index": choice, **said, **_ended(end), "model": self._model, "has_new_line": "\n" in text,
            "prompt": prompt if isinstance(prompt, str) else "", "truncated": self._truncated or end.reached_context,
            "generation_settings": self._settings(),
        }  # fmt: skip
        fields = self._asked.response_fields
        return {path: found[0] for path in fields if (found := _nested(body, path))} if fields else body

    def _settings(self) -> Json:
        """The sampling parameters that held, by their names here and llama-server's."""
        params = self._params
        shown = {name: getattr(params, PARAMETERS.get(name, name)) for name in Sampling.model_fields}
        n_predict = 0 if self._asked.n_predict == 0 else -1 if params.max_tokens is None else params.max_tokens
        biases = [{"token": token, "bias": bias} for token, bias in (params.logit_bias or {}).items()]
        return {
            **shown, "seed": -1 if params.seed is None else params.seed, "logit_bias": biases, "n_predict": n_predict,
            "n_probs": self._asked.n_probs, "stream": self._asked.stream, "stop": list(params.stop or ()),
        }  # fmt: skip


def _nested(body: Json, path: str) -> list[Any]:
    """The value at a path such as timings/prompt_n, in a list; an empty one where there is none."""
    found: Any = body
    for key in path.split("/"):
        if not isinstance(found, dict) or key not in found:
            return []
        found = found[key]
    return [found]


def _ended(end: Finished) -> Json:
    """The fields of the last body that tell how a completion ended."""
    word = end.stop_reason if isinstance(end.stop_reason, str) else ""
    kind = "limit" if end.finish_reason == "length" else "word" if word else "eos"
    return {
        "id_slot": -1, "stop": True, "stop_type": kind, "stopping_word": word,
        "tokens_predicted": end.usage.completion_tokens, "tokens_evaluated": end.usage.prompt_tokens,
        "tokens_cached": end.usage.prompt_tokens + end.usage.completion_tokens,
        "timings": timings_body(end.usage, end.timing),
    }  # fmt: skip


def _probabilities(tokens: Sequence[TokenLogprob]) -> Json:
    if not tokens:
        return {}

    def one(text: str, logprob: float | None) -> Json:
        return {"token": text, "bytes": list(text.encode("utf-8", "surrogatepass")), "logprob": logprob}

    return {
        "completion_probabilities": [
            {
                "id": token.token,
                **one(token.text, token.logprob),
                "top_logprobs": [{"id": id, **one(other.decoded_token, other.logprob)} for id, other in token.top],
            }
            for token in tokens
        ]
    }
