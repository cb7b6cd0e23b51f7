"""`ggpy fit`: the memory that a model takes, before anything of it is loaded, and what would fit. Reads the header
alone, so it is quick on a model of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ggpy.cli.options import DRAFTING, model_options, together
from ggpy.units import size_text

if TYPE_CHECKING:
    from ggpy.host.memory import MemoryUse
    from ggpy.runtime.host_memory import HostMemory
    from ggpy.runtime.placement import Placement, Stage
    from ggpy.runtime.sums import StateUse

MAX_PARALLEL = 1 << 16
MAX_CONTEXT = 1 << 24  # tokens; beyond it nobody asks what would fit


@click.command(
    epilog="""
    \b
    Examples:
      ggpy fit -m model.gguf
      ggpy fit -m model.gguf -c 32768 --parallel 4 -ctk q8_0 -ctv q8_0
      ggpy fit -m ./Qwen3-0.6B --type q4_0
      ggpy fit -m hf:user/repo/model-q4_0.gguf -o json
      ggpy fit -m model.gguf --device cuda -ngl 20
    """
)
@model_options
@together("drafting", *DRAFTING)
@click.option(
    "--parallel",
    type=click.IntRange(1, MAX_PARALLEL),
    default=1,
    show_default=True,
    metavar="N",
    help="Sequences at a time, each with a context of its own.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the answer.",
)
def fit(model_options: dict[str, Any], drafting: dict[str, Any], parallel: int, output: str) -> int:
    """Say how much memory a model takes on every device, and the largest context for which this machine has enough.

    Options are those of `ggpy run`; without -c the context is the one that `run` would choose. Nothing is loaded,
    converted or fetched: of a model at Hugging Face (hf:user/repo) the header is read, and the conversion of a
    checkpoint folder is only planned. The exit status is 1 where the model does not fit.

    Not counted are Python and its libraries, some 100 MB, and the vocabulary. The cache is counted as full; much of it
    is taken with the first token, in large pages.
    """
    import json

    from ggpy.cli.interrupts import raise_interrupts
    from ggpy.cli.terminal import note
    from ggpy.hub.header import open_header
    from ggpy.llm_options import open_drafter, speculation_of
    from ggpy.runtime.load import find_cache_ram, find_device, find_gpu_layers, find_kv_memory
    from ggpy.runtime.placement import Placement

    options = dict(model_options)
    speculation = speculation_of(drafting["speculative"], drafting["draft_model"], None)
    n_ctx = options.pop("n_ctx")
    options["device"] = find_device(options["device"], note)
    options["n_gpu_layers"] = find_gpu_layers(options["n_gpu_layers"])
    options["kv_memory"] = find_kv_memory(options["kv_memory"])
    options["cache_ram"] = find_cache_ram(options["cache_ram"])
    raise_interrupts()
    file_type = options.pop("file_type")
    with (
        open_header(options.pop("model"), file_type) as file,
        open_drafter(speculation, file_type, parallel, options["n_threads"]) as drafter,
    ):
        answer = Answer.of(Placement(file, n_slots=parallel, engine=True, drafter=drafter, **options), n_ctx)
    click.echo(json.dumps(answer.as_json(), indent=2) if output == "json" else "\n".join(answer.lines()))
    return 0 if answer.fits else 1


@dataclass(frozen=True)
class Answer:
    """The memory of one model with a context of n_ctx tokens for each sequence.

    kv_cells: where that is a number, tokens of cache that sequences share. in_file: bytes of embedding tables that are
    read from the file. draft_ctx: the context of who drafts tokens. kept: what an engine may keep of earlier
    conversations in host memory. largest: the largest context that fits; 0 for none.
    """

    placement: Placement
    n_ctx: int
    n_batch: int
    stages: Sequence[Stage]
    kv_cells: int | None
    uses: Sequence[MemoryUse]
    states: Sequence[StateUse]
    in_file: int
    draft_ctx: int | None
    kept: HostMemory
    largest: int
    fits: bool

    @staticmethod
    def of(placement: Placement, asked: int | None) -> Answer:
        """The answer for a context that was asked for, or the one that would be chosen."""
        from ggpy.cpu.sizes import table_bytes
        from ggpy.graph.operations import Embed
        from ggpy.host.memory import within
        from ggpy.runtime.sums import state_uses

        trained = placement.hparams.n_ctx_train
        n_ctx = asked or placement.largest(trained) or min(trained, 256)
        stages, n_batch = placement.place(n_ctx)
        kv_cells = placement.kv_cells(stages, n_ctx, n_batch)
        draft_ctx = placement.draft_context(stages, n_ctx, n_batch, kv_cells) if placement.drafter else None
        uses = placement.uses(stages, n_ctx, n_batch, kv_cells=kv_cells, draft_ctx=draft_ctx)
        program = placement.program(False)
        cache_type = placement.cache_type(stages[-1].device)
        states = state_uses(program.states, n_ctx, n_batch, cache_type)
        on_cpu = not stages[0].on_gpu
        by_position = any(isinstance(op.operation, Embed) and op.operation.index == "position" for op in program.ops)
        return Answer(
            placement,
            n_ctx,
            n_batch,
            stages,
            kv_cells,
            uses,
            states,
            table_bytes(program) if on_cpu else 0,
            draft_ctx,
            placement.host_memory(stages, n_ctx, n_batch),
            placement.largest(trained if by_position else MAX_CONTEXT),
            within(uses, placement.kv_memory),
        )

    def as_json(self) -> dict[str, Any]:
        place, file = self.placement, self.placement.file
        return {
            "model": str(file.path),
            "architecture": place.hparams.arch,
            "n_layer": place.n_layer,
            "file_bytes": file.size,
            "n_ctx": self.n_ctx,
            "n_ctx_train": place.hparams.n_ctx_train,
            "n_parallel": place.n_slots,
            "shared_tokens": self.kv_cells,
            "n_batch": self.n_batch,
            "draft_n_ctx": self.draft_ctx,
            "cache_type": place.cache_type(self.stages[-1].device),
            "devices": [
                {
                    "device": use.device,
                    "layers": n,
                    "weights": use.weights,
                    "state": use.state,
                    "working": use.working,
                    "earlier": use.kept,
                    "drafts": use.drafts,
                    "total": use.total,
                    "free": use.free,
                }
                for n, use in self._with_layers()
            ],
            "states": [
                {
                    "kind": state.kind,
                    "layers": state.n_layers,
                    "positions": state.n_cells,
                    "bytes_per_token": state.per_token,
                    "bytes_per_sequence": state.per_slot,
                }
                for state in self.states
            ],
            "embeddings_in_file": self.in_file,
            "checkpoints_at_most": self.kept.checkpoints,
            "parked_at_most": self.kept.parked,
            "fits": self.fits,
            "largest_context": self.largest,
        }

    def _with_layers(self) -> Iterator[tuple[int, MemoryUse]]:
        """Each device's use, with how many layers it runs, or has rows of."""
        layers = [stage.n_layers for stage in self.stages for _ in range(max(1, len(stage.gpus)))]
        return zip([0] * (len(self.uses) - len(layers)) + layers, self.uses, strict=True)

    def lines(self) -> Iterator[str]:
        from ggpy.cli.terminal import one_line

        place = self.placement
        hparams, file = place.hparams, place.file
        yield (
            f"{one_line(str(file.path))}: {hparams.arch}, {place.n_layer} layers of {hparams.n_embd}, "
            f"{size_text(file.size)}, trained with {hparams.n_ctx_train} tokens"
        )
        yield (
            f"context {self.n_ctx} tokens{self._each}, steps of {self.n_batch}, cache "
            f"{place.cache_type(self.stages[-1].device)}"
        )
        yield ""
        rows = [
            ("", *(use.device for use in self.uses)),
            ("layers", *(str(n) for n, _ in self._with_layers())),
            *(
                (label, *(size_text(getattr(use, name)) for use in self.uses))
                for label, name in (
                    ("weights", "weights"),
                    ("state", "state"),
                    ("working memory", "working"),
                    ("earlier turns", "kept"),
                    *([("drafts", "drafts")] if place.drafter else []),
                    ("in all", "total"),
                    ("free", "free"),
                )
            ),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, *cells in rows:
            yield "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()
        yield ""
        if any(not stage.on_gpu for stage in self.stages):
            for state in self.states:
                yield self._state_line(state)
            if self.in_file:
                yield f"embeddings: {size_text(self.in_file)} stay in the file, rows are read as tokens occur"
        if self.uses[0].device == "cpu":
            yield (
                f"earlier turns: up to {size_text(self.kept.checkpoints)} of checkpoints, "
                f"{size_text(self.kept.parked)} of conversations whose place another takes (--cache-ram)"
            )
        if self.draft_ctx and self.draft_ctx < self.n_ctx:
            yield f"drafts: in the first {self.draft_ctx} tokens of a context, which the draft model has"
        yield self._verdict()

    @property
    def _each(self) -> str:
        n = self.placement.n_slots
        if self.kv_cells:
            return f" for each of {n} sequences, which share {self.kv_cells}"
        return f" for each of {n} sequences" if n > 1 else ""

    def _state_line(self, state: StateUse) -> str:
        layers = f"{state.n_layers} layer{'s' * (state.n_layers > 1)}"
        if state.per_token:
            return f"state: {state.kind}, {layers}: {size_text(round(state.per_token))} a token"
        cells = f" ({state.n_cells} positions)" if state.n_cells else ""
        return f"state: {state.kind}{cells}, {layers}: {size_text(state.per_slot)} a sequence"

    def _verdict(self) -> str:
        if not self.largest:
            return "It does not fit: not even a small context does."
        more = " or more" if self.largest == MAX_CONTEXT else ""
        largest = f"up to {self.largest} tokens{more} would fit (-c {self.largest})"
        return f"It fits; {largest}." if self.fits else f"It does not fit; {largest}."
