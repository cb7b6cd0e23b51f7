"""`ggpy chat`: a conversation, on a terminal or line by line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ggpy.cli.options import (
    answer_options,
    default_model_sampling,
    model_options,
    open_model,
    sampling_options,
    sampling_params,
    template_kwargs_option,
)
from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.cli.chat_session import ChatSession


@click.command(
    epilog="""
    \b
    Examples:
      ggpy chat
      ggpy chat -m model.gguf -s "You are a patient teacher." --temp 0.3
      ggpy chat -m ./Qwen3-0.6B
      echo 你好 | ggpy chat -m model.gguf
    """
)
@model_options
@click.option("-s", "--system", metavar="TEXT", help="System message.")
@template_kwargs_option
@answer_options
@sampling_options
def chat(
    model_options: dict[str, Any],
    sampling: dict[str, Any],
    system: str | None,
    template_kwargs: dict[str, Any] | None,
    answering: dict[str, Any],
) -> int:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D ends the conversation; /help lists the commands.

    When stdin is no terminal, each of its lines is a message, and the answers go to stdout.
    """
    params = sampling_params(sampling if model_options["model"] else default_model_sampling(sampling))
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    with open_model(model_options | answering) as llm:
        from ggpy.cli.chat_session import ChatSession
        from ggpy.cli.interrupts import raise_interrupts
        from ggpy.text.chat_template import no_template

        raise_interrupts()
        if llm.template is None:
            raise no_template(llm.file)
        llm.template.check_values(template_kwargs or {})
        session = ChatSession(llm, system or None, params, template_kwargs)
        return _on_a_terminal(session) if interactive else _from_a_pipe(session)


def _on_a_terminal(session: ChatSession) -> int:
    from ggpy.cli.chat_prompt import ChatPrompt
    from ggpy.cli.terminal import note

    note(f"{session.llm.path.name} · /help lists the commands, Ctrl-D ends")
    prompt = ChatPrompt()
    while not session.ended:
        try:
            text = prompt.ask()
        except KeyboardInterrupt:
            continue  # the line is given up, not the conversation
        except EOFError:
            break
        try:
            session.take(text)
        except GGPYError as error:
            note(f"error: {error}")
        except KeyboardInterrupt:
            print()
    return 0


def _from_a_pipe(session: ChatSession) -> int:
    from ggpy.cli.interrupts import INTERRUPTED

    heard = False
    for line in _lines():
        heard = True
        session.take(line)
        if session.interrupted:
            return INTERRUPTED
        if session.ended:
            break
    if not heard:
        raise GGPYError("Standard input held no message; write one message a line.")
    return 0


def _lines() -> Iterator[str]:
    """The lines of stdin that hold something."""
    from ggpy.cli.terminal import MOST_TEXT, decode_utf8
    from ggpy.units import size_text

    lines = iter(lambda: sys.stdin.buffer.readline(MOST_TEXT), b"")
    for number, line in enumerate(lines, 1):
        if len(line) == MOST_TEXT:
            raise GGPYError(f"Line {number} of standard input is longer than {size_text(MOST_TEXT)}.")
        text = decode_utf8(line, f"Line {number} of standard input").removeprefix("\ufeff").strip()
        if text:
            yield text
