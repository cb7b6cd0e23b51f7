"""The one exception that reaches a user: its text is a whole sentence
that says what is wrong, where, and what to do."""

from __future__ import annotations


class GGPYError(Exception):
    """A condition the user can act on. `str(error)` is printed as it stands, without a traceback."""


class OutOfMemory(GGPYError):
    """A device has no room for what is to be loaded."""
