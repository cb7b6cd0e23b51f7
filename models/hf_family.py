"""One family of checkpoints: the model classes of a configuration, and what each of its keys means for the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One configuration class: `classes` are the models that it configures, the one that writes text first, then the
    one without a head; `followed` are the keys its layout is made from, each with the value that an absent key means.

    `permitted` are values of keys that it has in place of those in REFUSED and IGNORED, `ignored` are keys of its own
    that change nothing, each with the reason. `text`: the family of the text model in "text_config", for a model of
    more than text; what is followed beside it is not read inside, but for `either`: flags that are set in one of both.
    """

    classes: tuple[str, ...]
    followed: Mapping[str, Any]
    permitted: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    either: tuple[str, ...] = ()


#: Why a key of a family changes nothing.
UNREAD = "transformers' class does not read it"


def without(followed: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """A family's keys without some of another's."""
    return {key: value for key, value in followed.items() if key not in keys}
