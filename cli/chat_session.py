"""The effect of a line typed into a chat: a message to the model, or a command. Knows no keys and no screens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggpy.cli.options import SAMPLING_NAMES, described
from ggpy.cli.terminal import note, show, timing_line
from ggpy.conversation import Conversation
from ggpy.errors import GGPYError, quoted, shown
from ggpy.llm import LLM
from ggpy.paths import expand
from ggpy.sampling.sampling_params import SamplingParams

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class ChatSession:
    """A conversation, its sampling parameters and the commands over both."""

    def __init__(
        self, llm: LLM, system: str | None, params: SamplingParams, template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.llm = llm
        self.params = params
        self.conversation = Conversation(llm, system, notify=note, template_kwargs=template_kwargs)
        self.ended = False
        self._n_answers = 0
        self.interrupted = False  # whether the latest answer was stopped by Ctrl-C
        self.commands: dict[str, tuple[Callable[[str], None], str, str]] = {
            "help": (self._help, "", "this list"),
            "clear": (self._clear, "", "forget the conversation; the system message stays"),
            "system": (self._system, "TEXT", "set the system message; without TEXT, remove it"),
            "save": (self._save, "FILE", "write the conversation to a JSON file"),
            "load": (self._load, "FILE", "take up a saved conversation"),
            "regen": (self._regen, "", "answer the last message again"),
            "set": (self._set, "temp=0.5 …", "change how tokens are chosen; without values, show it"),
            "stats": (self._stats, "", "context in use and speed"),
            "exit": (self._exit, "", "end (also Ctrl-D)"),
        }

    def take(self, text: str) -> None:
        """Answer a message, or obey a command. Raises GGPYError; the conversation goes on."""
        self.interrupted = False
        text = text.strip()
        match = _COMMAND.fullmatch(text)
        if match:  # a path such as /usr/bin is none
            name, argument = match[1], (match[2] or "").strip()
            if name not in self.commands:
                raise GGPYError(f"There is no command /{shown(name)}; /help lists them.")
            self.commands[name][0](argument)
        elif text:
            self._stream(self.conversation.reply(text, self._next_params()))

    def _next_params(self) -> SamplingParams:
        """A fixed seed fixes the whole conversation, not each answer: otherwise /regen could only repeat itself."""
        self._n_answers += 1
        seed = self.params.seed
        return self.params if seed is None else replace(self.params, seed=seed + self._n_answers - 1)

    def _stream(self, deltas: Iterator[str]) -> None:
        """Show an answer as it comes; Ctrl-C stops it, and what came stays in the conversation."""
        last = ""
        try:
            for delta in deltas:
                show(delta)
                last = delta
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            close = getattr(deltas, "close", None)
            if close is not None:
                close()
        if self.interrupted or not last.endswith("\n"):
            show("\n")
        answer = self.conversation.last
        if self.interrupted:
            note("stopped")
        elif answer is not None and answer.reached_context:
            note(f"stopped: the context of {self.llm.n_ctx} tokens is full")

    def _help(self, argument: str) -> None:
        for name, (_, values, meaning) in self.commands.items():
            note(f"  {f'/{name} {values}':<18} {meaning}")
        note('  Several lines: end a line with \\, press Alt-Enter (Esc, Enter), or put them between """ and """.')

    def _clear(self, argument: str) -> None:
        self.conversation.clear()
        note("the conversation is empty")

    def _system(self, argument: str) -> None:
        self.conversation.set_system(argument)
        note("system message set" if argument else "system message removed")

    def _save(self, argument: str) -> None:
        path = _path(argument, "save")
        self.conversation.save(path)
        note(f"saved to {path}")

    def _load(self, argument: str) -> None:
        path = _path(argument, "load")
        self.conversation.load(path)
        note(f"loaded {len(self.conversation.messages)} messages from {path}")

    def _regen(self, argument: str) -> None:
        self._stream(self.conversation.regenerate(self._next_params()))

    def _set(self, argument: str) -> None:
        changes: dict[str, float | int | str | None] = {}
        for item in argument.replace(",", " ").split():
            name, equals, value = item.partition("=")
            name = name.lstrip("-").replace("_", "-")
            if name not in SAMPLING_NAMES or not equals:
                raise GGPYError(
                    f"/set cannot take {shown(item)}; write NAME=VALUE with an option's name, such as temp, top-p or"
                    " seed; `ggpy chat --help` lists them."
                )
            changes[SAMPLING_NAMES[name]] = value if name == "samplers" else _number(name, value)
        if changes.get("max_tokens") == -1:
            changes["max_tokens"] = None
        self.params = replace(self.params, **changes)  # type: ignore[arg-type]
        note(described(self.params.resolved(self.llm.sampling_defaults)))

    def _stats(self, argument: str) -> None:
        talk = self.conversation
        note(f"{len(talk.messages)} messages, {talk.n_tokens} of {self.llm.n_ctx} tokens of context")
        if talk.last is not None:
            note(timing_line(talk.last.timings))

    def _exit(self, argument: str) -> None:
        self.ended = True


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise GGPYError(f"/{command} needs a file name: /{command} FILE.")
    return expand(argument)


def _number(name: str, value: str) -> float | int:
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        raise GGPYError(f"{name} is {quoted(value)}, which is no number.") from None
