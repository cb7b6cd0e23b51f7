"""The application on a socket, until it is told to stop."""

from __future__ import annotations

from starlette.applications import Starlette
from uvicorn import Config, Server

from ggpy.notes import Notify


def run(app: Starlette, host: str, port: int, notify: Notify) -> None:
    """Listen and answer until SIGTERM or Ctrl-C."""
    server = Server(Config(app, host, port, log_config=None, access_log=False, lifespan="on", ws="none"))
    notify(f"listening on http://{host}:{port}")
    server.run()
