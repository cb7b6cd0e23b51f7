"""`ggpy bench`: tokens per second, prompts and generation apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ggpy.cli.options import model_options
from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.bench import Measurement


@click.command(
    epilog="""
    \b
    Examples:
      ggpy bench -m model.gguf -p 512 -n 64 -t 2 -r 5
      ggpy bench -m model.gguf -p 0 -n 128 -o json
    """
)
@model_options
@click.option(
    "-p", "--n-prompt", type=click.IntRange(min=0), default=512, show_default=True, help="Prompt tokens; 0: none."
)
@click.option(
    "-n", "--n-gen", type=click.IntRange(min=0), default=64, show_default=True, help="Generated tokens; 0: none."
)
@click.option("-r", "--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Samples of each.")
@click.option(
    "-o", "--output", type=click.Choice(["md", "json"]), default="md", show_default=True, help="Form of the result."
)
def bench(
    model: str | None, n_ctx: int | None, n_threads: int | None, n_prompt: int, n_gen: int, repeats: int, output: str
) -> None:
    """Measure how many tokens per second a model evaluates (pp) and generates (tg): the median after a warm-up."""
    import json

    from ggpy.bench import measure
    from ggpy.cli.options import open_model

    if not n_prompt and not n_gen:
        raise GGPYError("-p 0 and -n 0 leave nothing to measure.")
    with open_model(model, n_ctx or max(n_prompt, n_gen), n_threads) as llm:
        results = measure(llm.runtime, llm.runtime.n_threads, n_prompt, n_gen, repeats)
        if output == "json":
            click.echo(json.dumps([result.as_json() for result in results], indent=2))
        else:
            click.echo(_table(llm.path.name, results))


def _table(name: str, results: list[Measurement]) -> str:
    rows = [("model", "threads", "test", "tok/s")]
    rows += [(name, str(r.n_threads), r.test, f"{r.tok_s:.2f} ± {r.spread:.2f}") for r in results]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
