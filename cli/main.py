"""`ggpy`: finds the command, imports it only then, and turns what goes wrong into one sentence and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn, TextIO

import click

from ggpy import __version__
from ggpy.cli.interrupts import INTERRUPTED
from ggpy.errors import GGPYError, shortened, shown

# Command: where it lives, and its line in `ggpy --help`. Nothing is imported until the command is called.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("ggpy.cli.run:run", "Answer a prompt."),
    "chat": ("ggpy.cli.chat:chat", "Talk with a model."),
    "serve": ("ggpy.cli.serve:serve", "Answer clients of OpenAI's, Anthropic's and Ollama's APIs."),
    "batch": ("ggpy.cli.batch:batch", "Answer a file of requests."),
    "embed": ("ggpy.cli.embed:embed", "Give texts as vectors."),
    "rank": ("ggpy.cli.rank:rank", "Rank documents by a query."),
    "convert": ("ggpy.cli.convert:convert", "Convert a checkpoint folder to a GGUF file."),
    "inspect": ("ggpy.cli.inspect:inspect", "Show what a GGUF file holds."),
    "fit": ("ggpy.cli.fit:fit", "Say what memory a model takes, and what fits."),
    "tokenize": ("ggpy.cli.tokenize:tokenize", "Show the tokens of a text."),
    "bench": ("ggpy.cli.bench:bench", "Measure tokens per second."),
    "warmup": ("ggpy.cli.warmup:warmup", "Compile ahead what a model needs."),
    "doctor": ("ggpy.cli.doctor:doctor", "Say what this machine offers."),
    "models": ("ggpy.cli.models:models", "List the architectures that run."),
    "pull": ("ggpy.cli.pull:pull", "Fetch a model, or list those known by name."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run and exit: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
        open_streams()
        speak_utf8()
        try:
            args = list(sys.argv[1:] if args is None else args)
            for place, argument in enumerate(args, 1):
                if any("\ud800" <= c <= "\udfff" for c in argument):
                    shown = argument.encode("utf-8", "replace").decode()
                    raise GGPYError(f"Argument {place} ({shown}) is not valid UTF-8.")
            result = super().main(args, prog_name or "ggpy", standalone_mode=False, **extra)
            sys.stdout.flush()
            status = result if isinstance(result, int) else 0
        except BaseException as error:
            status = _report(error)
        flushed(sys.stderr)
        sys.exit(status)


def open_streams() -> None:
    """Replace standard streams that were closed before the start, which Python sets to None: stdin reads nothing,
    stderr goes nowhere, and writing to stdout fails, as it does in other programs."""
    for name, mode, access in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            stream = open(os.open(os.devnull, access), mode, encoding="utf-8")  # noqa: SIM115 - for the whole run
            setattr(sys, name, stream)


def flushed(stream: TextIO) -> None:
    """Flush a stream. Where that fails, its output goes nowhere from then on, or Python would report the error once
    more at exit."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):  # a stream of a test has no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# What writing to a stream fails with. Writing files does not come here: `ggpy.files` says which one it was.
_UNWRITABLE = (errno.ENOSPC, errno.EBADF, errno.EIO, errno.EFBIG)


def speak_utf8() -> None:
    """Write UTF-8 whatever the locale: model text has every script, and a lone surrogate must not cut it off."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="replace")


def _report(error: BaseException) -> int:
    """Report an error on stderr; returns the exit status."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    flushed(sys.stdout)
    if isinstance(error, BrokenPipeError):
        return 1  # whoever read the output has gone; as click does, where it sees it first
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED
    if os.environ.get("GGPY_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, click.UsageError):
        help_command = f" Try `{error.ctx.command_path} --help`." if error.ctx else ""
        message = shortened(error.format_message(), 500)  # click quotes whatever it was given
        _say(message + ("" if message.endswith((".", "?", ")")) else ".") + help_command)
        return 2
    if isinstance(error, (GGPYError, click.ClickException)):
        _say(str(error) if isinstance(error, GGPYError) else error.format_message())
    elif isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        _say("Memory ran out; try a smaller context (-c) or a smaller model.")
    elif isinstance(error, OSError) and not error.filename and error.errno in _UNWRITABLE:
        _say(f"Standard output cannot be written: {error.strerror}.")
    elif isinstance(error, OSError) and error.strerror:
        _say(f"{error.strerror}: {shown(error.filename)}." if error.filename else f"{error.strerror}.")
    else:
        what = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": .")
        _say(f"Something went wrong inside ggpy ({what}); run it again with GGPY_DEBUG=1 to see where.")
    return 1


def _say(sentence: str) -> None:
    from ggpy.cli.terminal import one_line

    with suppress(OSError):  # the status says it too
        click.echo(f"error: {one_line(sentence)}", err=True)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    \b
    Examples:
      ggpy run -p "What is the capital of France?"
      ggpy chat -m model.gguf
      ggpy convert -i Qwen-1_8B-Chat -t q4_0 -o qwen.gguf
    """,
)
@click.version_option(__version__, message="ggpy %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Convert language models to GGUF and run them, in pure Python."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
