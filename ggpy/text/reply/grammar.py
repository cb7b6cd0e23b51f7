"""Grammars of calls, in llguidance's Lark: what a model writes under one parses to calls whose arguments validate."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_BLANKS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Lark:
    """A grammar that is put together from rules. control: a text's id where it is a token that shows nothing, which a
    grammar names by that. silent: markers that any text may hold."""

    def __init__(
        self, control: Callable[[str], int | None], markers: Iterable[str], silent: Iterable[str] = ()
    ) -> None:
        self._silent = tuple(silent)
        self._ids = {marker: id for marker in markers if (id := control(marker)) is not None}
        known = sorted(self._ids, key=len, reverse=True)
        self._parts = re.compile("|".join(map(re.escape, known)) or r"(?!)")
        self._rules: list[str] = []
        self._given = ""

    def text(self, text: str) -> str:
        """An expression for a text in which markers may stand."""
        text = text.removeprefix(self._given)
        found, at = [], 0
        for marker in self._parts.finditer(text):
            found += [json.dumps(text[at : marker.start()])] if marker.start() > at else []
            found.append(f"<[{self._ids[marker.group()]}]>")
            at = marker.end()
        return " ".join([*found, json.dumps(text[at:])] if at < len(text) or not found else found)

    def json(self, schema: Mapping[str, Any]) -> str:
        """An expression for JSON of a schema, with blanks as templates write them: a small model would fill its context
        with them."""
        return self.rule(f"%json {json.dumps({**schema, 'x-guidance': _BLANKS})}")

    def free(self, ends: str) -> str:
        """An expression for any text up to a marker, and that marker."""
        if ends in self._ids:
            return self.rule(f"{self.any_text(ends)} {self.text(ends)}")
        self._rules.append(f"free_{len(self._rules)}[lazy]: /(?s:.*)/ {json.dumps(ends)}")
        return self._rules[-1].split("[")[0]

    def any_text(self, but: str = "") -> str:
        """An expression for any text, with the markers that say nothing more. but: a control token, which the text does
        not spell, either."""
        silent = [f"<[{self._ids[marker]}]>" for marker in self._silent if marker in self._ids]
        text = "/(?s:.+)/"
        if but in self._ids:
            text = f"TEXT_{len(self._rules)}"
            spelled = re.escape(but).replace("/", r"\/")
            self._rules.append(rf"{text}: /(?s:.+)/ & ~/(?s:.*){spelled}(?s:.*)/")
        # Never two texts in a row, which would spell together what each may not.
        return self.rule(f"({text}? ({' | '.join(silent)}))* {text}?" if silent else f"{text}?")

    def within_text(self, sign: str, call: Callable[[], str], parallel: bool) -> str:
        """An expression for any text in which the sign of a call is followed by one: what `call` gives begins so."""
        head = self.free(sign)
        self._given = sign
        body = call()
        self._given = ""
        return f"({head} {body}){'*' if parallel else '?'} {self.any_text(sign)}"

    def either(self, options: Iterable[str]) -> str:
        return self.rule(" | ".join(options))

    def rule(self, expression: str) -> str:
        self._rules.append(f"rule_{len(self._rules)}: {expression}")
        return self._rules[-1].split(":")[0]

    def whole(self, start: str) -> str:
        """The grammar whose texts are those of an expression."""
        return "\n".join([f"start: {start}", *self._rules])


def repeated(one: str, between: str, parallel: bool) -> str:
    """An expression for one, or for several with a text between."""
    return f"{one} ({between} {one})*" if parallel else one
