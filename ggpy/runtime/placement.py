"""Placement of a model's layers: the last ones on GPUs, as many as were asked for or as fit their free memory, and
those before on the CPU. Decides only; `ggpy.runtime.runtime` makes the executors."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

from ggpy.cpu.sizes import round_up
from ggpy.errors import GGPYError, OutOfMemory
from ggpy.graph.state import SPAN, KVState, Reach
from ggpy.host.cores import usable_cores
from ggpy.host.memory import KVMemory, MemoryUse, available_memory, choose_context, largest_context, usable, within
from ggpy.models import architecture_of
from ggpy.runtime.cache_types import cache_type
from ggpy.runtime.planned import planned
from ggpy.runtime.sums import Sums
from ggpy.units import size_text

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile
    from ggpy.graph.program import Program
    from ggpy.graph.tensor_parallel import Rank
    from ggpy.runtime.drafter import Drafter
    from ggpy.runtime.host_memory import HostMemory

LEAST_CONTEXT = 256  # tokens; a model that was not asked for one must have as many
ENOUGH_CONTEXT = 4096  # tokens; for less, layers are rather left to the CPU, where no context was asked for
# Tokens of a step: enough to keep a GPU's matrix units at work, or fewer where that makes room for what matters more.
GPU_BATCHES = (2048, 1024, 512)
CHUNK_BATCHES = (1024, 512)  # where GPUs share the layers: each is to have a piece of a long prompt to work on


def cpu_batch(file: GGUFFile, share: float = 1.0) -> int:
    """Tokens of a step where the CPU runs that share of the layers: as many as pay off on a small model, fewer on a
    large one, so that Ctrl-C takes effect soon."""
    weights = share * sum(info.nbytes for info in file.tensors.values())
    return 512 if weights < 1 << 30 else 256 if weights < 3 << 30 else 128 if weights < 8 << 30 else 64


@dataclass(frozen=True)
class Stage:
    """Layers first .. last - 1 on a device, "cpu" or "cuda:N"; or on several GPUs, "cuda:N,M", as ranks that share
    every matrix (`ggpy.graph.tensor_parallel`)."""

    device: str
    first: int
    last: int

    @property
    def n_layers(self) -> int:
        return self.last - self.first

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def gpus(self) -> list[int]:
        """The numbers of the GPUs."""
        return [int(number) for number in self.device.partition(":")[2].split(",") if number]


#: Texts of a step, at most, of a model whose slots carry nothing from step to step, and so have no memory of their own.
ENCODER_SLOTS = 64


class Placement:
    """A division of one model's layers over devices.

    device: "cpu", "cuda" (the first GPU if that is enough, else every GPU), or "cuda:1", "cuda:0,1": those. The last
    `n_gpu_layers` layers, and the output with them, go to GPUs: None is as many as fit, and any number from the model's
    layers on is all, the embedding included. split_mode: "layer", or "row" where several GPUs share not the layers
    but the rows of every matrix. n_slots: sequences in the cache. n_batch: most tokens of a step; chosen here
    where it is None. cache_type_k, cache_type_v: see `ggpy.runtime.cache_types`. batch_invariant: on a GPU too,
    a sequence's result does not depend on the rest of the batch. n_threads: the CPU's, each with memory of its own.
    kv_memory: a limit for keys, values and other state, see `ggpy.host.memory.KVMemory`. engine: an engine runs the
    slots, which then may share cells (`kv_cells`), and keeps copies of state in host memory: checkpoints, and
    conversations, of these `cache_ram` bytes (`HostMemory.of`). drafter: who drafts tokens on the CPU, unless a device
    chooses them by itself.
    """

    def __init__(
        self,
        file: GGUFFile,
        device: str = "cpu",
        n_gpu_layers: int | None = None,
        n_slots: int = 1,
        n_batch: int | None = None,
        cache_type_k: str | None = None,
        cache_type_v: str | None = None,
        split_mode: str = "layer",
        batch_invariant: bool = False,
        n_threads: int | None = None,
        kv_memory: KVMemory | None = None,
        engine: bool = False,
        cache_ram: int | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.file, self.device, self.n_slots, self.n_batch = file, device, n_slots, n_batch
        self.kv_memory, self.engine, self.drafter = kv_memory, engine, drafter
        self.n_threads = n_threads or usable_cores()
        self.cache_types = cache_type_k, cache_type_v
        self.hparams = architecture_of(file).hparams
        self.n_layer = self.hparams.n_layer
        self.by_rows, self.batch_invariant = split_mode == "row", batch_invariant
        # Found out once: the same answers serve the choice of the context and the making of the runtime.
        self.program = cache(self._planned)
        if self.hparams.pooling is not None and self.program(False).two_way:
            self.n_slots = n_slots = max(n_slots, ENCODER_SLOTS)
        self.sums = Sums(self.program, self.cache_type, n_slots, self.n_threads, engine, cache_ram)
        self._free = cache(self._free_bytes)
        # Of the last layers, how many a device can run, and what it has no kernel for in the one before these.
        self.able, self.unsupported = 0, None
        if device != "cpu":
            from ggpy.cuda.lower import last_supported

            self.able, self.unsupported = last_supported(self.program(True))
        wanted = min(n_gpu_layers or 0, self.able)
        self.asked = None if n_gpu_layers is None and self.able else self._whole_runs(wanted)
        self.reduced = None  # a note, where fewer layers than asked for go to the GPU
        if self.asked is not None and self.asked < wanted:
            self.reduced = (
                f"the GPU takes {self.asked} of the {wanted} layers asked for: it cannot begin where a layer reads more"
                " than the one before leaves"
            )

    # ---- what is chosen

    def place(self, n_ctx: int) -> tuple[list[Stage], int]:
        """The stages of the model, in the layers' order, with a context of `n_ctx` tokens for each slot, and the most
        tokens of a step. Raises GGPYError where the layers asked for do not fit."""
        n = self._n_gpu_layers(n_ctx)
        found = self._fitting(n, n_ctx)
        if found is None:
            raise self.too_much(n, n_ctx)
        on_gpus, batch = found
        return self._stages(n, on_gpus), self._step(batch, n_ctx)

    def _stages(self, n: int, on_gpus: list[Stage]) -> list[Stage]:
        """The stages of all layers, the last n of which are on GPUs."""
        return [Stage("cpu", 0, self.n_layer - n), *on_gpus] if n < self.n_layer else on_gpus

    @property
    def _program(self) -> Program:
        """The whole model's program, for what does not depend on the device."""
        return self.program(self.device != "cpu")

    @property
    def whole_sequences(self) -> bool:
        """See `Program.whole_sequences`."""
        return self._program.whole_sequences

    @property
    def n_types(self) -> int:
        """See `Program.n_types`."""
        return self._program.n_types

    def reach(self, stages: Sequence[Stage], n_ctx: int, n_batch: int) -> Reach:
        """How far slots can be cut back: GPUs keep the whole context's keys and values, the CPU a window's."""
        states = []
        for stage in stages:
            found = self.program(stage.on_gpu).stage(stage.first, stage.last).states
            states += [state for state in found if not stage.on_gpu or not isinstance(state, KVState)]
        return Reach.of(states, n_ctx, n_batch)

    def _step(self, batch: int, n_ctx: int) -> int:
        """Most tokens of a step, where so many pay off: no more than a slot holds; but where a sequence has to be in
        one step, as many, and of short ones several."""
        return max(n_ctx, batch) if self.whole_sequences else min(batch, n_ctx)

    def context(self, asked: int | None, notify: Callable[[str], None]) -> int:
        """The context in tokens: what was asked for, else the training context as far as memory holds it."""
        return choose_context(asked, self.hparams.n_ctx_train, self._uses_of(asked), notify, self.kv_memory)

    def largest(self, limit: int) -> int:
        """The largest context up to `limit` tokens that fits the memory that is free; 0 where none does. Raises
        GGPYError where the layers asked for do not fit the GPUs."""
        uses = self._uses_of(None)

        def fits(n_ctx: int) -> bool:
            found = uses(n_ctx)
            return found is not None and within(found, self.kv_memory)

        return largest_context(limit, fits)

    def _uses_of(self, asked: int | None) -> Callable[[int], list[MemoryUse] | None]:
        """A function that gives the memory of every device with a context of n tokens, the division of layers being
        that of the context asked for, or of one that is enough; None where GPUs would need smaller steps."""
        start, least = (asked or min(self.hparams.n_ctx_train, tokens) for tokens in (ENOUGH_CONTEXT, LEAST_CONTEXT))
        n = self._n_gpu_layers(start)
        found = self._fitting(n, start) or self._fitting(n, least)
        if found is None:
            raise self.too_much(n, least)
        least_batch, free = found[1], available_memory()

        def uses(n_ctx: int) -> list[MemoryUse] | None:
            found = self._fitting(n, n_ctx)
            if not found or found[1] < least_batch:
                return None
            stages = self._stages(n, found[0])
            least = round_up(n_ctx, SPAN) if self._share_cells(stages) else None  # one request has to fit
            return self.uses(stages, n_ctx, self._step(found[1], n_ctx), free, least)

        return uses

    def _share_cells(self, stages: Sequence[Stage]) -> bool:
        """True where slots may have ranges of cells: GPUs' kernels know slots of one length alone."""
        return self.engine and self.n_slots > 1 and not any(stage.on_gpu for stage in stages)

    def kv_cells(self, stages: Sequence[Stage], n_ctx: int, n_batch: int) -> int | None:
        """How many cells slots share, of those that keep every position: as many as memory holds, but at least one
        context. None where each slot has the whole context, as there is memory for that."""
        whole = round_up(n_ctx, SPAN)
        if not self._share_cells(stages):
            return None
        (use,) = self.uses(stages, n_ctx, n_batch, kv_cells=0)
        (one,) = self.uses(stages, n_ctx, n_batch, use.free, kv_cells=SPAN)
        if one.state == use.state:
            return None
        cells = (use.allowed(self.kv_memory) - use.state) // (one.state - use.state) * SPAN
        return None if cells >= self.n_slots * whole else max(whole, cells)

    def host_memory(self, stages: Sequence[Stage], n_ctx: int, n_batch: int) -> HostMemory:
        """Limits of what an engine keeps beside the slots."""
        last, on_cpu = stages[-1].device, next((stage.n_layers for stage in stages if not stage.on_gpu), 0)
        drafts = self._drafts(stages, n_ctx, n_batch)
        use = self.sums.on_cpu(on_cpu, n_ctx, n_batch, available_memory(), last, drafts=drafts)
        return self.sums.host_memory(on_cpu, n_ctx, n_batch, use.room + use.kept, last)

    def uses(
        self,
        stages: Sequence[Stage],
        n_ctx: int,
        n_batch: int,
        free: int | None = None,
        kv_cells: int | None = None,
        draft_ctx: int | None = None,
    ) -> list[MemoryUse]:
        """The memory that stages take, with what `place` gave for that context: one entry a stage, or a GPU of those
        that share rows; before them the CPU's, where it only keeps conversations for a GPU. free: bytes of the
        machine's memory; measured where it is not given. kv_cells, draft_ctx: what `kv_cells` and `draft_context` gave;
        without the latter who drafts has the least context."""
        found, last = [], stages[-1].device
        free = available_memory() if free is None else free
        if stages[0].on_gpu and (kept := self.sums.on_cpu(0, n_ctx, n_batch, free, last)).total:
            found.append(kept)
        for stage in stages:
            if not stage.on_gpu:
                drafts = self._drafts(stages, n_ctx, n_batch)
                use = self.sums.on_cpu(stage.n_layers, n_ctx, n_batch, free, last, kv_cells, drafts)
                found.append(replace(use, drafts=self._drafts(stages, n_ctx, n_batch, draft_ctx)))
            elif len(stage.gpus) > 1:
                gpus = [f"cuda:{gpu}" for gpu in stage.gpus]
                found += self.sums.on_ranks(gpus, stage.n_layers, n_ctx, n_batch, [self._free(gpu) for gpu in gpus])
            else:
                gpu = stage.device
                found.append(self.sums.on_gpu(gpu, stage.first, stage.last, n_ctx, n_batch, self._free(gpu)))
        return found

    def _drafts(self, stages: Sequence[Stage], n_ctx: int, n_batch: int, draft_ctx: int | None = None) -> int:
        """Bytes of who drafts tokens; 0 where nobody does, as devices that sample by themselves go on without them."""
        by_itself = stages[0].on_gpu or (self.batch_invariant and stages[-1].on_gpu)
        if self.drafter is None or by_itself:
            return 0
        least, _ = self.drafter.contexts(n_ctx)
        return self.drafter.n_bytes(self, draft_ctx or least, n_batch)

    def draft_context(self, stages: Sequence[Stage], n_ctx: int, n_batch: int, kv_cells: int | None) -> int:
        """The context of who drafts tokens: as much of the model's own as memory holds beside all else."""
        assert self.drafter is not None
        least, most = self.drafter.contexts(n_ctx)
        free = available_memory()

        def fits(draft_ctx: int) -> bool:
            return within(self.uses(stages, n_ctx, n_batch, free, kv_cells, draft_ctx), self.kv_memory)

        return max(least, largest_context(most, fits))

    def describe(self, stages: Sequence[Stage]) -> str:
        """The placement in one line, for the user."""
        n = sum(stage.n_layers for stage in stages if stage.on_gpu)
        if len(stages[-1].gpus) > 1:
            return f"{n} of {self.n_layer} layers on {len(stages[-1].gpus)} GPUs, which share their matrices' rows"
        shares = [f"{stage.n_layers} on {stage.device}" for stage in stages]
        return f"{n} of {self.n_layer} layers on the GPU" + (f" ({', '.join(shares)})" if len(stages) > 1 else "")

    def shortage(self, n: int, n_ctx: int) -> str:
        """The figures by which n layers do not fit the GPUs, as the first part of an error's sentence."""
        *_, gpus = self._sets()
        *_, batch = self._batches(n, gpus)
        step = self._step(batch, n_ctx)
        if self.by_rows and len(gpus) > 1:
            needed = sum(use.total for use in self.sums.on_ranks(gpus, n, n_ctx, step, [0] * len(gpus)))
        else:
            use = self.sums.on_gpu(gpus[0], self.n_layer - n, self.n_layer, n_ctx, step)
            needed = use.total + (len(gpus) - 1) * use.working
        return (
            f"{n} of {self.n_layer} layers with a context of {n_ctx} tokens need {size_text(needed)} of GPU memory, "
            f"but {size_text(sum(map(self._room, gpus)))} are free on {' and '.join(gpus)}"
        )

    def too_much(self, n: int, n_ctx: int) -> GGPYError:
        """The error where n layers do not fit the GPUs."""
        fits = self._most(n - 1, n_ctx)
        advice = f"{fits} layers would fit (-ngl {fits})" if fits else "not one layer fits: take the CPU (-ngl 0)"
        if n_ctx > LEAST_CONTEXT:
            advice += ", or take a smaller context (-c)"
        return GGPYError(f"{self.shortage(n, n_ctx)}; {advice}.")

    def ran_out(self, stages: Sequence[Stage], n_ctx: int, error: OutOfMemory) -> GGPYError:
        """The error after memory that had been free a moment before ran out; called once everything is freed."""
        self._free.cache_clear()
        n = sum(stage.n_layers for stage in stages if stage.on_gpu)
        return error if self._fitting(n, n_ctx) else self.too_much(n, n_ctx)

    def _planned(self, on_gpu: bool, rank: Rank | None = None) -> Program:
        """The whole model's program, for GPUs or for the CPU; or a rank's share of it."""
        return planned(self.file, "cuda" if on_gpu else "cpu", rank)

    # ---- GPUs

    @cached_property
    def _begins(self) -> list[int]:
        """The layers with which a stage can begin: those that read only what the one before leaves."""
        return [0, *self._program.cut_layers]

    def _whole_runs(self, n: int) -> int:
        """The most of the last layers, up to n, that a stage can begin with."""
        return max((self.n_layer - first for first in self._begins if self.n_layer - first <= n), default=0)

    def _n_gpu_layers(self, n_ctx: int) -> int:
        return self._most(self.able, n_ctx) if self.asked is None else self.asked

    def _most(self, limit: int, n_ctx: int) -> int:
        """The most layers up to `limit` that fit the GPUs."""
        counts = [0, *(n for first in reversed(self._begins) if (n := self.n_layer - first) <= limit)]
        if self._fitting(counts[-1], n_ctx) is not None:
            return counts[-1]
        return counts[bisect(counts, False, key=lambda n: self._fitting(n, n_ctx) is None) - 1]

    def _fitting(self, n: int, n_ctx: int) -> tuple[list[Stage], int] | None:
        """The stages of the last n layers on GPUs, and the tokens of a step for which they fit there: smaller steps are
        preferred to leaving a layer to the CPU. None where they do not fit."""
        if not n:
            return [], self.n_batch or cpu_batch(self.file)
        for gpus in self._sets():
            for batch in self._batches(n, gpus):
                stages = (self._shared if self.by_rows and len(gpus) > 1 else self._spread)(n, n_ctx, gpus, batch)
                if stages is not None:
                    return stages, batch
        return None

    def _sets(self) -> Iterator[list[str]]:
        """Sets of GPUs to try: the named ones; where none are named, the first alone, without opening the others, and
        then all that ggpy runs on."""
        if ":" in self.device:
            yield self._named
            return
        if not self.by_rows:
            yield self._named[:1]
        if len(self._named) > 1 or self.by_rows:
            yield [gpu for gpu in self._named if self._room(gpu)] or self._named[:1]

    def _batches(self, n: int, gpus: Sequence[str]) -> Sequence[int]:
        """Step sizes in tokens to try where n layers are on these GPUs."""
        if self.n_batch:
            return (self.n_batch,)
        if n < self.n_layer:
            return (cpu_batch(self.file, (self.n_layer - n) / self.n_layer),)
        return GPU_BATCHES if len(gpus) == 1 or self.by_rows else CHUNK_BATCHES

    @cached_property
    def _named(self) -> list[str]:
        from ggpy.cuda.driver import device_count

        _, colon, numbers = self.device.partition(":")
        indices = [int(number) for number in numbers.split(",")] if colon else range(max(1, device_count()))
        return [f"cuda:{index}" for index in indices]

    def _spread(self, n: int, n_ctx: int, gpus: Sequence[str], batch: int) -> list[Stage] | None:
        """The last n layers over these GPUs, so that each gives the same share of its free memory, as small as can be;
        None where they do not fit."""
        rooms = [(gpu, self._room(gpu)) for gpu in gpus]
        best = self._fill(n, n_ctx, rooms, batch)
        if best is None or len(gpus) == 1:
            return best
        low, high = 0.0, 1.0
        for _ in range(30):
            share = (low + high) / 2
            found = self._fill(n, n_ctx, [(gpu, int(share * room)) for gpu, room in rooms], batch)
            low, high = (low, share) if found else (share, high)
            best = found or best
        return best

    def _fill(self, n: int, n_ctx: int, rooms: Sequence[tuple[str, int]], batch: int) -> list[Stage] | None:
        """The last n layers, each GPU taking as many as its room in bytes holds, from the last one on."""
        stages: list[Stage] = []
        start, last = self.n_layer - n, self.n_layer
        for gpu, room in reversed(rooms):
            firsts = [first for first in self._begins if start <= first < last]
            fits = partial(self._fits, last, n_ctx, batch, room)
            found = 0 if fits(firsts[0]) else bisect(firsts, False, key=fits)
            if found < len(firsts):
                stages.insert(0, Stage(gpu, firsts[found], last))
                last = firsts[found]
            if last == start:
                return stages
        return None

    def _fits(self, last: int, n_ctx: int, batch: int, room: int, first: int) -> bool:
        return self._gpu_bytes(first, last, n_ctx, batch) <= room

    def _shared(self, n: int, n_ctx: int, gpus: Sequence[str], batch: int) -> list[Stage] | None:
        """The last n layers on GPUs that share their rows; None where a share does not fit."""
        uses = self.sums.on_ranks(list(gpus), n, n_ctx, self._step(batch, n_ctx), [self._free(gpu) for gpu in gpus])
        if not within(uses):
            return None
        numbers = ",".join(gpu.partition(":")[2] for gpu in gpus)
        return [Stage(f"cuda:{numbers}", self.n_layer - n, self.n_layer)]

    def _gpu_bytes(self, first: int, last: int, n_ctx: int, batch: int) -> int:
        return self.sums.on_gpu("", first, last, n_ctx, self._step(batch, n_ctx)).total

    def _room(self, gpu: str) -> int:
        """Bytes of a GPU's free memory to plan with."""
        return usable(self._free(gpu))

    def _free_bytes(self, gpu: str) -> int:
        from ggpy.cuda.memory import available

        try:
            return available(gpu)
        except GGPYError as error:
            full = isinstance(error, OutOfMemory) and len(self._named) > 1  # so full that it cannot be opened
            if ":" in self.device or (gpu == self._named[0] and not full):
                raise
            return 0  # nobody asked for this one

    def cache_type(self, device: str) -> str:
        """The types of keys and values where a device runs the last layers; see `ggpy.runtime.cache_types`."""
        return cache_type(self.file, self._program.states, *self.cache_types, device)
