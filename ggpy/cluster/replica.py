"""A model on a machine of the cluster, as Ray Serve runs it: the server's own service over this one model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from ggpy.llm import LLM
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import ChatRequest, CompletionRequest, Event
from ggpy.server.http import known_error
from ggpy.server.models import LoadedModel, Models, ModelSpec
from ggpy.server.service import Service
from ggpy.server.settings import Settings


class Replica:
    """One of a model's replicas. Errors are values here, as Ray would wrap them; they are raised where the request came
    from."""

    async def __init__(  # type: ignore[misc]
        self, spec: ModelSpec, open_model: Callable[[ModelSpec], LLM], settings: Settings
    ) -> None:
        self._service = Service(Models([spec], open_model), settings)
        # Ray sends requests once this is over. A model that cannot be loaded is told to each: others are still served.
        await self.call(_loaded)

    async def answer(self, asked: ChatRequest | CompletionRequest) -> AsyncGenerator[Event | RequestError, None]:
        """The events of a request, as `Service.answer`'s."""
        try:
            async with aclosing(self._service.answer(asked)) as events:
                async for event in events:
                    yield event
        except Exception as error:
            yield known_error(error)

    async def call(self, what: Callable[..., Any], *given: Any) -> Any:
        """The value of `what(model, *given)`, as `Service.call`'s."""
        try:
            return await self._service.call(None, what, *given)
        except Exception as error:
            return known_error(error)

    async def look(self, what: Callable[[LoadedModel], Any]) -> Any:
        """The value of `what(model)`; None where the model could not be loaded."""
        return await self._service.look(next(iter(self._service.models.specs)), what)

    async def __del__(self) -> None:
        await self._service.models.close()


def _loaded(model: LoadedModel) -> None:
    """Nothing, of a model that is loaded."""
