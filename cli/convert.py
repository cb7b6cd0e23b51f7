"""`ggpy convert`: a checkpoint folder becomes a GGUF file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ggpy.cli.options import FILE_NAME, FILE_TYPES
from ggpy.cli.terminal import note

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from ggpy.convert.writer import OutputTensor


@click.command(
    short_help="Convert a checkpoint folder to a GGUF file.",
    epilog="\b\nExamples:\n"
    "  ggpy convert -i Qwen-1_8B-Chat -t q4_0 -o qwen-1_8b-chat.gguf\n"
    "  ggpy convert -i SmolLM2-135M-Instruct -t f16\n"
    "  ggpy convert -i Llama-3.2-1B -t q8_0 --pure -o llama.gguf",
)
@click.option(
    "-i",
    "--input",
    "folder",
    type=FILE_NAME,
    required=True,
    metavar="DIR",
    help="Checkpoint folder: config, safetensors, tokenizer.",
)
@click.option(
    "-t",
    "--type",
    "file_type",
    default="f16",
    show_default=True,
    type=click.Choice(FILE_TYPES, case_sensitive=False),
    help="Type of the matrices; some stay higher, as llama-quantize keeps them.",
)
@click.option(
    "-o",
    "--output",
    type=FILE_NAME,
    metavar="FILE",
    help="GGUF file to write.  [default: NAME-TYPE.gguf in this folder]",
)
@click.option("--pure", is_flag=True, help="Give every matrix the named type, output and embeddings too.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Worker threads.  [default: all CPUs]")
def convert(folder: str, file_type: str, output: str | None, pure: bool, threads: int | None) -> None:
    """Convert a Hugging Face checkpoint to a GGUF file.

    Reads folders of the architectures that the README lists (Llama, Qwen, Gemma, BERT …): safetensors weights, and the
    tokenizer from tokenizer.json, tokenizer.model, vocab.txt or qwen.tiktoken. Nothing in the folder is executed. The
    file appears whole or not at all: an existing one is replaced at the very end.
    """
    from ggpy.cli.interrupts import interrupts_raised
    from ggpy.convert.pipeline import convert as run

    path = Path(output) if output else Path(f"{Path(folder).resolve().name}-{file_type.upper()}.gguf")
    watcher = _Bar() if sys.stderr.isatty() else _Lines()
    try:
        with interrupts_raised():
            summary = run(
                Path(folder),
                file_type,
                path,
                pure=pure,
                n_threads=threads,
                progress=watcher,
                note=lambda text: note(f"note: {text}"),
            )
    except KeyboardInterrupt:
        watcher.close()
        note(f"stopped; {path} is as it was.")
        raise
    finally:
        watcher.close()
    note(
        f"{path}: {summary.n_bytes / 1e6:,.1f} MB, {summary.bits_per_weight:.2f} bits per weight,"
        f" {summary.seconds:.1f} s"
    )


class _Lines:
    """Progress where nobody watches a terminal: a line every tenth of the way."""

    def begin(self, path: Path, n_bytes: int, n_weights: int) -> None:
        self._total, self._done, self._said = n_weights, 0, 0
        note(f"writing {path}, {n_bytes / 1e6:,.1f} MB")

    def tensor(self, tensor: OutputTensor) -> None:
        self._name = tensor.name

    def advance(self, n_weights: int) -> None:
        self._done += n_weights
        tenths = 10 * self._done // self._total
        if tenths > self._said:
            self._said = tenths
            note(f"{10 * tenths:3d}%  {self._name}")

    def close(self) -> None:
        pass


class _Bar:
    """A progress bar on a terminal."""

    _progress: RichProgress | None = None

    def begin(self, path: Path, n_bytes: int, n_weights: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=n_weights)
        self._progress.start()

    def tensor(self, tensor: OutputTensor) -> None:
        assert self._progress is not None
        self._progress.update(self._task, description=f"{tensor.name} {tensor.format.name}")

    def advance(self, n_weights: int) -> None:
        assert self._progress is not None
        self._progress.advance(self._task, n_weights)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
