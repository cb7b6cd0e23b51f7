"""The models of a server: each loaded when it is first asked for, in a thread, while other requests go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ggpy.engine.async_engine import AsyncEngine
from ggpy.errors import GGPYError, quoted
from ggpy.llm import LLM
from ggpy.protocol.errors import RequestError
from ggpy.text.reply import ReplyFormat, reply_format

Open = Callable[..., LLM]


@dataclass(frozen=True)
class ModelSpec:
    """A model that a server offers. source: what `LLM` takes; None: the default model. options: `LLM`'s others."""

    name: str
    source: str | None
    options: Mapping[str, Any] = field(default_factory=dict)


class LoadedModel:
    """A model in memory: the engine in a thread of its own, and a thread that prepares requests for it, so that the
    event loop neither renders templates nor tokenizes."""

    def __init__(self, name: str, llm: LLM) -> None:
        self.name, self.llm = name, llm
        self.engine = AsyncEngine(llm.engine, llm.lock)
        self.form: ReplyFormat = reply_format(llm.template)
        self.worker = ThreadPoolExecutor(1, f"ggpy-prepare-{name}")
        self.n_users = 0
        self.last_used = time.monotonic()

    async def run(self, what: Callable[..., Any], *given: Any) -> Any:
        """Call a function in the thread that prepares requests."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, what, *given)

    def close(self) -> None:
        self.worker.shutdown()
        self.engine.close()
        self.llm.close()


class Models:
    """The models that a server offers, by name. open_model: makes an `LLM` of a spec."""

    def __init__(self, specs: Sequence[ModelSpec], open_model: Callable[[ModelSpec], LLM]) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self._open = open_model
        self._loaded: dict[str, LoadedModel] = {}
        self._loading = asyncio.Lock()  # one at a time: each takes all cores, and is measured against free memory

    @property
    def loaded(self) -> dict[str, LoadedModel]:
        return dict(self._loaded)

    def named(self, name: str | None) -> ModelSpec:
        """The spec of a name; without one, the first. Raises RequestError."""
        if name is None or name not in self.specs:
            if name is None or len(self.specs) == 1:  # clients send whatever name they were configured with
                return next(iter(self.specs.values()))
            known = ", ".join(self.specs)
            words = f"There is no model {quoted(name, 80)}; there are {known}."
            raise RequestError(words, "model", 404, "model_not_found")
        return self.specs[name]

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[LoadedModel]:
        """The model of a name, loaded, which stays so within the block. Raises RequestError: 404, 503."""
        spec = self.named(name)
        model = self._loaded.get(spec.name)
        if model is None:
            async with self._loading:
                model = self._loaded.get(spec.name) or await self._load(spec)
        model.n_users += 1
        try:
            yield model
        finally:
            model.n_users -= 1
            model.last_used = time.monotonic()

    async def _load(self, spec: ModelSpec) -> LoadedModel:
        try:
            llm = await asyncio.to_thread(self._open, spec)
        except GGPYError as error:
            raise RequestError(f"{spec.name} cannot be loaded: {error}", "model", 503, "model_not_loaded") from None
        model = self._loaded[spec.name] = LoadedModel(spec.name, llm)
        return model

    async def close(self) -> None:
        for model in self._loaded.values():
            await asyncio.to_thread(model.close)
        self._loaded.clear()
