"""A server in a thread, on a free port of this machine."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from uvicorn import Config, Server

from ggpy import LLM
from ggpy.server.app import create_app
from ggpy.server.models import Models, ModelSpec
from ggpy.server.service import Service
from ggpy.server.settings import Settings


def open_spec(spec: ModelSpec) -> LLM:
    return LLM(spec.source or "", **spec.options)


class Running:
    """A server within a `with` block."""

    def __init__(self, specs: Sequence[ModelSpec], models: dict[str, Any] | None = None, **settings: Any) -> None:
        self.service = Service(Models(specs, open_spec, **(models or {})), Settings(**settings))
        config = Config(create_app(self.service), port=0, log_config=None, access_log=False, lifespan="on", ws="none")
        self._server = Server(config)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        startup = self._server.startup

        async def started(**given: Any) -> None:
            await startup(**given)
            self._ready.set()

        self._server.startup = started  # type: ignore[method-assign]
        self._server.run()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(30)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
