"""Folders of files that outlive a run: fetched models, compiled kernels, chat history."""

from __future__ import annotations

import os
from pathlib import Path

from ggpy.errors import GGPYError, shown


def expand(name: str) -> Path:
    """The path of a name that a user typed, in which ~ and ~user stand for home directories. Raises GGPYError where
    there is no such directory."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        user = name.split("/")[0]
        raise GGPYError(f"{shown(name)} is no path: the home directory {shown(user)} is not known.") from None


def cache_dir() -> Path:
    """The user's cache directory for ggpy; `GGPY_CACHE` overrides the platform's own. Not created here. Raises
    GGPYError where neither gives one."""
    chosen = os.environ.get("GGPY_CACHE")
    if chosen:
        try:
            return expand(chosen)
        except GGPYError as error:
            raise GGPYError(f"GGPY_CACHE: {error}") from None
    import platformdirs

    path = Path(platformdirs.user_cache_dir("ggpy", appauthor=False))
    if path.parts[0].startswith("~"):  # a user without a home directory
        raise GGPYError("Your home directory is not known, so there is no cache; set GGPY_CACHE to a folder for it.")
    return path


def models_dir() -> Path:
    """The folder of the cache where models are kept: fetched, pulled and converted ones. Not created here."""
    return cache_dir() / "models"
