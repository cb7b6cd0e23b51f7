"""gpt-oss's harmony: a reply is messages, each in a channel and to a recipient.

<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.NAME
<|constrain|>json<|message|>{…}<|call|>. The prompt ends with <|start|>assistant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ggpy.text.reply.cursor import Markers, Reading, Unparsed, maybe, peek, space, until
from ggpy.text.reply.grammar import Lark
from ggpy.text.reply.json_calls import read_arguments
from ggpy.text.reply.parser import Reader, Thoughts

CONTROLS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")
THOUGHTS = Thoughts("<|channel|>analysis<|message|>", "<|end|>", True, "<|start|>assistant<|channel|>final<|message|>")
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_BODY = Markers([*_ENDS, "<|start|>", "<|channel|>"])
_HEADER = Markers(["<|message|>", "<|start|>", *_ENDS])
_TO = re.compile(r"\bto=(\S+?)(?=<|\s|$)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


def read_harmony(reply: Reader) -> Reading[None]:
    """Read a whole reply."""
    cur, out = reply.cur, reply.out
    # The first header may begin with a recipient, for the prompt has the role already.
    blank = yield from space(cur)
    first = yield from peek(cur, 3)
    marker: str | None = "" if first == "to=" else None
    if marker is None:
        out.content(blank)
        blank = ""
    while True:
        if marker is None:
            marker = yield from until(cur, _BODY, out.content)
            if marker is None:
                return
        if marker in _ENDS:
            cur.take(len(marker))
            out.edge()
        else:
            cur.record()
            try:
                yield from _message(reply)
            except Unparsed:
                raw = cur.recorded()
                if out.drop_call():
                    out.content(blank + raw)
            else:
                cur.recorded()
        marker, blank = None, ""


def _message(reply: Reader) -> Reading[None]:
    """Read a header and the message after it. Raises Unparsed."""
    cur, out = reply.cur, reply.out
    parts: list[str] = [(yield from maybe(cur, "<|start|>"))]
    if (yield from until(cur, _HEADER, parts.append)) != "<|message|>":
        raise Unparsed
    cur.take(len("<|message|>"))
    header = "".join(parts)
    channels, recipients = _CHANNEL.findall(header), _TO.findall(header)
    recipient = recipients[-1] if recipients else "assistant"
    name = recipient.removeprefix("functions.")
    if recipient != "assistant" and reply.functions and (name in reply.functions or name != recipient):
        yield from space(cur)
        if (yield from peek(cur)) != "{":
            raise Unparsed
        out.call(name)
        yield from read_arguments(reply)
        yield from space(cur)
        reply.end_call()
        return
    if not channels and recipient == "assistant" and "<|start|>" not in header:
        raise Unparsed
    cur.recorded()
    out.edge()
    say = out.reasoning if channels and channels[-1] == "analysis" else out.content
    yield from until(cur, _BODY, say)
    out.edge()


def harmony_grammar(lark: Lark, functions: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
    """A call; thoughts before it are no part of the grammar but for where they begin."""
    calls = (
        f"{lark.text(f'<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>')} {lark.json(schema)}"
        for name, schema in functions.items()
    )
    return lark.either(calls)


def harmony_reply(lark: Lark, functions: Mapping[str, Mapping[str, Any]]) -> str:
    """Any reply whose calls are of these functions; of thoughts the beginning alone."""
    channels = (lark.text(f"<|channel|>{name}<|message|>") for name in ("final", "commentary"))
    said = f"{lark.either(channels)} {lark.any_text()}"
    before = f"({lark.text(THOUGHTS.begin)} | {said} {lark.text('<|end|>')}) {lark.text('<|start|>assistant')}"
    return f"({before})* ({said} | {harmony_grammar(lark, functions, False)})"
