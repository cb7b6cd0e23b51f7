"""`ggpy rank`: documents in the order in which they answer a query."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from ggpy.cli.options import model_options, open_model
from ggpy.cli.texts import read_texts, texts_option
from ggpy.errors import GGPYError


@click.command(
    epilog="""
    \b
    Examples:
      ggpy rank -m bge-reranker-v2-m3.gguf -q "What is a panda?" "A bear of China." "Hello."
      ggpy rank -m Qwen3-Reranker-0.6B -q "What is a panda?" -f passages.txt -n 5
      cat passages.txt | ggpy rank -m model.gguf -q "What is a panda?" --json
    """
)
@click.argument("documents", nargs=-1, metavar="[DOCUMENT]...")
@click.option("-q", "--query", metavar="TEXT", required=True, help="What the documents are to answer.")
@texts_option
@click.option("-n", "--top-n", type=click.IntRange(min=1), metavar="N", help="Only the best N.")
@click.option("--raw", is_flag=True, help="Scores as the model gives them; otherwise from 0 to 1.")
@click.option("--instruction", metavar="TEXT", help="What the task is, for models that are told it, as Qwen3's.")
@click.option("--json", "as_json", is_flag=True, help="Print an object a line: index, score, document, n_tokens.")
@model_options
def rank(
    documents: tuple[str, ...],
    query: str,
    files: tuple[str, ...],
    top_n: int | None,
    raw: bool,
    instruction: str | None,
    as_json: bool,
    model_options: dict[str, Any],
) -> None:
    """Rank documents by how well they answer a query, by a model made for that: the best first, with their scores.

    Documents are arguments, lines of files, or lines of stdin.
    """
    if model_options["model"] is None:
        raise GGPYError("There is no model: name one made for it (-m), as the examples of `ggpy rank --help` do.")
    from ggpy.cli.interrupts import interrupts_raised
    from ggpy.cli.terminal import one_line, show

    given = read_texts(documents, files)
    if not given:
        raise GGPYError("There is no document; give documents as arguments, or files with one a line (-f).")
    with interrupts_raised(), open_model(model_options) as llm:
        found = llm.rank(query, given, top_n=top_n, normalize=not raw, instruction=instruction, progress=len(given) > 1)
    for output in found:
        line = json.dumps(asdict(output), ensure_ascii=False) if as_json else f"{output.score:9.4f}  {output.document}"
        show(one_line(line) + "\n")
