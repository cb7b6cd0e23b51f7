"""The models of a server: each is loaded when it is first asked for, in a thread, while other requests go on, and
leaves when it is idle or when another one needs its place."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ggpy.errors import GGPYError, quoted
from ggpy.protocol.errors import RequestError

if TYPE_CHECKING:
    from ggpy.llm import LLM

log = logging.getLogger("ggpy.server")


@dataclass(frozen=True)
class ModelSpec:
    """A model that a server offers. source: a name as `LLM` takes it; None: the default model. options: parameters of
    `LLM`. sampling: defaults of sampling parameters, in place of the file's own. aliases: other names for it."""

    name: str
    source: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def n_parallel(self) -> int:
        return int(self.options.get("n_parallel", 4))


class LoadedModel:
    """A model in memory: the engine in a thread of its own, and two threads that prepare requests for it, so that the
    event loop neither renders templates nor tokenizes, and one long prompt does not hold up the others."""

    def __init__(self, name: str, llm: LLM) -> None:
        from ggpy.engine.async_engine import AsyncEngine
        from ggpy.text.reply import reply_format

        self.name, self.llm = name, llm
        self.engine = AsyncEngine(llm.engine, llm.lock)
        self.form = reply_format(llm.template)
        self.created = int(time.time())
        self.n_users = 0
        self.last_used = time.monotonic()
        self.keep_alive: float | None = None  # seconds that it stays when idle; None: for ever
        self._workers = ThreadPoolExecutor(2, f"ggpy-prepare-{name}")

    @property
    def expires(self) -> float | None:
        """When it leaves, by `time.monotonic`, unless it is used before; None while it is used, or if it stays."""
        return None if self.n_users or self.keep_alive is None else self.last_used + self.keep_alive

    @property
    def capabilities(self) -> list[str]:
        """Its uses, in Ollama's words: completion, tools, thinking, embedding, rerank."""
        hparams = self.llm.runtime.hparams
        if not hparams.writes_text:
            return ["rerank"] if hparams.pooling == "rank" else ["embedding"]
        able = {"completion": True, "tools": self.form.shows_tools, "thinking": self.form.writes_thoughts}
        return [name for name, does in able.items() if does]

    async def run(self, what: Callable[..., Any], *given: Any) -> Any:
        """Call a function in a thread that prepares requests."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, what, *given)

    def close(self) -> None:
        self._workers.shutdown()
        self.engine.close()
        self.llm.close()


class Models:
    """The models that a server offers, by name.

    open_model: makes an `LLM` of a spec. fits: says whether a spec's memory is free; None: nobody asks. max_models: how
    many are loaded at a time; None: any number. keep_alive: seconds for which a model that nobody uses stays loaded;
    None: for ever.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        open_model: Callable[[ModelSpec], LLM],
        fits: Callable[[ModelSpec], bool] | None = None,
        max_models: int | None = None,
        keep_alive: float | None = None,
    ) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self._names = {name: spec for spec in specs for name in (spec.name, *spec.aliases)}
        self._open, self._fits = open_model, fits
        self._max_models, self._keep_alive = max_models, keep_alive
        self._loaded: dict[str, LoadedModel] = {}
        self.loading: str | None = None
        self._changing = asyncio.Lock()  # one load or unload at a time: each is measured against free memory
        self._released = asyncio.Event()  # somebody has left a model, or waits for none any more
        self._wanted: Counter[str] = Counter()  # requests that wait for each model

    @property
    def loaded(self) -> dict[str, LoadedModel]:
        return dict(self._loaded)

    def named(self, name: str | None) -> ModelSpec:
        """The spec of a name; without one the first. A server of a single model answers to any name, as clients send
        the one that they were written with. Raises RequestError."""
        spec = self._names.get(name) if name is not None else None
        if spec is None and (name is None or len(self.specs) == 1):
            spec = next(iter(self.specs.values()))
        if spec is None:
            known = ", ".join(self.specs)
            raise RequestError(
                f"There is no model {quoted(name, 80)}; there are {known}.", "model", 404, "model_not_found"
            )
        return spec

    @asynccontextmanager
    async def use(self, spec: ModelSpec, keep_alive: float | None = None) -> AsyncIterator[LoadedModel]:
        """A model, loaded, which stays so within the block. keep_alive: as the server's, for this model from now on.
        Raises RequestError with the status 503 where it cannot be loaded."""
        self._wanted[spec.name] += 1
        try:
            while (model := self._loaded.get(spec.name)) is None:  # it may have left again before its turn here came
                obtaining = asyncio.ensure_future(self._obtain(spec))
                obtaining.add_done_callback(lambda done: done.cancelled() or done.exception())
                await asyncio.shield(obtaining)  # a client that goes meanwhile stops no load that others wait for
        finally:
            self._wanted[spec.name] -= 1
            self._released.set()
        model.n_users += 1
        if keep_alive is not None:
            model.keep_alive = keep_alive
        try:
            yield model
        finally:
            model.n_users -= 1
            model.last_used = time.monotonic()
            self._released.set()

    async def unload(self, name: str) -> None:
        """Have a model leave, once nobody uses it."""
        async with self._changing:
            while (model := self._loaded.get(name)) is not None:
                if not model.n_users:
                    await self._close(model)
                else:
                    await self._next_release()

    async def _obtain(self, spec: ModelSpec) -> None:
        async with self._changing:
            if spec.name not in self._loaded and await self._make_room(spec):
                await self._load(spec)

    async def _load(self, spec: ModelSpec) -> None:
        self.loading = spec.name
        began = time.monotonic()
        try:
            llm = await asyncio.to_thread(self._open, spec)
        except Exception as error:
            said = str(error) if isinstance(error, GGPYError) else f"{type(error).__name__}: {error}"
            if not isinstance(error, GGPYError):
                log.exception("%s cannot be loaded", spec.name, exc_info=error)
            words = f"The model {spec.name} cannot be loaded: {said}"
            raise RequestError(words, "model", 503, "model_not_loaded") from None
        finally:
            self.loading = None
        llm.sampling_defaults = {**llm.sampling_defaults, **spec.sampling}
        model = self._loaded[spec.name] = LoadedModel(spec.name, llm)
        model.keep_alive = self._keep_alive
        log.info("loaded %s in %.1f s", spec.name, time.monotonic() - began)

    async def _make_room(self, spec: ModelSpec) -> bool:
        """Unload models, the one first that was idle for longest, until another one has its place; wait for one where
        all are busy. False where nobody wants that place any more: no model leaves for it."""
        while self._wanted[spec.name]:
            full = self._max_models is not None and len(self._loaded) >= self._max_models
            if not full and self._loaded and self._fits is not None:
                full = not await asyncio.to_thread(self._fits, spec)
            if not full:
                return True
            await self._unload_one(spec)
        return False

    async def _unload_one(self, spec: ModelSpec) -> None:
        """Unload the model that was idle for longest, once there is one, as long as another one is wanted."""
        while self._wanted[spec.name]:
            idle = [model for model in self._loaded.values() if not model.n_users]
            if idle:
                await self._close(min(idle, key=lambda model: model.last_used))
                return
            await self._next_release()

    async def _next_release(self) -> None:
        self._released.clear()
        await self._released.wait()

    async def _close(self, model: LoadedModel) -> None:
        del self._loaded[model.name]
        await asyncio.to_thread(model.close)
        log.info("unloaded %s", model.name)

    async def unload_idle(self) -> None:
        """Unload models that nobody has used for long, for ever."""
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for model in list(self._loaded.values()):
                if (end := model.expires) is not None and end <= now and not self._changing.locked():
                    async with self._changing:
                        if model.n_users == 0:
                            await self._close(model)

    async def close(self) -> None:
        for model in list(self._loaded.values()):
            await self._close(model)
