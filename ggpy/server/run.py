"""The application on a socket, until it is told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

import h11
from starlette.applications import Starlette
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from ggpy.errors import GGPYError, shown


@dataclass(frozen=True)
class Binding:
    """Where a server listens. uds: the path of a UNIX socket, in place of host and port. drain: seconds that running
    requests have to end, once it is told to stop."""

    host: str = "127.0.0.1"
    port: int = 8080
    uds: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    drain: int = 30

    @property
    def url(self) -> str:
        """The address that clients are to be given."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(
            self.host, f"[{self.host}]" if ":" in self.host else self.host
        )
        return f"http{'s' if self.ssl_certfile else ''}://{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """True where only this machine reaches it."""
        return self.uds is not None or self.host == "localhost" or self.host == "::1" or self.host.startswith("127.")


class HttpProtocol(H11Protocol):
    """uvicorn's HTTP, which does not wait for ever: not for a request that has begun, not for the first one, and not
    for a client that takes nothing of its answer."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._asked_late: asyncio.TimerHandle | None = None
        self._read_late: asyncio.TimerHandle | None = None
        self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        between = self.cycle is None or self.cycle.response_complete
        if between and self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._await_request()
        else:
            self._asked_late = _cancel(self._asked_late)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_late = self.loop.call_later(self._timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_late = _cancel(self._read_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._asked_late, self._read_late = _cancel(self._asked_late), _cancel(self._read_late)
        super().connection_lost(exc)

    def _await_request(self) -> None:
        if self._asked_late is None:
            self._asked_late = self.loop.call_later(self._timeout, self.transport.close)

    @property
    def _timeout(self) -> float:
        timeout: float = self.config.app.state.service.settings.timeout  # type: ignore[union-attr]
        return timeout


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer; returns that there is none."""
    if timer is not None:
        timer.cancel()
    return None


def server(app: Starlette, binding: Binding, **others: Any) -> Server:
    """A server of the application, yet to be run. Raises GGPYError where TLS files cannot be used."""
    config = Config(
        app,
        binding.host,
        binding.port,
        uds=binding.uds,
        http=HttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=binding.ssl_certfile,
        ssl_keyfile=binding.ssl_keyfile,
        timeout_graceful_shutdown=binding.drain,
        **others,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        words = f"The certificate or its key cannot be used: {error.strerror or error}."
        raise GGPYError(f"{words} Give PEM files by --tls-cert and --tls-key.") from None
    return Server(config)


def run(app: Starlette, binding: Binding) -> None:
    """Listen and answer until SIGTERM or Ctrl-C. Raises GGPYError where it cannot listen."""
    to_run = server(app, binding)
    listener = _listener(binding) if binding.uds is None else None
    # uvicorn raises the signal again that ended it, which for a server is no error.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    port = listener.getsockname()[1] if listener is not None else 0
    url = Binding(**{**binding.__dict__, "port": port}).url
    logging.getLogger("ggpy.server").info("listening on %s", url)
    to_run.run(None if listener is None else [listener])


def _listener(binding: Binding) -> socket.socket:
    """A socket that listens: bound here, so that what is wrong with the address is one sentence."""
    try:
        family = socket.getaddrinfo(binding.host, binding.port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((binding.host, binding.port))
            found.listen(2048)
        except BaseException:
            found.close()
            raise
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        words = f"{shown(binding.host)}:{binding.port} cannot be listened on: {said}; choose another --host or --port."
        raise GGPYError(words) from None
    found.set_inheritable(True)
    return found


class _Lines(logging.Formatter):
    """One line for each record: a sentence for people, or an object for programs."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if not self._as_json or record.name == "ggpy.requests":
            return text
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return json.dumps({"time": now, "level": record.levelname.lower(), "message": text})


def log_to_stderr(as_json: bool, requests: bool) -> None:
    """Write the server's notes on standard error; requests: a line for each as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(as_json))
    for name, level in (
        ("ggpy.server", logging.INFO),
        ("ggpy.requests", logging.INFO if requests else logging.WARNING),
        ("uvicorn", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        logger.handlers = [handler]
