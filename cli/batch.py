"""`ggpy batch`: a file of requests, a file of results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ggpy.cli.options import FILE_NAME, check_cluster, check_placing, model_options, open_model, ray_options

DEFAULT_PARALLEL = 8  # a step of eight costs a CPU little more than one of four


@click.command(
    epilog="""
    \b
    Examples:
      ggpy batch -m model.gguf requests.jsonl results.jsonl
      ggpy batch -m model.gguf --parallel 16 -c 4096 requests.jsonl results.jsonl

    \b
    A line of IN:
      {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
       "body": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}}
    """
)
@click.argument("requests", type=FILE_NAME, metavar="IN.jsonl")
@click.argument("results", type=FILE_NAME, metavar="OUT.jsonl")
@model_options
@click.option(
    "--parallel",
    type=click.IntRange(1, 512),
    default=DEFAULT_PARALLEL,
    show_default=True,
    metavar="N",
    help="Requests that are answered together, each with a context of its own.",
)
@ray_options
def batch(requests: str, results: str, model_options: dict[str, Any], parallel: int, cluster: dict[str, Any]) -> None:
    """Answer the requests of a file, in OpenAI's batch format: chat completions, completions, embeddings.

    Results are appended to OUT.jsonl as they are done. Stopped, or killed, the same command goes on where it was. A
    request that cannot be answered has a result that says why.
    """
    from ggpy.batch.files import Results, read_requests
    from ggpy.batch.run import run_batch
    from ggpy.cli.interrupts import interrupts_raised
    from ggpy.cli.terminal import note
    from ggpy.progress import requests_bar

    check_cluster(cluster)
    asked = {line.custom_id for line in read_requests(requests)}  # all of them read, before a model is loaded
    with interrupts_raised(), Results(results, requests) as file:
        if strange := file.done - asked:
            note(f"{results} holds {len(strange)} results of requests that are not in {requests}; they stay there")
        n_before = len(file.done & asked)
        if n_before:
            note(f"{n_before} of {len(asked)} were answered before")
        if n_before == len(asked):
            return
        n_failed = 0
        opened = _joined(model_options) if cluster["ray"] else open_model(model_options, parallel)
        with opened as llm, requests_bar(len(asked), n_before, note) as advance:

            def report(row: dict[str, Any], n_tokens: int) -> None:
                nonlocal n_failed
                file.write(row)
                n_failed += row["response"]["status_code"] != 200
                advance(n_tokens)

            done = frozenset(file.done)
            left = (line for line in read_requests(requests) if line.custom_id not in done)
            try:
                if llm is None:
                    _share_out(model_options, left, report, parallel, cluster["replicas"])
                else:
                    run_batch(llm, left, report)
            except KeyboardInterrupt:
                note(f"stopped with {len(file.done & asked)} of {len(asked)} in {results}; the same command goes on")
                raise
    failed = f", of which {n_failed} failed" if n_failed else ""
    note(f"{results}: {len(asked) - n_before} results{failed}")


@contextmanager
def _joined(model_options: dict[str, Any]) -> Iterator[None]:
    """The cluster in place of a model."""
    from ggpy.cluster.connect import connect

    check_placing(model_options)
    connect("ray.data")
    yield None


def _share_out(
    model_options: dict[str, Any], lines: Any, report: Any, parallel: int, replicas: tuple[int, int | None] | None
) -> None:
    from functools import partial

    from ggpy.cluster.batch import run_batch_on_cluster
    from ggpy.cluster.connect import on_its_machine

    opened = partial(open_model, on_its_machine(model_options), parallel)
    run_batch_on_cluster(opened, model_options, lines, report, parallel, replicas or (1, None))
