"""The requests of a batch, answered by a model: many in flight, each result reported when it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ggpy.batch.files import BatchLine
from ggpy.engine.follow import at_once, follow
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.llm import LLM
from ggpy.prepare import Answer, answers_to, prompts_of, shortened
from ggpy.protocol import openai, openai_responses
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import ChatRequest, CompletionRequest, EmbeddingsRequest, Usage, total_usage
from ggpy.protocol.replies import Reply
from ggpy.text.reply import reply_format

Row = dict[str, Any]
Report = Callable[[Row, int], None]  # a result, and how many tokens were generated for it


@dataclass
class _Job:
    """A request of the batch with its answers."""

    custom_id: str
    asked: ChatRequest | CompletionRequest
    answers: list[Answer]

    @property
    def requests(self) -> list[Request]:
        return [answer.request for answer in self.answers]


@dataclass
class _Texts:
    """A request for vectors, and its inputs' token ids."""

    custom_id: str
    asked: EmbeddingsRequest
    inputs: list[list[int]]


def run_batch(llm: LLM, lines: Iterable[BatchLine], report: Report) -> None:
    """Answer requests, as many at a time as the model was opened for, and report a result for each, in the order in
    which they are done. A request that cannot be answered has a result that says so, and the others go on; so they do
    where the runtime fails, unless it fails again at once, which is raised."""
    jobs: dict[Request, _Job] = {}
    requests = _Arrivals(llm, lines, report, jobs).requests()
    for _, request, _ in follow(llm.engine, llm.lock, requests, at_once(llm.engine), keep_going=True):
        if not request.finished:
            continue
        job = jobs.pop(request)
        if not any(other in jobs for other in job.requests):
            report(_answered(llm, job), sum(other.n_chosen for other in job.requests))


class _Arrivals:
    """The engine's requests for those of a batch, made when it is their turn."""

    def __init__(self, llm: LLM, lines: Iterable[BatchLine], report: Report, jobs: dict[Request, _Job]) -> None:
        self._llm, self._lines, self._report, self._jobs = llm, lines, report, jobs
        self._form = reply_format(llm.template)
        self._texts: list[_Texts] = []  # to be embedded together

    def requests(self) -> Iterator[Request]:
        for line in self._lines:
            try:
                job = self._job(line)
            except Exception as error:
                self._report(_failed(line.custom_id, error), 0)
                continue
            if job is not None:
                self._jobs.update(dict.fromkeys(job.requests, job))
                yield from job.requests
            elif sum(len(texts.inputs) for texts in self._texts) >= at_once(self._llm.engine):
                self._embed(self._texts)
                self._texts = []
        self._embed(self._texts)

    def _job(self, line: BatchLine) -> _Job | None:
        asked = openai.parse(line.method, line.url, line.body)
        if isinstance(asked, EmbeddingsRequest):
            inputs = [ids for _, ids in prompts_of(self._llm, asked)]
            self._texts.append(_Texts(line.custom_id, asked, inputs))
            return None
        if not isinstance(asked, ChatRequest | CompletionRequest):
            raise RequestError(f"{line.url} has no place in a batch yet.", "url", 404)
        if asked.stream:
            raise RequestError("stream has no place in a batch; leave it out.", "stream")
        return _Job(line.custom_id, asked, answers_to(self._llm, self._form, asked))

    def _embed(self, waiting: list[_Texts]) -> None:
        try:
            vectors = self._llm.embed([ids for texts in waiting for ids in texts.inputs]) if waiting else []
        except Exception as error:
            if len(waiting) == 1:
                self._report(_failed(waiting[0].custom_id, error), 0)
                return
            for texts in waiting:  # it may be the fault of one
                self._embed([texts])
            return
        found = iter(output.outputs.embedding for output in vectors)
        for texts in waiting:
            usage = Usage(sum(map(len, texts.inputs)))
            try:
                rows = shortened([next(found) for _ in texts.inputs], texts.asked)
            except RequestError as error:
                self._report(_failed(texts.custom_id, error), 0)
                continue
            body = openai_responses.embeddings(self._llm.path.stem, rows, usage, texts.asked.base64)
            self._report(_row(texts.custom_id, 200, body), 0)


def _answered(llm: LLM, job: _Job) -> Row:
    error = next((request.error for request in job.requests if request.error is not None), None)
    if error is not None:
        return _failed(job.custom_id, RequestError(str(error), status=500))
    replies = [Reply() for _ in job.answers]
    for answer, reply in zip(job.answers, replies, strict=True):
        for event in answer.events(answer.request.text, finished=True):
            reply.take(event)
    usage = total_usage((reply.end for reply in replies if reply.end), job.asked.params.n)
    body_of = openai_responses.chat_completion if isinstance(job.asked, ChatRequest) else openai_responses.completion
    return _row(job.custom_id, 200, body_of(llm.path.stem, replies, usage))


def _failed(custom_id: str, error: Exception) -> Row:
    if not isinstance(error, RequestError):
        known = str(error) if isinstance(error, GGPYError) else f"The request failed: {error or type(error).__name__}."
        error = RequestError(known, status=500)
    return _row(custom_id, error.status, openai_responses.error_body(error))


def _row(custom_id: str, status: int, body: dict[str, Any]) -> Row:
    """A line of the file of results; as in OpenAI's, `error` is for requests that were never tried."""
    return {
        "id": openai_responses.new_id("batch_req_"),
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": openai_responses.new_id("req_"), "body": body},
        "error": None,
    }
