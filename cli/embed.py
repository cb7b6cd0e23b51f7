"""`ggpy embed`: texts as vectors."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from ggpy.cli.options import FILE_NAME, model_options, open_model
from ggpy.cli.texts import read_texts, texts_option
from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.outputs import EmbeddingRequestOutput

_SHOWN = 6  # numbers of a vector in a table
_WIDEST = 40  # characters of a text there


@click.command(
    epilog="""
    \b
    Examples:
      ggpy embed -m all-MiniLM-L6-v2.gguf "A cat sits on the mat." "Ein Kater auf der Matte."
      ggpy embed -m model.gguf -f sentences.txt -o vectors.npy
      ggpy embed -m model.gguf -f sentences.txt --dimensions 256 --format json > vectors.jsonl
      cat sentences.txt | ggpy embed -m model.gguf -o vectors.npy
    """
)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@texts_option
@click.option("-o", "--output", type=FILE_NAME, metavar="FILE", help="Write to a file: .npy, .json or .jsonl.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "npy"]),
    help="table: the beginning of each vector, and how near it is to the first; json: an object a line, with text and"
    " embedding; npy: a float32 array [texts, dimensions] as numpy loads it.  [default: as -o's name says, else table]",
)
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "last", "none"]),
    help="How the rows of a text's tokens become one; none: all of them.  [default: as the model was trained]",
)
@click.option("--dimensions", type=click.IntRange(min=1), metavar="N", help="Keep only the first N dimensions.")
@click.option("--no-normalize", is_flag=True, help="Leave vectors as they are; otherwise each has length 1.")
@model_options
def embed(
    texts: tuple[str, ...],
    files: tuple[str, ...],
    output: str | None,
    form: str | None,
    pooling: str | None,
    dimensions: int | None,
    no_normalize: bool,
    model_options: dict[str, Any],
) -> None:
    """Show or save texts as vectors, by a model made for that.

    Texts are arguments, lines of files, or lines of stdin; any number of them.
    """
    suffix = (output or "").rpartition(".")[2].lower()
    form = form or {"npy": "npy", "json": "json", "jsonl": "json"}.get(suffix, "json" if output else "table")
    if form == "npy" and output is None and sys.stdout.isatty():
        raise GGPYError("npy is no text; give a file for it (-o vectors.npy), or redirect the output.")
    if form == "npy" and pooling == "none":
        raise GGPYError("Without pooling texts have vectors of different numbers, which no .npy holds; take json.")
    if output is not None:
        from ggpy.files import check_target

        check_target(output)
    given = read_texts(texts, files)
    if not given:
        raise GGPYError("There is no text; give texts as arguments, or files with a text a line (-f, - for stdin).")
    if model_options["model"] is None:
        raise GGPYError("There is no model: name one made for it (-m), as the examples of `ggpy embed --help` do.")
    from ggpy.cli.interrupts import interrupts_raised

    with interrupts_raised(), open_model(model_options) as llm:
        found = llm.embed(
            given, pooling=pooling, normalize=not no_normalize, dimensions=dimensions, progress=len(given) > 1
        )
    if form == "table" and output is None:
        _show(found)
        return
    data = _npy(found) if form == "npy" else (_table(found) if form == "table" else _json(found)).encode()
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return
    from ggpy.files import whole_file

    with whole_file(output, size=len(data)) as file:
        file.write(data)


def _json(found: list[EmbeddingRequestOutput]) -> str:
    lines = (
        {"index": i, "text": one.prompt, "embedding": one.outputs.embedding.tolist()} for i, one in enumerate(found)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _npy(found: list[EmbeddingRequestOutput]) -> bytes:
    import io

    import numpy as np

    file = io.BytesIO()
    np.save(file, np.stack([one.outputs.embedding for one in found]))
    return file.getvalue()


def _show(found: list[EmbeddingRequestOutput]) -> None:
    from ggpy.cli.terminal import show

    show(_table(found))


def _table(found: list[EmbeddingRequestOutput]) -> str:
    """A line a text: its cosine with the first, its dimensions, the first of them."""
    import numpy as np

    from ggpy.cli.terminal import one_line

    rows = []
    first: Any = None
    for one in found:
        vector = one.outputs.embedding
        flat = vector if vector.ndim == 1 else vector.mean(0)
        first = flat if first is None else first
        cosine = float(flat @ first) / max(float(np.linalg.norm(flat) * np.linalg.norm(first)), 1e-12)
        text = one_line(one.prompt or "")
        text = text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
        shape = "x".join(map(str, vector.shape))
        numbers = " ".join(f"{x:8.4f}" for x in flat[:_SHOWN])
        rows.append((f"{cosine:.4f}", shape, f"{numbers}{' …' if len(flat) > _SHOWN else ''}", text))
    head = ("cosine", "shape", "vector", "text")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in (head, *rows)
    ]
    return "\n".join(lines) + "\n"
