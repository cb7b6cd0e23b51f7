"""A server in a thread, on a free port of this machine."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from ggpy import LLM
from ggpy.engine.engine import Engine
from ggpy.server.app import create_app
from ggpy.server.models import Models, ModelSpec
from ggpy.server.run import Binding, server
from ggpy.server.service import Service
from ggpy.server.settings import Settings


def open_spec(spec: ModelSpec) -> LLM:
    return LLM(spec.source or "", **spec.options)


class Running:
    """A server within a `with` block. models: arguments of `Models`; binding: of `Binding`; settings: of `Settings`."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        models: dict[str, Any] | None = None,
        open_model: Callable[[ModelSpec], LLM] = open_spec,
        keep_alive: int = 5,
        binding: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.service = Service(Models(specs, open_model, **(models or {})), Settings(**settings))
        self._server = server(
            create_app(self.service), Binding(port=0, **(binding or {})), timeout_keep_alive=keep_alive
        )
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._errors = _Errors()

    def _run(self) -> None:
        startup = self._server.startup

        async def started(**given: Any) -> None:
            await startup(**given)
            self._ready.set()

        self._server.startup = started  # type: ignore[method-assign]
        self._server.run()

    def __enter__(self) -> Running:
        for name in ("ggpy.server", "uvicorn", "asyncio"):
            logging.getLogger(name).addHandler(self._errors)
        self._thread.start()
        assert self._ready.wait(30)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._thread.join(60)
        for name in ("ggpy.server", "uvicorn", "asyncio"):
            logging.getLogger(name).removeHandler(self._errors)
        assert not self._thread.is_alive()
        assert not self._errors.found, self._errors.found

    @property
    def engine(self) -> Engine:
        """The engine of the first model that is loaded."""
        return next(iter(self.service.models.loaded.values())).llm.engine

    def stop(self) -> None:
        """Tell it to stop, as SIGTERM does."""
        self._server.should_exit = True

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True

    def check(self) -> None:
        """Check that it answers, that nothing runs any more, and that no traceback was logged."""
        self.wait_for(lambda: not any(model.llm.engine.has_work for model in self.service.models.loaded.values()))
        answer = httpx.post(f"{self.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert not self._errors.found, self._errors.found

    def wait_for(self, condition: Callable[[], Any], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come to that"
            time.sleep(0.005)


class _Errors(logging.Handler):
    """Collects what is logged as an error, but for uvicorn's note that the time to drain is over."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "graceful shutdown exceeded" not in record.getMessage():
            self.found.append(f"{record.getMessage()} {record.exc_info}")
