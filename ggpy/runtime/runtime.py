"""The runtime: a model file made ready to run, one batch of tokens at a
time. It knows nothing of text, sampling and requests.

file -> graph -> program -> executor. Each token of a batch sits in a cache slot at a position, and sees that slot's
cells up to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ggpy.cpu.isa.layout import cache_types
from ggpy.errors import OutOfMemory
from ggpy.gguf.file import GGUFFile
from ggpy.graph.program import Program
from ggpy.host.cores import usable_cores, usable_cpus
from ggpy.runtime.pipeline import PipelineExecutor
from ggpy.runtime.placement import Placement

if TYPE_CHECKING:
    from ggpy.cpu.executor import CpuExecutor
    from ggpy.cpu.threads import Team
    from ggpy.cuda.driver import Device
    from ggpy.cuda.executor import CudaExecutor
    from ggpy.cuda.tensor_parallel import TensorParallelExecutor
    from ggpy.graph.executor import Executor, StageExecutor
    from ggpy.graph.state import Reach
    from ggpy.graph.tensor_parallel import Rank
    from ggpy.runtime.placement import Stage
    from ggpy.runtime.prediction_head import PredictionHead
    from ggpy.sampling.sample_spec import SampledTokens, SampleSpecs, SamplingExecutor
    from ggpy.sampling.sampler import Chain
    from ggpy.sampling.sampling_params import SamplingParams

Integers = Sequence[int] | np.ndarray  # of any integer type


def _quiet(note: str) -> None:
    pass


def _within(values: Integers, least: int, limit: int) -> bool:
    """True where least <= value < limit for all values."""
    if isinstance(values, np.ndarray):
        return not values.size or bool(values.min() >= least and values.max() < limit)
    return not values or (min(values) >= least and max(values) < limit)


class Runtime:
    """One model with a key/value cache of `n_slots` sequences of up to `n_ctx` tokens.

    `kv_cells`: where that is a number, slots have no cells of their own, but ranges of so many that all share: see
    `assign_cells`. Else each has the whole context.

    `placement`: the devices of its layers; without one, it is made here from `placing`, the arguments of `Placement`
    beside the file. `notify` receives one-line notes: that kernels are being compiled, that a type runs slowly.
    `beside`: a runtime on whose threads this one's layers on the CPU run; their steps take turns; it is closed last.
    """

    def __init__(
        self,
        file: GGUFFile,
        n_ctx: int,
        n_threads: int | None = None,
        notify: Callable[[str], None] | None = None,
        placement: Placement | None = None,
        beside: Runtime | None = None,
        **placing: Any,
    ) -> None:
        placement = placement or Placement(file, **placing)
        self.stages, self.n_batch = placement.place(n_ctx)
        self.hparams = placement.hparams

        self.file, self.device = file, placement.device if self.stages[-1].on_gpu else "cpu"
        self.n_ctx, self.n_slots = n_ctx, placement.n_slots
        self.kv_cells = placement.kv_cells(self.stages, n_ctx, self.n_batch)
        self.host_memory = placement.host_memory(self.stages, n_ctx, self.n_batch)
        #: Tokens of context of who drafts for this runtime, where somebody does.
        self.draft_ctx: int | None = None
        if placement.drafter is not None:
            self.draft_ctx = placement.draft_context(self.stages, n_ctx, self.n_batch, self.kv_cells)
        self._capacities = np.zeros(self.n_slots, np.int64)  # of slots that share cells
        self.n_vocab = self.hparams.n_vocab
        self.team: Team | None = beside.team if beside else None  # of threads on the CPU, once there is one
        self.n_threads = self.team.n_threads if self.team else n_threads or usable_cores()
        self.cache_type = placement.cache_type(self.device)
        # Whether generated tokens and prompts' are evaluated in ways of their own, as GPUs do where results shall not
        # depend on the batch. The CPU's never do.
        self.by_kind = placement.batch_invariant and self.device != "cpu"
        notify = self._notify = notify or _quiet
        if self.kv_cells:
            notify(f"{self.n_slots} sequences share a cache of {self.kv_cells} tokens, up to {n_ctx} each")
        self.head: PredictionHead | None = None  # the model's own, where it is to draft tokens
        self._cut = False, False  # what the user has been told of `Executor.cut`
        if self.device != "cpu":
            notify(placement.describe(self.stages))
        n_on_cpu = sum(stage.n_layers for stage in self.stages if not stage.on_gpu)
        if placement.reduced:
            notify(placement.reduced)
        if placement.unsupported:
            which = f"the first {n_on_cpu}" if self.device != "cpu" else "all"
            notify(f"the GPU has no kernels yet for {placement.unsupported}: the CPU runs {which} layers")
        elif placement.asked is None and self.device == "cpu":
            notify(f"{placement.shortage(1, n_ctx)}: the CPU runs them all")
        if placement.by_rows and len(self.stages[-1].gpus) < 2:
            notify("split_mode (-sm) is of no effect without several GPUs: name them (--device cuda:0,1)")
        if self.n_threads > usable_cpus() and any(not stage.on_gpu for stage in self.stages):
            notify(f"{self.n_threads} threads share the {usable_cpus()} CPUs that this process may use, and run slower")
        with ExitStack() as undo:
            executors: list[StageExecutor] = []
            for stage in self.stages:
                try:
                    executors.append(self._executor_of(stage, placement, notify))
                except OutOfMemory as error:
                    undo.close()
                    raise placement.ran_out(self.stages, n_ctx, error) from error
                undo.callback(executors[-1].close)
            undo.pop_all()
        file.check_unchanged()
        self._executor: Executor = executors[0] if len(executors) == 1 else PipelineExecutor(executors)
        self.n_types = placement.n_types  # of tokens that the model tells apart; 0 for one that knows none
        self.reach: Reach = placement.reach(self.stages, n_ctx, self.n_batch)
        whole_on_gpu = len(executors) == 1 and self.device != "cpu"
        self._sampling = cast("SamplingExecutor", self._executor) if whole_on_gpu else None
        # What `sample` can do: tokens of a step, and of candidates for each; 0 where it cannot.
        self.max_sampled = min(self.n_batch, self._sampling.max_sampled) if self._sampling else 0
        self.max_top_k = self._sampling.max_top_k if self._sampling else 0

    def _executor_of(self, stage: Stage, placement: Placement, notify: Callable[[str], None]) -> StageExecutor:
        if len(stage.gpus) > 1:
            return self._ranks_of(stage, placement, notify)
        program = placement.program(stage.on_gpu).stage(stage.first, stage.last)
        if stage.on_gpu:
            from ggpy.cuda.driver import Device

            return self._on_gpu(program, Device(*stage.gpus), notify)
        from ggpy.cpu.executor import CpuExecutor

        executor = CpuExecutor(
            program,
            self.file,
            n_ctx=self.n_ctx,
            n_slots=self.n_slots,
            n_batch=self.n_batch,
            n_threads=self.n_threads,
            cache_type=self.cache_type,
            notify=notify,
            team=self.team,
            kv_cells=self.kv_cells,
        )
        self.team = executor.team
        return executor

    def _ranks_of(self, stage: Stage, placement: Placement, notify: Callable[[str], None]) -> TensorParallelExecutor:
        from ggpy.cuda.driver import Device
        from ggpy.cuda.tensor_parallel import TensorParallelExecutor, require_peers
        from ggpy.graph.tensor_parallel import Rank

        devices = [Device(gpu) for gpu in stage.gpus]
        require_peers(devices)
        with ExitStack() as undo:
            executors = []
            for index, device in enumerate(devices):
                rank = Rank(index, len(devices))
                program = placement.program(True, rank).stage(stage.first, stage.last)
                executors.append(self._on_gpu(program, device, notify, rank))
                undo.callback(executors[-1].close)
            made = TensorParallelExecutor(executors)
            undo.pop_all()
        return made

    def _on_gpu(
        self, program: Program, device: Device, notify: Callable[[str], None], rank: Rank | None = None
    ) -> CudaExecutor:
        from ggpy.cuda.executor import CudaExecutor

        return CudaExecutor(
            program,
            self.file,
            n_ctx=self.n_ctx,
            n_slots=self.n_slots,
            n_batch=self.n_batch,
            cache_type=self.cache_type,
            notify=notify,
            device=device,
            rank=rank,
            batch_invariant=self.by_kind,
        )

    def step(
        self, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers, n_generated: int = 0
    ) -> np.ndarray:
        """Evaluate a batch; the first three arguments are [n] with 1 <= n <= n_batch.

        Token i takes cell positions[i] of slot slots[i] and sees cells 0 .. positions[i], written by earlier steps or
        by this batch. `outputs` [m] are the batch indices whose logits are wanted. Returns float32 [m, n_vocab], a view
        valid until the next step; it may be written to.

        n_generated: the number of tokens, at the front, that were generated, each in a slot of its own; the others are
        of prompts. It only matters where `by_kind`: a token must then always be given as the same kind, which its cell
        depends on.
        """
        evaluate = self._step_by_kind if self.by_kind else self._evaluate
        logits = evaluate(tokens, slots, positions, outputs, n_generated)
        if self._executor.cut != self._cut:
            self._tell_of_cuts()
        return logits

    def embed(
        self,
        tokens: Integers,
        slots: Integers,
        positions: Integers,
        outputs: Integers,
        types: Integers | None = None,
        pooled: bool = True,
    ) -> np.ndarray:
        """Evaluate a batch of a model that embeds texts, as `step` does: for each of `outputs` [m] the row of the
        sequence that it ends, or, where not `pooled`, the token's own: float32 [m, n_cols], a view valid until the next
        step. types [n]: of the tokens, for models that tell a text's parts apart; None is 0 for all."""
        if types is not None and (len(types) != len(tokens) or not _within(types, 0, max(1, self.n_types))):
            raise ValueError(f"{len(types)} types of {len(tokens)} tokens, where the model knows {self.n_types}")
        executor = self._executor
        try:
            executor.unpooled = not pooled
            if types is not None:
                executor.types[: len(types)] = types
            return self.step(tokens, slots, positions, outputs)
        finally:
            executor.unpooled = False
            if types is not None:
                executor.types[: len(types)] = 0

    def _evaluate(
        self, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers, n_generated: int
    ) -> np.ndarray:
        """Evaluate a batch of generated tokens only, or of prompts only."""
        self._describe(tokens, slots, positions, outputs, 0)
        return self._executor.run(len(tokens), len(outputs), n_generated > 0)

    def _step_by_kind(
        self, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers, n_generated: int
    ) -> np.ndarray:
        """Evaluate the generated tokens first, as many at a time as a GPU decodes, then those of prompts."""
        from ggpy.cuda.executor import GRAPH_SIZES

        n, most = len(tokens), GRAPH_SIZES[-1]
        if not 0 <= n_generated <= n or len({int(slot) for slot in slots[:n_generated]}) != n_generated:
            raise ValueError(f"{n_generated} of {n} tokens generated, in slots {list(slots[:n_generated])}")
        if not n_generated or (n_generated == n and len(outputs) <= n <= most):
            return self._evaluate(tokens, slots, positions, outputs, n_generated)
        wanted, place = np.unique(np.asarray(outputs, np.int64), return_inverse=True)
        logits = np.empty((len(wanted), self.n_vocab), np.float32)
        for first, end in pairwise([*range(0, n_generated, most), n_generated, *{n} - {n_generated}]):
            here = (wanted >= first) & (wanted < end)
            stage = tokens[first:end], slots[first:end], positions[first:end]
            logits[here] = self._evaluate(*stage, wanted[here] - first, max(0, n_generated - first))
        return logits[place]

    def sample(self, tokens: Integers, slots: Integers, positions: Integers, specs: SampleSpecs) -> SampledTokens:
        """Start a step of one token in each of some slots, and the choice of the token after it: [n] as for `step`,
        specs `ggpy.sampling.sample_spec.SAMPLE_SPEC` [n]. For up to `max_sampled` tokens.

        A token may be `sampled_by_last_step(slot)`. One more step may be started before this one's tokens are read.
        """
        n = len(tokens)
        if n > self.max_sampled or len(specs) != n or len(set(slots)) != n:
            raise ValueError(f"{n} tokens, {len(specs)} specs; at most {self.max_sampled}, in slots of their own")
        self._describe(tokens, slots, positions, (), self.n_slots)
        assert self._sampling is not None
        chosen = self._sampling.sample(n, specs)
        if self._executor.cut != self._cut:
            self._tell_of_cuts()
        return chosen

    def _tell_of_cuts(self) -> None:
        """Report, once for keys and once for values, that numbers were beyond the range of their cache's type."""
        told, self._cut = self._cut, self._executor.cut
        for cut, before, kind, which in zip(
            self._cut, told, cache_types(self.cache_type), ("keys", "values"), strict=True
        ):
            if cut and not before:
                option, on = f"-ct{which[0]}", "" if self.device == "cpu" else "--device cpu "
                wider = "f32" if kind == "bf16" else "bf16 or f32"
                self._notify(
                    f"{self.file.path.name}: some {which} are beyond the largest number of the {kind} cache and were "
                    f"cut to it, so answers may be off; {on}{option} {wider} holds them"
                )

    def _describe(
        self, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers, n_unknown: int
    ) -> None:
        """Describe a batch to the executor. n_unknown: slots whose token may be `sampled_by_last_step`."""
        n, m = len(tokens), len(outputs)
        if not 1 <= n <= self.n_batch or len(slots) != n or len(positions) != n or m > self.n_batch:
            raise ValueError(
                f"a batch of {n} tokens, {len(slots)} slots, {len(positions)} positions, {m} outputs; "
                f"at most {self.n_batch}"
            )
        x = self._executor
        # kernels take raw addresses: nothing out of range may reach them
        for name, values, least, limit, to in (
            ("token", tokens, -n_unknown, self.n_vocab, x.tokens),
            ("slot", slots, 0, self.n_slots, x.slots),
            ("position", positions, 0, self.n_ctx, x.positions),
            ("output", outputs, 0, n, x.outputs),
        ):
            if len(values) == 1 and least <= values[0] < limit:  # sooner than numpy would begin with a slice
                to[0] = values[0]
            elif _within(values, least, limit):
                to[: len(values)] = values
            else:
                raise ValueError(f"a {name} outside {least}..{limit - 1}")
        if self.kv_cells and not (x.positions[:n] < self._capacities[x.slots[:n]]).all():
            raise ValueError("a position outside its slot's cells")

    def copy_state(self, source: int, target: int, n: int) -> None:
        """Make a slot's state that of another slot, keys and values at least of the first n tokens."""
        self._executor.copy_state(source, target, n)
        if self.head is not None:
            self.head.copy_state(source, target, n)

    def save(self, slot: int, n: int) -> list[np.ndarray]:
        """A copy of a slot's state of n tokens, on the host: uint8 arrays."""
        return self._executor.save(slot, n)

    def load(self, slot: int, kept: Iterator[np.ndarray], n: int, n_kept: int) -> None:
        """Put back at least the first n of the n_kept tokens whose state `save` gave, into any slot. Raises ValueError
        where an array is of another size."""
        self._executor.load(slot, kept, n, n_kept)

    @property
    def devices(self) -> str:
        """Which layers the CPU runs and which GPUs, of whatever number: what arrays of `save` depend on."""
        kinds = [
            "the CPU" if not s.on_gpu else "a GPU" if len(s.gpus) < 2 else f"{len(s.gpus)} GPUs" for s in self.stages
        ]
        return ", ".join(f"{stage.n_layers} layers on {kind}" for stage, kind in zip(self.stages, kinds, strict=True))

    def assign_cells(self, slot: int, start: int, n_cells: int, n: int) -> None:
        """Where slots share cells (`kv_cells`), give a slot those from `start` on, so many that no other slot has; its
        first n tokens come with it."""
        assert self.kv_cells is not None
        assert 0 <= start <= start + n_cells <= self.kv_cells
        cast("CpuExecutor", self._executor).move(slot, start, n)
        self._capacities[slot] = n_cells

    def checkpoint(self, slot: int, n: int) -> list[np.ndarray]:
        """A copy of what a slot of n tokens cannot be cut back from; see `reach` and `ggpy.graph.state.Reach`."""
        return self._executor.checkpoint(slot, n)

    def restore(self, slot: int, kept: Iterator[np.ndarray], n: int) -> None:
        """Put back what `checkpoint` gave of n tokens, for a slot that still holds the beginning of that sequence."""
        self._executor.restore(slot, kept, n)

    def chain_for(self, params: SamplingParams) -> Chain | None:
        """A native sampler for these parameters (resolved); None on a GPU, or where numpy is to sample."""
        if self.device != "cpu":
            return None
        from ggpy.cpu.sampler import NativeSampler

        return NativeSampler.of(params)

    @property
    def executor(self) -> Executor:
        """The executor of the program: `CpuExecutor`, `CudaExecutor`, or, for several devices, `PipelineExecutor`."""
        return self._executor

    def close(self) -> None:
        """Stop the threads, or give back the GPU's memory. The runtime cannot be used afterwards."""
        if self.head is not None:
            self.head.close()
        self._executor.close()
