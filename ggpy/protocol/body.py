"""Bodies of requests, declared as pydantic models: what is wrong with one is a sentence that names the field.

A field that nobody declared is refused, as it might change the answer; null stands for one that is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from ggpy import arguments
from ggpy.errors import GGPYError, quoted
from ggpy.protocol.errors import RequestError

_OURS, _UNSUPPORTED = "ggpy", "ggpy_unsupported"

#: pydantic's kinds of errors, and how a sentence words what the value must be.
_WORDS = {
    "string_type": "a text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
}


class Body(BaseModel):
    """A body, or an object within one. Values are taken as they are, never turned into another type. A field whose name
    Python or pydantic has for itself has an underscore behind it here."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        protected_namespaces=(),
        alias_generator=lambda name: name.rstrip("_"),
        defer_build=True,  # a server listens before it knows how to read every body
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: found for name, found in value.items() if found is not None} if type(value) is dict else value


AnyBody = TypeVar("AnyBody", bound=Body)


def read(kind: type[AnyBody], value: Any, where: str) -> AnyBody:
    """The body of a kind that a decoded value is; `where` names the path. Raises RequestError for the first field that
    is wrong."""
    if not isinstance(value, dict):
        raise RequestError(f"body is {quoted(value, 80)}, but it must be an object of fields.", "body")
    try:
        return kind.model_validate(value)
    except RecursionError:
        raise RequestError("The body nests too deeply.", "body") from None
    except ValidationError as error:
        raise _error(error.errors(include_url=False)[0], where) from None


def only(*values: Any) -> BeforeValidator:
    """A field that is not followed, and its values that ask for nothing."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(nothing) and value == nothing for nothing in values):
            raise PydanticCustomError(_UNSUPPORTED, "is not supported; leave it out.")
        return value

    return BeforeValidator(check)


def checked(check: Callable[[str, Any], Any]) -> BeforeValidator:
    """A field that a function of `ggpy.arguments`, or one like them, checks."""

    def checking(value: Any) -> Any:
        try:
            return check("", value)
        except GGPYError as error:
            raise PydanticCustomError(_OURS, "{words}", {"words": str(error).strip()}) from None

    return BeforeValidator(checking)


def wrong(name: str, value: object, words: str) -> RequestError:
    """The error for a field's value that is not what it must be."""
    return RequestError(str(arguments.wrong(name, value, words)), name)


def _error(found: ErrorDetails, where: str) -> RequestError:
    *path, last = found["loc"] or ("body",)
    name = _spelt((*path, last))
    kind = found["type"]
    if kind == "missing":
        return RequestError(f"{name} is missing; give it.", name)
    if kind == "extra_forbidden":
        inside = _spelt(tuple(path)) if path else where
        return RequestError(f"{quoted(str(last), 80)} is no field of {inside}.", name, code="unknown_parameter")
    if kind in (_OURS, _UNSUPPORTED):
        return RequestError(
            f"{name} {found['msg']}", name, code="unsupported_parameter" if kind == _UNSUPPORTED else None
        )
    words = _WORDS.get(kind)
    if words is None and kind == "literal_error":
        words = "one of " + str(found.get("ctx", {}).get("expected", "")).replace(" or ", ", ")
    if words is None:
        words = re.sub(r"^(Input|Value) should (be |have )?", "", found["msg"]).rstrip(".")
    return wrong(name, found["input"], words)


def _spelt(path: tuple[int | str, ...]) -> str:
    """A place in a body, as `messages[2].content`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")[:200]
