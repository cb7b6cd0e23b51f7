"""The error that a request is answered with, before each protocol writes it in its own shape."""

from __future__ import annotations

from ggpy.errors import GGPYError


class RequestError(GGPYError):
    """A request that is not answered. status: HTTP's; param: the field that is at fault; code: a word for programs."""

    def __init__(self, sentence: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(sentence)
        self.param, self.status, self.code = param, status, code


def unsupported(name: str, why: str = "leave it out") -> RequestError:
    """The error for a field that would change the answer and is not followed."""
    return RequestError(f"{name} is not supported; {why}.", name, code="unsupported_parameter")
