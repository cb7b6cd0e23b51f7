"""Texts for a command that takes many: its arguments, the lines of files, the lines of stdin."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from ggpy.cli.options import FILE_NAME

texts_option = click.option(
    "-f",
    "--file",
    "files",
    type=FILE_NAME,
    multiple=True,
    metavar="FILE",
    help="A file with a text a line; - is stdin. May be repeated.",
)


def read_texts(arguments: Sequence[str], files: Sequence[str]) -> list[str]:
    """The arguments, then the lines of the files that are not empty; without either, those of stdin, if it is no
    terminal."""
    from ggpy.cli.terminal import read_text

    if not arguments and not files and not sys.stdin.isatty():
        files = ("-",)
    texts = [*arguments]
    for name in files:
        texts += [line for line in read_text(name).splitlines() if line.strip()]
    return texts
