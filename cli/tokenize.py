"""`ggpy tokenize`: the tokens of a text. Reads the vocabulary alone, so a file without tensors will do."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import click

from ggpy.cli.options import FILE_NAME, MODEL_HELP, type_option
from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.text.tokenizer import Tokenizer


@click.command(
    epilog="""
    \b
    Examples:
      ggpy tokenize -m model.gguf -p "Hello, 世界"
      ggpy tokenize -m model.gguf -f notes.txt --ids
      ggpy tokenize -m ./Qwen3-0.6B -p "Hello, 世界"
      echo "<|im_start|>" | ggpy tokenize -m model.gguf -f - --no-parse-special
    """
)
@click.option("-m", "--model", type=FILE_NAME, metavar="MODEL", help=MODEL_HELP)
@type_option
@click.option("-p", "--prompt", metavar="TEXT", help="The text.")
@click.option(
    "-f", "--file", "prompt_file", type=FILE_NAME, metavar="FILE", help="Read the text from a file; - is stdin."
)
@click.option("--ids", is_flag=True, help="Print the ids alone, as one list.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with each token's id, piece and bytes.")
@click.option("--no-special", is_flag=True, help="Leave out the tokens that the model wants at a text's ends.")
@click.option("--no-parse-special", is_flag=True, help="Take special tokens in the text for ordinary text.")
def tokenize(
    model: str | None,
    file_type: str | None,
    prompt: str | None,
    prompt_file: str | None,
    ids: bool,
    as_json: bool,
    no_special: bool,
    no_parse_special: bool,
) -> None:
    """Show the tokens of a text: one line a token, its id and the text it stands for.

    A token that ends inside a character is shown as bytes.
    """
    from ggpy.cli.find_model import find_model
    from ggpy.cli.terminal import note, read_text
    from ggpy.text.tokenizer import Tokenizer

    if ids and as_json:
        raise GGPYError("--ids and --json are two forms of one list; leave one of them out.")
    if prompt is not None and prompt_file is not None:
        raise GGPYError("-p and -f both give the text; leave one of them out.")
    if prompt_file is not None:
        prompt = read_text(prompt_file)
    if prompt is None:
        raise GGPYError("There is no text; give it with -p TEXT, or -f FILE (- for stdin).")
    tokenizer = Tokenizer.from_gguf(find_model(model, file_type))
    if tokenizer.note is not None:
        note(tokenizer.note)
    tokens = tokenizer.tokenize(prompt, add_special=not no_special, parse_special=not no_parse_special)
    if ids:
        click.echo(tokens)
    elif as_json:
        text = json.dumps([_record(tokenizer, token) for token in tokens], indent=2, ensure_ascii=False)
        click.echo(re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text))  # what a terminal obeys
    else:
        width = len(str(tokenizer.n_vocab - 1))
        for token in tokens:
            click.echo(f"{token:>{width}}  {_shown(tokenizer.token_bytes(token))}")


def _record(tokenizer: Tokenizer, token: int) -> dict[str, object]:
    piece = tokenizer.token_bytes(token)
    return {"id": token, "piece": piece.decode("utf-8", "replace"), "bytes": list(piece)}


def _shown(piece: bytes) -> str:
    """A piece in quotes, line breaks and the like escaped."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)
