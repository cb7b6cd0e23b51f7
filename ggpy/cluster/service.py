"""The server's service over models on a cluster: requests go to their replicas and events come back, by Ray Serve,
which also starts replicas as they are needed and in place of those that died."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

from grpc import RpcError
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from ggpy.cluster.conversations import conversation_key
from ggpy.protocol.errors import RequestError
from ggpy.protocol.generation import ChatRequest, CompletionRequest, Event, Finished
from ggpy.server.models import LoadedModel, Models, ModelSpec
from ggpy.server.service import Service
from ggpy.server.settings import Settings

T = TypeVar("T")

#: Seconds in which a replica says what is known of its model: longer waits are for one that is being loaded.
LOOK = 2.0


class RayService(Service):
    """A service whose models are elsewhere. handles: Ray Serve's deployment of each model, by its name."""

    def __init__(
        self, specs: Sequence[ModelSpec], handles: Mapping[str, DeploymentHandle], settings: Settings | None = None
    ) -> None:
        super().__init__(Models(specs, _elsewhere), settings)
        self._handles = handles

    async def answer(
        self, asked: ChatRequest | CompletionRequest, keep_alive: float | None = None
    ) -> AsyncGenerator[Event, None]:
        name = self.models.named(asked.model).name
        handle = self._handle(name, "answer").options(stream=True, session_id=conversation_key(asked))
        async with _followed(handle.remote(asked)) as events:
            async for event in events:
                _check(event)
                if isinstance(event, Finished):
                    self.metrics.answer(name, event)
                yield event

    async def call(self, name: str | None, what: Callable[..., T], *given: Any, keep_alive: float | None = None) -> T:
        handle = self._handle(self.models.named(name).name, "call")
        async with _followed(handle.remote(what, *given)) as response:
            return _check(await response)

    async def look(self, name: str, what: Callable[[LoadedModel], T]) -> T | None:
        handle = self._handle(name, "look")
        if not handle.running_replicas_populated():
            return None
        try:
            async with _followed(handle.remote(what)) as response:
                return await asyncio.wait_for(response, LOOK)
        except (asyncio.TimeoutError, RequestError):
            return None

    def _handle(self, name: str, method: str) -> DeploymentHandle:
        """A method of a model's replicas, called by gRPC, not by reference: a token of a stream is then no object of
        Ray's, and costs this process half as much (0.3 ms, four streams on a busy machine)."""
        return self._handles[name].options(method_name=method, _by_reference=False)

    async def unload(self, name: str) -> None:
        words = "Models stay loaded on a cluster, where Ray starts and ends their replicas; leave keep_alive out."
        raise RequestError(words, "keep_alive", 501)


@asynccontextmanager
async def _followed(response: Any) -> AsyncIterator[Any]:
    """A response of Ray Serve, cancelled where the block is left before its end; its errors are told as a client is to
    read them."""
    try:
        yield response
    except BackPressureError:
        words = "The most requests that may wait for this model do so already; try again later."
        raise RequestError(words, status=429, code="queue_full") from None
    except DeploymentUnavailableError:
        words = "No replica of the model comes to run on the cluster; Ray's log of it says why."
        raise RequestError(words, status=503, code="model_not_loaded") from None
    except RayTaskError:
        raise  # a mistake in the code, which the log tells
    except (RayError, RayServeException, RpcError):
        words = "The replica of the model that answered this request is gone; ask again."
        raise RequestError(words, status=503, code="replica_lost") from None
    except BaseException:
        response.cancel()
        raise


def _check(value: Any) -> Any:
    """A replica's answer, raised if it is an error."""
    if isinstance(value, RequestError):
        raise value
    return value


def _elsewhere(spec: ModelSpec) -> NoReturn:
    raise AssertionError(f"{spec.name} is loaded by its replicas")
