"""Completions of code that end at a line, before the model ends them."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class LineLimits:
    """Where a completion ends. n_indent: at a line, not the first, that begins with fewer blanks. seconds: after so
    many, once there is a line end."""

    n_indent: int = 0
    seconds: float | None = None


class LineWatch:
    """Follows one completion's text to where it ends by its limits."""

    def __init__(self, limits: LineLimits) -> None:
        self._limits = limits
        self._indent: int | None = None  # blanks of a line that has nothing else yet; None: within a line
        self._has_line_end = False
        self._began: float | None = None

    def end_in(self, text: str) -> int | None:
        """How many characters of the next piece of text belong to the completion that ends in it; None: it goes on."""
        self._began = self._began or time.perf_counter()
        for at, character in enumerate(text):
            if self._indent is not None:
                if character in " \t":
                    self._indent += 1
                    continue
                if self._indent < self._limits.n_indent:
                    return at
                self._indent = None
            if character == "\n":
                self._indent, self._has_line_end = 0, True
        late = self._limits.seconds is not None and time.perf_counter() - self._began > self._limits.seconds
        return len(text) if late and self._has_line_end else None
