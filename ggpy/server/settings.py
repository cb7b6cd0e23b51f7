"""Limits and keys of a server."""

from __future__ import annotations

from dataclasses import dataclass

from ggpy.errors import GGPYError, shown
from ggpy.files import read_file


@dataclass(frozen=True)
class Settings:
    """Limits of a server's clients, and its keys.

    api_keys: one of these is asked for, if there are any. max_queue: requests that may wait for a model, beside those
    that run. max_prompt_tokens: of one prompt; None: as many as the context holds. max_body: bytes of a request.
    timeout: seconds that a client may take to send its request, or to take a piece of its answer. cors_origins: pages
    of these origins may ask; "*": all. log_json: a line of JSON for each request on standard error.
    local_names_alone: requests have to be for localhost or an address of this machine's own.
    preload: the first model is loaded before it is asked for.
    """

    api_keys: tuple[str, ...] = ()
    max_queue: int = 256
    max_prompt_tokens: int | None = None
    max_body: int = 32 << 20
    timeout: float = 60.0
    cors_origins: tuple[str, ...] = ()
    log_json: bool = False
    local_names_alone: bool = False
    preload: bool = False


def read_keys(path: str) -> list[str]:
    """The keys of a file, one a line; empty lines and those that begin with # are none. Raises GGPYError."""
    try:
        lines = read_file(path, 1 << 20, ordinary=False).decode().splitlines()  # a pipe keeps keys from the disk
    except UnicodeDecodeError:
        raise GGPYError(f"{shown(path)} is no text in UTF-8.") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise GGPYError(f"{shown(path)} holds no key; write one a line.")
    return keys
