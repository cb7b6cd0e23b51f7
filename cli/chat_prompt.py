"""The line editor of a chat: history across sessions, several lines, wide characters."""

from __future__ import annotations

from contextlib import suppress

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from ggpy.errors import GGPYError
from ggpy.paths import cache_dir

FENCE = '"""'


class ChatPrompt:
    """Asks for a message. Enter sends it; Alt-Enter, a trailing backslash or an open fence begins a new line."""

    def __init__(self, input: Input | None = None, output: Output | None = None) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation=FormattedText([("class:prompt", "… ")]),
            input=input,
            output=output,
        )

    def ask(self) -> str:
        """The next message. Raises KeyboardInterrupt on Ctrl-C and EOFError on Ctrl-D."""
        return unfence(self._session.prompt(FormattedText([("bold", "> ")])))


def is_open(text: str) -> bool:
    """True where a message begins with a fence that is not closed yet."""
    stripped = text.strip()
    return stripped.startswith(FENCE) and not (len(stripped) >= 2 * len(FENCE) and stripped.endswith(FENCE))


def unfence(text: str) -> str:
    """The message without the fence around it."""
    stripped = text.strip()
    if stripped.startswith(FENCE) and not is_open(text):
        return stripped[len(FENCE) : -len(FENCE)].strip("\n")
    return text


def _history() -> History:
    try:
        path = cache_dir() / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        if path.is_file():
            return _Kept(str(path))
    except (OSError, GGPYError):
        pass
    return InMemoryHistory()  # nowhere to keep it: this session's own history still works


class _Kept(FileHistory):
    """A history that goes on without its file should that become unwritable."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
