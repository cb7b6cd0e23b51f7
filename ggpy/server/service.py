"""Requests of every protocol, answered: the one way from a request to its events."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ggpy.errors import GGPYError
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import (
    ChatRequest,
    CompletionRequest,
    Delta,
    EmbeddingsRequest,
    Event,
    Finished,
    Progress,
    RerankRequest,
    Started,
    Usage,
)
from ggpy.server.metrics import Metrics
from ggpy.server.models import LoadedModel, Models
from ggpy.server.settings import Settings

if TYPE_CHECKING:
    from ggpy.prepare import Answer
    from ggpy.protocol.openai_responses import Ranked

T = TypeVar("T")


class Service:
    """The models, and how requests to them are answered: shared by the routes of all protocols."""

    def __init__(self, models: Models, settings: Settings | None = None) -> None:
        self.models, self.settings = models, settings or Settings()
        self.metrics = Metrics(models)
        self._present: Counter[str] = Counter()  # requests to each model, from their arrival to their end

    @asynccontextmanager
    async def model_for(self, name: str | None, keep_alive: float | None = None) -> AsyncIterator[LoadedModel]:
        """The model of a name, loaded, for one request that needs its engine. Raises RequestError: 404 for a name that
        is none, 429 where too many requests wait for it, 503 where it cannot be loaded."""
        spec = self.models.named(name)
        n_present, most = self._present[spec.name], spec.n_parallel + self.settings.max_queue
        if n_present >= most:
            words = f"{n_present} requests to {spec.name} run or wait already, the most that may; try again later."
            raise RequestError(words, status=429, code="queue_full")
        self._present[spec.name] += 1
        try:
            async with self.models.use(spec, keep_alive) as model:
                yield model
        finally:
            self._present[spec.name] -= 1

    async def answer(
        self, asked: ChatRequest | CompletionRequest, keep_alive: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """The events of a request: `Started` once it is understood, then pieces of its answers as they come, and a
        `Finished` for each. Closing it ends the request before the engine's next step. Raises RequestError."""
        from ggpy.prepare import answers_to

        async with self.model_for(asked.model, keep_alive) as model:
            most = self.settings.max_prompt_tokens
            answers: list[Answer] = await model.run(answers_to, model.llm, model.form, asked, most)
            n_prompt = sum(len(answer.request.prompt) for answer in answers[:: asked.params.n])
            yield Started(model.name, n_prompt, answers[0].request.params)
            following = _followed(model, answers[0]) if len(answers) == 1 else _together(model, answers)
            async with aclosing(following) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        self.metrics.answer(model.name, event)
                    yield event

    async def call(self, name: str | None, what: Callable[..., T], *given: Any, keep_alive: float | None = None) -> T:
        """The value of `what(model, *given)` for the model of a name, loaded, in a thread that prepares requests. what:
        a function of a module, from data to data, as the model may be on another machine. Raises RequestError."""
        async with self.model_for(name, keep_alive) as model:
            return await model.run(what, model, *given)

    async def look(self, name: str, what: Callable[[LoadedModel], T]) -> T | None:
        """The value of `what(model)` for the model of a name, which is not loaded for it; None where it is not."""
        model = self.models.loaded.get(name)
        return None if model is None else what(model)

    async def unload(self, name: str) -> None:
        """Have a model leave, once nobody uses it. Raises RequestError where that is not the server's to do."""
        await self.models.unload(name)

    async def embed(self, asked: EmbeddingsRequest, keep_alive: float | None = None) -> tuple[str, list[Any], Usage]:
        """The model's name, a vector for each input, float32 [n_embd], and the tokens read. Raises RequestError."""
        return await self.call(asked.model, _embedded, asked, self.settings.max_prompt_tokens, keep_alive=keep_alive)

    async def rank(self, asked: RerankRequest) -> tuple[str, list[Ranked]]:
        """The model's name, and all documents, the best first. Raises RequestError."""
        return await self.call(asked.model, _ranked, asked, self.settings.max_prompt_tokens)


def _ranked(model: LoadedModel, asked: RerankRequest, most: int | None) -> tuple[str, list[Ranked]]:
    from ggpy.prepare import check_length
    from ggpy.ranking import rank

    for name, texts in (("query", [asked.query]), ("documents", asked.documents)):
        for text in texts:
            check_length(model.llm, name, text)
    try:
        return model.name, [*rank(model.llm, asked.query, asked.documents, normalize=not asked.raw_scores, most=most)]
    except GGPYError as error:
        raise RequestError(str(error), "model" if "model" in str(error) else "documents") from None


def _embedded(model: LoadedModel, asked: EmbeddingsRequest, most: int | None) -> tuple[str, list[Any], Usage]:
    from ggpy.prepare import prompts_of, shortened

    inputs = [ids for _, ids in prompts_of(model.llm, asked, most)]
    vectors = [output.outputs.embedding for output in model.llm.embed(inputs)]
    return model.name, shortened(vectors, asked), Usage(sum(map(len, inputs)))


async def _together(model: LoadedModel, answers: Sequence[Answer]) -> AsyncGenerator[Progress | Delta | Finished, None]:
    """The events of several answers, as they come."""
    found: asyncio.Queue[Progress | Delta | Finished | Exception] = asyncio.Queue()

    async def follow(answer: Answer) -> None:
        try:
            async with aclosing(_followed(model, answer)) as events:
                async for event in events:
                    found.put_nowait(event)
        except Exception as error:
            found.put_nowait(error)

    tasks = [asyncio.create_task(follow(answer)) for answer in answers]
    n_left = len(answers)
    try:
        while n_left:
            one = await found.get()
            if isinstance(one, Exception):
                raise one
            n_left -= isinstance(one, Finished)
            yield one
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _followed(model: LoadedModel, answer: Answer) -> AsyncGenerator[Progress | Delta | Finished, None]:
    """The events of one answer."""
    request = answer.request
    try:
        async with aclosing(model.engine.follow(request, answer.telling.progress)) as texts:
            async for text in texts:
                for event in answer.events(text, request.finished):
                    yield event
    except GGPYError as error:
        raise RequestError(str(error), status=500) from None
