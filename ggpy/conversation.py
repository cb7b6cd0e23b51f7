"""A conversation with a model: its messages, the tokens they became, and the part that fits the context.

Every turn renders the whole conversation, but what was rendered and generated before keeps the very tokens it had: an
answer tokenized again might become other tokens, and the cache would be of no use from there on.
Knows nothing of terminals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggpy import arguments
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.files import read_file, whole_file
from ggpy.llm import LLM
from ggpy.sampling.sampling_params import SamplingParams, params_or_default

MOST_SAVED = 64 << 20  # bytes of a saved conversation; the longest context there is takes a tenth of it
ROLES = ("user", "assistant", "system", "tool")


@dataclass
class _Transcript:
    """Text, and the tokens that it came from or became."""

    text: str
    token_ids: list[int]


@dataclass
class Conversation:
    """Messages and a model to continue them.

    system: the system message, never dropped. messages: all turns since the beginning, [{"role", "content"}, …].
    notify: called with one line when old turns no longer fit. template_kwargs: more values for the chat template, by
    name, as of `LLM.chat`.
    """

    llm: LLM
    system: str | None = None
    notify: Callable[[str], None] = lambda text: None
    messages: list[dict[str, str]] = field(default_factory=list)
    last: Request | None = None  # the latest answer, for its timings
    template_kwargs: Mapping[str, Any] | None = None
    _first: int = 0  # the oldest message that the model still sees
    _transcripts: list[_Transcript] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.llm, LLM):
            raise arguments.wrong("llm", self.llm, "an LLM")
        self.set_system(self.system)
        arguments.function("notify", self.notify)
        _, self.messages = _checked({"messages": self.messages}, "messages")

    @property
    def n_tokens(self) -> int:
        """Tokens that the latest turn took, prompt and answer."""
        return len(self.last.tokens) if self.last is not None else 0

    def clear(self) -> None:
        """Forget every turn; the system message stays."""
        self.messages.clear()
        self._transcripts.clear()
        self._first, self.last = 0, None

    def set_system(self, text: str | None) -> None:
        self.system = None if text is None else arguments.text("The system message", text) or None

    def reply(self, text: str, params: SamplingParams) -> Iterator[str]:
        """Add a user's message and yield the answer as it comes; closing the iterator keeps the part so far.

        Where no answer came at all, through an error or an interruption, the message is taken back. Raises GGPYError.
        """
        return self._reply(arguments.text("The message", text), params_or_default("params", params))

    def _reply(self, text: str, params: SamplingParams) -> Iterator[str]:
        self.messages.append({"role": "user", "content": text})
        try:
            yield from self._answer(params)
        finally:
            if self.messages[-1]["role"] == "user":
                self.messages.pop()

    def regenerate(self, params: SamplingParams) -> Iterator[str]:
        """Answer the last message once more, in place of the last answer."""
        return self._regenerate(params_or_default("params", params))

    def _regenerate(self, params: SamplingParams) -> Iterator[str]:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise GGPYError("There is no answer to generate again.")
        old = self.messages.pop()
        try:
            yield from self._answer(params)
        finally:
            if not self.messages or self.messages[-1]["role"] != "assistant":
                self.messages.append(old)

    def _answer(self, params: SamplingParams) -> Iterator[str]:
        before = self._first
        try:
            rendered, token_ids = self._fitting(params.max_tokens)
            request = self.llm.request(token_ids, params)
        except GGPYError:
            self._first = before
            raise
        try:
            with closing(self.llm.follow([request])) as deltas:
                for _, delta in deltas:
                    yield delta
        finally:
            # An answer that was stopped is what came of it; one that was stopped before its first token is none.
            if request.n_chosen:
                self.last = request
                self._remember(rendered, request)
                self.messages.append({"role": "assistant", "content": request.text})

    def _fitting(self, max_tokens: int | None) -> tuple[str, list[int]]:
        """The rendered conversation and its tokens, with room for an answer; drops the oldest turns where it must."""
        n_ctx = self.llm.n_ctx
        limit = n_ctx - min(max_tokens or n_ctx, n_ctx // 4)
        rendered, token_ids = self._encode()
        if len(token_ids) <= limit:
            return rendered, token_ids
        # A drop changes the prompt from its beginning, so that all of it is evaluated again: make room for some turns.
        limit -= n_ctx // 8
        before = self._first
        while len(token_ids) > limit and (following := self._next_turn()) is not None:
            self._first = following
            rendered, token_ids = self._encode()
        if self._first > before:
            dropped = sum(message["role"] == "user" for message in self.messages[before : self._first])
            turns = "turn" if dropped == 1 else f"{dropped} turns"
            self.notify(f"the conversation outgrew the context of {n_ctx} tokens: dropped the oldest {turns}")
        return rendered, token_ids

    def _next_turn(self) -> int | None:
        """The index at which the turn after the oldest begins: that of the next user message."""
        later = range(self._first + 1, len(self.messages))
        return next((i for i in later if self.messages[i]["role"] == "user"), None)

    def _encode(self) -> tuple[str, list[int]]:
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages = [*system, *self.messages[self._first :]]
        text = self.llm.render_chat(messages, template_kwargs=self.template_kwargs)
        for known in reversed(self._transcripts):
            if text.startswith(known.text):
                # The rest is no beginning: no BOS, and no space that SentencePiece puts there.
                rest = text[len(known.text) :]
                ids = self.llm.tokenizer.tokenize(rest, add_special=False, parse_special=True, continues=True)
                return text, known.token_ids + ids
        return text, self.llm.tokenize_chat(text)

    def _remember(self, rendered: str, request: Request) -> None:
        """Keep prompt and answer with their tokens, as far as tokens and text agree."""
        tokenizer = self.llm.tokenizer
        answer = request.token_ids
        if answer and (answer[-1] in tokenizer.eog or not tokenizer.token_bytes(answer[-1], special=False)):
            answer = answer[:-1]  # what ended it, be it a control token that a stop string names
        spelled = b"".join(tokenizer.token_bytes(token, special=False) for token in answer)
        self._transcripts.append(_Transcript(rendered, request.prompt))
        if spelled == request.text.encode():
            self._transcripts.append(_Transcript(rendered + request.text, request.prompt + answer))

    def save(self, path: Path) -> None:
        """Write system message and turns as JSON, whole or not at all. Raises GGPYError."""
        value = {"format": "ggpy-conversation", "version": 1, "model": self.llm.path.name}
        text = json.dumps({**value, "system": self.system, "messages": self.messages}, ensure_ascii=False, indent=2)
        with whole_file(arguments.path("path", path), inputs=[self.llm.path, *self.llm.file.paths]) as file:
            file.write((text + "\n").encode("utf-8", "backslashreplace"))  # half a surrogate pair, as JSON spells it

    def load(self, path: Path) -> None:
        """Load a conversation that `save` wrote. Raises GGPYError, and then the conversation is unchanged."""
        path = arguments.path("path", path)
        try:
            value = json.loads(read_file(path, MOST_SAVED).decode("utf-8"))
        except RecursionError:
            raise GGPYError(f"{path} holds no saved conversation: its JSON is nested too deeply.") from None
        except ValueError as error:  # JSON and UTF-8 errors both
            raise GGPYError(f"{path} holds no saved conversation: {error}.") from None
        system, messages = _checked(value, path)
        self.clear()
        self.system, self.messages = system, messages


def _checked(value: Any, path: Path | str) -> tuple[str | None, list[dict[str, str]]]:
    system = value.get("system") if isinstance(value, dict) else None
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not isinstance(system, (str, type(None))):
        raise GGPYError(f"{path} holds no saved conversation: it needs a list of messages.")
    for i, message in enumerate(messages):
        fine = isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)
        if not fine:
            raise GGPYError(f"{path} holds no saved conversation: message {i + 1} has no role and text.")
    return system, [{"role": message["role"], "content": message["content"]} for message in messages]
