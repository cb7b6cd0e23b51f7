"""Where files that outlive a run are kept: fetched models, compiled kernels, chat history."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache directory for ggpy; `GGPY_CACHE` overrides the platform's own. Not created here."""
    chosen = os.environ.get("GGPY_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("ggpy", appauthor=False))
