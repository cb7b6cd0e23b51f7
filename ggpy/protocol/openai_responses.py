"""OpenAI's response bodies, whole and in pieces: of answers, vectors, errors."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import (
    Delta,
    Event,
    Finished,
    Progress,
    RerankRequest,
    Started,
    Timing,
    TokenLogprob,
    Usage,
    total_usage,
)
from ggpy.protocol.replies import Reply
from ggpy.text.reply.events import ContentDelta, ReasoningDelta, ToolCallDelta

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Json = dict[str, Any]


class Ranked(Protocol):
    """A document of a list that was ranked."""

    @property
    def index(self) -> int: ...
    @property
    def score(self) -> float: ...
    @property
    def n_tokens(self) -> int: ...


def new_id(kind: str) -> str:
    """A name that no other object has, such as chatcmpl-1f…"""
    return f"{kind}{uuid.uuid4().hex}"


def error_body(error: RequestError) -> Json:
    """The body that says why a request is not answered."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def usage_body(usage: Usage) -> Json:
    counts: Json = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if usage.cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens:
        counts["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return counts


def _cut(end: Finished | None) -> Json:
    """The field that says that thoughts were ended by their budget."""
    return {"reasoning_cut": True} if end is not None and end.reasoning_cut else {}


def timings_body(usage: Usage, timing: Timing) -> Json:
    """Times of one answer, by llama-server's names: milliseconds, and tokens a second."""
    n_read = usage.prompt_tokens - (usage.cached_tokens or 0)
    return {
        "cache_n": usage.cached_tokens or 0,
        "prompt_n": n_read,
        "prompt_ms": round(timing.prompt_s * 1000, 3),
        "prompt_per_token_ms": round(timing.prompt_s * 1000 / max(n_read, 1), 3),
        "prompt_per_second": round(timing.prompt_rate, 3),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(timing.decode_s * 1000, 3),
        "predicted_per_token_ms": round(timing.decode_s * 1000 / max(usage.completion_tokens - 1, 1), 3),
        "predicted_per_second": round(timing.decode_rate, 3),
    }


def progress_body(event: Progress) -> Json:
    """How much of a prompt is read, by llama-server's names."""
    return {
        "total": event.total, "cache": event.cached, "processed": event.processed,
        "time_ms": round(event.seconds * 1000, 3),
    }  # fmt: skip


def chat_completion(model: str, replies: Sequence[Reply], usage: Usage) -> Json:
    """The body for the answers to a conversation."""
    choices = [
        {
            "index": index,
            "message": _message(reply),
            "logprobs": _chat_logprobs(reply.logprobs),
            "finish_reason": reply.end.finish_reason if reply.end else None,
            **_cut(reply.end),
        }
        for index, reply in enumerate(replies)
    ]
    return _body("chatcmpl-", "chat.completion", model, choices, usage, replies)


def _message(reply: Reply) -> Json:
    message: Json = {"role": "assistant", "content": reply.content, "refusal": None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["content"] = reply.content or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.tool_calls
        ]
    return message


def completion(model: str, replies: Sequence[Reply], usage: Usage) -> Json:
    """The body for completions: all answers to the first prompt, then those to the next."""
    choices = []
    for index, reply in enumerate(replies):
        at = _Offset()
        choices.append(
            {
                "index": index,
                "text": reply.content,
                "logprobs": at.logprobs(reply.logprobs),
                "finish_reason": reply.end.finish_reason if reply.end else None,
            }
        )
    return _body("cmpl-", "text_completion", model, choices, usage, replies)


def embeddings(model: str, vectors: Sequence[NDArray[np.float32]], usage: Usage, as_base64: bool = False) -> Json:
    """The body for vectors, float32 [n_embd] each, in the order of the inputs."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    counts = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return {"object": "list", "data": data, "model": model, "usage": counts}


def ranking(model: str, ranked: Sequence[Ranked], asked: RerankRequest) -> Json | list[Json]:
    """The body for documents in the order of their scores, as Jina and vLLM have it, or as a list alone."""
    if asked.as_list:
        texts = ({"text": asked.documents[one.index]} if asked.return_documents else {} for one in ranked)
        rows = zip(ranked[: asked.top_n], texts, strict=False)
        return [{"index": one.index, "score": one.score, **text} for one, text in rows]
    results: list[Json] = [{"index": one.index, "relevance_score": one.score} for one in ranked[: asked.top_n]]
    if asked.return_documents:
        results = [{**result, "document": {"text": asked.documents[result["index"]]}} for result in results]
    n_tokens = sum(one.n_tokens for one in ranked)
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"id": new_id("rerank-"), "object": "list", "model": model, "results": results, "usage": usage}


def _body(prefix: str, kind: str, model: str, choices: list[Json], usage: Usage, replies: Sequence[Reply]) -> Json:
    body: Json = {
        "id": new_id(prefix),
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage_body(usage),
    }
    if replies and replies[0].end:
        body["timings"] = timings_body(replies[0].end.usage, replies[0].end.timing)
    return body


class ChunkStream:
    """The chunks of a streamed answer; `include_usage`: of all of it, in a chunk at the end. n_answers: to each
    prompt."""

    prefix = object = ""

    def __init__(self, include_usage: bool, n_answers: int) -> None:
        self._include_usage, self._n_answers = include_usage, n_answers
        self._ends: list[Finished] = []
        self._head: Json = {}

    def chunks(self, event: Event) -> Iterator[Json]:
        """The chunks that an event becomes, in the order of events."""
        if isinstance(event, Started):
            created = int(time.time())
            self._head = {"id": new_id(self.prefix), "object": self.object, "created": created, "model": event.model}
            return
        if isinstance(event, Progress):
            nothing = {"index": event.choice, **self._nothing(), "logprobs": None, "finish_reason": None}
            yield {**self._chunk([nothing]), "prompt_progress": progress_body(event)}
            return
        if isinstance(event, Delta):
            timings = {} if event.so_far is None else {"timings": timings_body(*event.so_far)}
            for choice in self._delta(event):
                chunk = self._chunk([choice])
                yield {**chunk, **timings} if timings else chunk
            return
        self._ends.append(event)
        chunk = self._chunk(
            [{**self._end(event), "logprobs": None, "finish_reason": event.finish_reason, **_cut(event)}]
        )
        yield {**chunk, "timings": timings_body(event.usage, event.timing)}

    def last(self) -> Iterator[Json]:
        """The chunk after the last event, where one was asked for."""
        if self._include_usage:
            yield self._chunk([], usage_body(total_usage(self._ends, self._n_answers)))

    def _chunk(self, choices: list[Json], usage: Json | None = None) -> Json:
        chunk = {**self._head, "choices": choices}
        return {**chunk, "usage": usage} if self._include_usage else chunk

    def _delta(self, event: Delta) -> Iterator[Json]:
        raise NotImplementedError

    def _end(self, event: Finished) -> Json:
        raise NotImplementedError

    def _nothing(self) -> Json:
        """The fields of a choice without any text."""
        raise NotImplementedError


class ChatChunks(ChunkStream):
    """The chunks of /v1/chat/completions."""

    prefix, object = "chatcmpl-", "chat.completion.chunk"

    def __init__(self, include_usage: bool, n_answers: int) -> None:
        super().__init__(include_usage, n_answers)
        self._begun: set[int] = set()

    def _delta(self, event: Delta) -> Iterator[Json]:
        yield from self._role(event.choice)
        delta: Json = {}
        match event.event:
            case ContentDelta(text):
                delta = {"content": text}
            case ReasoningDelta(text):
                delta = {"reasoning_content": text}
            case ToolCallDelta(index, id, name, arguments):
                function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
                head = {} if name is None else {"id": id, "type": "function"}
                delta = {"tool_calls": [{"index": index, **head, "function": function}]}
        yield {
            "index": event.choice, "delta": delta, "logprobs": _chat_logprobs(event.logprobs), "finish_reason": None,
        }  # fmt: skip

    def _role(self, choice: int) -> Iterator[Json]:
        if choice not in self._begun:
            self._begun.add(choice)
            delta = {"role": "assistant", "content": ""}
            yield {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}

    def _end(self, event: Finished) -> Json:
        # An answer without a word has its role here.
        delta = {} if event.choice in self._begun else {"role": "assistant", "content": ""}
        return {"index": event.choice, "delta": delta}

    def _nothing(self) -> Json:
        return {"delta": {}}


class CompletionChunks(ChunkStream):
    """The chunks of /v1/completions."""

    prefix, object = "cmpl-", "text_completion"

    def __init__(self, include_usage: bool, n_answers: int) -> None:
        super().__init__(include_usage, n_answers)
        self._offsets: dict[int, _Offset] = {}

    def _delta(self, event: Delta) -> Iterator[Json]:
        text = event.event.text if isinstance(event.event, ContentDelta) else ""
        logprobs = self._offsets.setdefault(event.choice, _Offset()).logprobs(event.logprobs)
        yield {"index": event.choice, "text": text, "logprobs": logprobs, "finish_reason": None}

    def _end(self, event: Finished) -> Json:
        return {"index": event.choice, **self._nothing()}

    def _nothing(self) -> Json:
        return {"text": ""}


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> Json | None:
    def one(text: str, logprob: float | None) -> Json:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "surrogatepass"))}

    if not tokens:
        return None
    content = [
        {
            **one(token.text, token.logprob),
            "top_logprobs": [one(other.decoded_token, other.logprob) for _, other in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


class _Offset:
    """Where in an answer's text the next token begins."""

    def __init__(self) -> None:
        self._at = 0

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> Json | None:
        if not tokens:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._at)
            self._at += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                None if token.logprob is None else {other.decoded_token: other.logprob for _, other in token.top}
                for token in tokens
            ],
            "text_offset": offsets,
        }
