"""The Python API for event loops: `AsyncLLM` answers many callers at once, each with `async for`.

from ggpy import AsyncLLM, SamplingParams

llm = AsyncLLM("model.gguf")
async for output in llm.generate("The capital of France is", SamplingParams(max_tokens=16)):
    print(output.outputs[0].text)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from ggpy.answers import raise_if_all_failed
from ggpy.engine.async_engine import AsyncEngine
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.llm import LLM
from ggpy.outputs import RequestOutput, completion_output
from ggpy.prompts import Message, Prompt
from ggpy.sampling.sampling_params import SamplingParams, params_or_default

if TYPE_CHECKING:
    from ggpy.engine.beam_search import BeamSearchOutput, BeamSearchParams


class AsyncLLM:
    """A model that answers many requests together, for callers in an event loop. The arguments are `LLM`'s; `llm` gives
    one that is open already, which stays its owner's to close."""

    def __init__(self, path: Any = None, *, llm: LLM | None = None, **options: Any) -> None:
        self.llm = LLM(path, **options) if llm is None else llm
        self._owns = llm is None
        self._engine = AsyncEngine(self.llm.engine, self.llm.lock)
        self._requests: dict[str, list[Request]] = {}

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        priority: int = 0,
    ) -> AsyncIterator[RequestOutput]:
        """Complete a prompt as `LLM.generate` does; yields the answers so far, again and again, until all are finished.
        request_id: a name for `abort`. priority: of requests that wait, the lowest number is first."""
        text, ids = self.llm.encode(prompt)
        return self._answer(text, ids, sampling_params, request_id, priority)

    def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        priority: int = 0,
        **template_values: Any,
    ) -> AsyncIterator[RequestOutput]:
        """Answer a conversation as `LLM.chat` does; yields the answers so far, until all are finished."""
        text = self.llm.render_chat(messages, **template_values)
        return self._answer(text, self.llm.tokenize_chat(text), sampling_params, request_id, priority)

    async def beam_search(self, prompt: Prompt, params: BeamSearchParams, priority: int = 0) -> BeamSearchOutput:
        """The likeliest continuations of a prompt, as `LLM.beam_search` finds them; other requests go on meanwhile, in
        the slots that the beams leave. Cancelling it ends the search."""
        return await self._engine.search(self.llm.beam_search_request(prompt, params, priority))

    async def _answer(
        self,
        prompt: str | None,
        ids: list[int],
        params: SamplingParams | None,
        request_id: str | None,
        priority: int,
    ) -> AsyncIterator[RequestOutput]:
        asked = params_or_default("sampling_params", params)
        if asked.best_of is not None and asked.best_of > asked.n:
            raise GGPYError("best_of compares whole answers, so none can be streamed; leave it out, or take LLM.")
        requests = self.llm.requests(ids, params, priority)
        if request_id is not None:
            self._requests[request_id] = requests
        texts = [""] * len(requests)
        ended: list[GGPYError | None] = []
        news: asyncio.Queue[None] = asyncio.Queue()  # an answer has gained text, or ended

        async def follow(index: int) -> None:
            error = None
            try:
                async for delta in self._engine.follow(requests[index]):
                    texts[index] += delta
                    news.put_nowait(None)
            except GGPYError as its_own:
                error = its_own
            ended.append(error)
            news.put_nowait(None)

        tasks = [asyncio.create_task(follow(index)) for index in range(len(requests))]
        try:
            while len(ended) < len(requests):
                await news.get()
                while not news.empty():
                    news.get_nowait()
                finished = len(ended) == len(requests)
                if finished:
                    raise_if_all_failed(ended)
                outputs = [completion_output(i, request, texts[i]) for i, request in enumerate(requests)]
                first = requests[0]
                yield RequestOutput(prompt, first.prompt, outputs, finished, first.prompt_logprobs)
        finally:
            if request_id is not None:
                self._requests.pop(request_id, None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def abort(self, request_id: str) -> None:
        """End a request early; its `async for` ends with what there is. Harmless for one that is over."""
        for request in self._requests.get(request_id, ()):
            self._engine.abort(request)

    def close(self) -> None:
        """End the engine's thread, and close the model if this opened it."""
        self._engine.close()
        if self._owns:
            self.llm.close()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.to_thread(self.close)
