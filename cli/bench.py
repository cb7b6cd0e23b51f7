"""`ggpy bench`: tokens per second of prompts and of generation, over depths and batches, beside what memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggpy.cli.options import FILE_NAME, model_options, open_model
from ggpy.errors import GGPYError, shown
from ggpy.files import check_target, whole_file

if TYPE_CHECKING:
    from ggpy.eval.bench import Case, Measurement
    from ggpy.llm import LLM

MAX_PARALLEL = 512  # tokens of a step


class Counts(click.ParamType):
    """Whole numbers from `low` to `high`, separated by commas."""

    name = "N,…"

    def __init__(self, low: int, high: int | None = None) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            counts = [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is no number, and no list of numbers such as 128,512.", param, ctx)
        for count in counts:
            if count < self.low or (self.high is not None and count > self.high):
                limit = f"from {self.low}" + ("" if self.high is None else f" to {self.high}")
                self.fail(f"{count} is out of range: {limit}.", param, ctx)
        return counts


@click.command(
    epilog="""
    \b
    Examples:
      ggpy bench -m model.gguf -p 512 -n 64 -t 2 -r 5
      ggpy bench -m model.gguf -d 0,1024,4096 --plot depth.svg
      ggpy bench -m model.gguf -p 0 -n 32 --parallel 1,2,4,8 -o json
      ggpy bench -m ./Qwen3-0.6B --type q4_0
    """
)
@model_options
@click.option("-p", "--n-prompt", type=Counts(0), default="512", show_default=True, help="Prompt tokens; 0: none.")
@click.option("-n", "--n-gen", type=Counts(0), default="64", show_default=True, help="Generated tokens; 0: none.")
@click.option("-d", "--depth", type=Counts(0), default="0", show_default=True, help="Tokens in the context before.")
@click.option(
    "--parallel",
    type=Counts(1, MAX_PARALLEL),
    default="1",
    show_default=True,
    help="Sequences that generate together; counted are the tokens of all.",
)
@click.option("-r", "--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Samples of each.")
@click.option(
    "-o", "--output", type=click.Choice(["md", "json"]), default="md", show_default=True, help="Form of the result."
)
@click.option("--plot", type=FILE_NAME, metavar="FILE.svg", help="Draw tokens per second over depth and over batch.")
def bench(
    model_options: dict[str, Any],
    n_prompt: list[int],
    n_gen: list[int],
    depth: list[int],
    parallel: list[int],
    repeats: int,
    output: str,
    plot: str | None,
) -> None:
    """Measure how many tokens per second a model evaluates (pp) and generates (tg): the median after a warm-up.

    -p, -n, -d and --parallel take lists, as in -d 0,1024,4096. The memory column is what generating reads of weights
    and cache per second, as a share of how fast this machine reads a buffer of the same size, measured on the spot.
    """
    import json

    from ggpy.cli.interrupts import raise_interrupts
    from ggpy.cli.terminal import note, one_line
    from ggpy.eval.bench import plan_cases

    cases = plan_cases(n_prompt, n_gen, depth, parallel)
    if not cases:
        raise GGPYError("-p 0 and -n 0 leave nothing to measure.")
    if plot is not None:
        _check_plot(Path(plot), cases)
    raise_interrupts()
    results: list[Measurement] = []
    with _opened(model_options, cases) as llm:
        if plot is not None:
            check_target(plot, [llm.path, *llm.file.paths])
        made = _measurements(llm, cases, repeats)
        try:
            if output == "md":
                made = _table(llm, cases, made)
            for result in made:
                results.append(result)
        except KeyboardInterrupt:
            note(f"interrupted after {len(results)} of {len(cases)} measurements")
            raise
    if output == "json":
        click.echo(json.dumps([result.as_json() for result in results], indent=2))
    elif read := [result.bytes_per_step for result in results if result.bytes_per_step]:
        click.echo("\n" + _about_memory(read, results[0].n_threads, llm.runtime.device == "cpu"))
    if plot is not None:
        from ggpy.cli.bench_plot import draw

        with whole_file(plot, inputs=[llm.path, *llm.file.paths]) as file:
            file.write(draw(results, one_line(llm.path.name)).encode("utf-8", "replace"))
        note(f"drawn in {plot}")


def _opened(model_options: dict[str, Any], cases: list[Case]) -> LLM:
    """The model, with room for the largest case; a step takes no more tokens than the context has."""
    n_parallel = max(case.n_parallel for case in cases)
    n_ctx = model_options["n_ctx"] or max(n_parallel, *(case.n_cells for case in cases))
    return open_model({**model_options, "n_ctx": n_ctx}, n_parallel)


def _measurements(llm: LLM, cases: list[Case], repeats: int) -> Iterator[Measurement]:
    from ggpy.eval.bench import Memory, bytes_read, measure

    n_threads = llm.runtime.n_threads
    if all(case.n_prompt for case in cases):
        return measure(llm.runtime, n_threads, cases, repeats)
    bandwidth: Callable[[float], float]
    if llm.runtime.device == "cpu":
        bandwidth = Memory(n_threads).bandwidth
    else:
        gpu = getattr(llm.runtime.executor, "device", None)
        if gpu is None:  # of several devices no one's memory is the limit
            return measure(llm.runtime, n_threads, cases, repeats)
        bandwidth = gpu.bandwidth
    return measure(
        llm.runtime,
        n_threads,
        cases,
        repeats,
        bytes_per_step=bytes_read(llm.file, llm.runtime.cache_type),
        bandwidth=bandwidth,
    )


def _table(llm: LLM, cases: list[Case], results: Iterable[Measurement]) -> Iterator[Measurement]:
    """Print a row for each result as it comes, and pass it on."""
    from ggpy.cli.terminal import one_line

    name, size = one_line(llm.path.name), f"{llm.file.size / 1e6:.0f} MB"
    threads = str(llm.runtime.n_threads) if llm.runtime.device == "cpu" else llm.runtime.device
    header = ("model", "size", "threads", "test", "tok/s", "memory")
    widest = (
        name,
        size,
        threads,
        max((case.name for case in cases), key=len),
        "12345.67 ± 123.45",
        "100% of 1234.5 GB/s",
    )
    widths = [max(map(len, column)) for column in zip(header, widest, strict=True)]

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    begun = False
    for result in results:
        if not begun:  # what cannot be measured is an error without a table
            click.echo(line(header) + "\n|" + "|".join("-" * (width + 2) for width in widths) + "|")
            begun = True
        share = result.bandwidth_share
        speed = f"{result.tok_s:.2f} ± {result.spread:.2f}"
        memory = "" if share is None or not result.bandwidth else f"{share:.0%} of {result.bandwidth / 1e9:.1f} GB/s"
        click.echo(line((name, size, threads, result.case.name, speed, memory)))
        yield result


def _about_memory(read: list[float], n_threads: int, on_cpu: bool) -> str:
    """The note on the table's memory column: the rate that its shares are relative to."""
    from ggpy.eval.bench import last_level_cache

    sizes = [f"{n / 1e9:.2f}" if n < 1e10 else f"{n / 1e9:.1f}" for n in (min(read), max(read))]
    of = "Memory: a step reads " + " to ".join(dict.fromkeys(sizes)) + " GB; the rate is "
    if not on_cpu:
        return of + "the GPU's with a buffer of that size."
    by = f"{n_threads} threads'" if n_threads > 1 else "one thread's"
    cache = f"the last-level cache ({last_level_cache() / 2**20:.0f} MiB)"
    held = [n <= last_level_cache() for n in read]
    which = f"more than {cache} holds" if not any(held) else f"which {cache} can hold" if all(held) else ""
    return of + f"{by} with a buffer of that size" + (f", {which}." if which else ".")


def _check_plot(path: Path, cases: list[Case]) -> None:
    """Check, before minutes of measuring, that there will be something to draw and somewhere to put it."""
    if path.suffix.lower() != ".svg":
        raise GGPYError(f"--plot writes SVG alone, but {shown(path)} does not end in .svg.")
    check_target(path)
    depths, batches = {case.n_depth for case in cases}, {case.n_parallel for case in cases}
    if len(depths) == len(batches) == 1:
        raise GGPYError("--plot needs several depths (-d 0,1024,4096) or batches (--parallel 1,2,4) to draw a line.")
