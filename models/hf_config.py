"""A config.json as a mapping whose values are checked when they are looked up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggpy.errors import GGPYError


class Config:
    """Typed look-ups in a config.json. Each takes alternative key names; a missing key with no default is an error.

    `defaults` say what an absent key means; a key that is there and null means none of them.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str = "config.json", defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.values = values
        self.where = where
        self.defaults = defaults or {}
        #: Read beside the keys that layouts follow: the classes under "architectures", a classifier's labels, the id of
        #: the token that pads texts.
        self.classes: tuple[str, ...] = ()
        self.labels: tuple[str, ...] = ()
        self.padding: int | None = None

    def get(self, *keys: str) -> Any:
        """The first of these keys that is there and not null, else None."""
        found = (self.values[key] if key in self.values else self.defaults.get(key) for key in keys)
        return next((value for value in found if value is not None), None)

    def _required(self, keys: tuple[str, ...], default: Any) -> Any:
        value = self.get(*keys)
        if value is None:
            if default is None:
                raise GGPYError(f"{self.where} lacks {' or '.join(map(repr, keys))}, which this architecture needs.")
            return default
        return value

    def integer(self, *keys: str, default: int | None = None, least: int = 1, most: int = (1 << 31) - 1) -> int:
        value = self._required(keys, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise GGPYError(
                f"{self.where} gives {keys[0]!r} as {value!r:.60}; it must be a whole number from {least} to {most}."
            )
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        value = self._required(keys, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 3e38:
            raise GGPYError(f"{self.where} gives {keys[0]!r} as {value!r:.60}; it must be a finite number above 0.")
        return float(value)

    def flag(self, *keys: str, default: bool) -> bool:
        value = self._required(keys, default)
        if not isinstance(value, bool):
            raise GGPYError(f"{self.where} gives {keys[0]!r} as {value!r:.60}; it must be true or false.")
        return value

    def section(self, *keys: str) -> Config:
        """A nested object as a config of its own, empty where there is none."""
        value = self.get(*keys)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise GGPYError(f"{self.where} gives {keys[0]!r} as {value!r:.60}; it must be an object.")
        return Config(value, f"{self.where}'s {keys[0]!r}")

    def layer_kinds(self, n_layer: int, kinds: Mapping[str, bool], *others: str) -> list[bool] | None:
        """The kind of each layer by 'layer_types', or another key, as `kinds` has it: two of them, then older names;
        None where the config does not say."""
        found = self.get("layer_types", *others)
        if found is None:
            return None
        if not isinstance(found, list) or len(found) != n_layer:
            raise GGPYError(f"{self.where} gives 'layer_types' as {found!r:.60}; it must list {n_layer} layers.")
        unknown = [kind for kind in found if not isinstance(kind, str) or kind not in kinds]
        if unknown:
            raise GGPYError(
                f"{self.where} names {unknown[0]!r:.40} in 'layer_types'; ggpy knows {' and '.join([*kinds][:2])}."
            )
        return [kinds[kind] for kind in found]


def listed(names: list[str]) -> str:
    """Some names for a note: the first eight, and how many more there are."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(f"{name!r:.60}" for name in names[:8]) + more
