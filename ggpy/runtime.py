"""The runtime: a model file made ready to run, one batch of tokens at a
time. It knows nothing of text, sampling and requests.

file -> graph -> program -> executor. Each token of a batch sits in a cache slot at a position, and sees that slot's
cells up to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ggpy.cores import usable_cores, usable_cpus
from ggpy.cpu.layout import CACHE_TYPES, SPAN, cache_name, cache_types, cell_bytes
from ggpy.errors import GGPYError, OutOfMemory, quoted
from ggpy.gguf_file import GGUFFile
from ggpy.graph import Graph
from ggpy.metadata import TypedMetadata
from ggpy.models import by_gguf_name
from ggpy.models.base import Architecture
from ggpy.placement import Placement
from ggpy.program import Program, plan
from ggpy.quant.packed import BLOCK
from ggpy.split import SplitExecutor

if TYPE_CHECKING:
    from ggpy.choice import Choices, Choosing, Chosen
    from ggpy.cuda.driver import Device
    from ggpy.cuda.executor import CudaExecutor
    from ggpy.cuda.ranks import RanksExecutor
    from ggpy.placement import Part
    from ggpy.sampler import Chain
    from ggpy.sampling_params import SamplingParams
    from ggpy.split import Executor, PartExecutor
    from ggpy.tensor_parallel import Rank

GPU_CACHE_TYPES = ("f16", "q8_0")
GPU_HEAD_DIM = 256  # the widest heads: a warp holds 8 dimensions a lane
Integers = Sequence[int] | np.ndarray  # of any integer type


def _quiet(note: str) -> None:
    pass


def architecture(file: GGUFFile) -> Architecture:
    """The model family of a file, its hyper-parameters read."""
    where = str(file.path)
    name = TypedMetadata(file.metadata, where).find("general.architecture", str)
    if name is None:
        raise GGPYError(
            f"{file.path}: the metadata key 'general.architecture' is missing, so the file names no model to run."
        )
    embedding = file.tensors.get("token_embd.weight")
    family = by_gguf_name(name)
    if embedding is None or len(embedding.shape) != 2:
        raise GGPYError(
            f"{file.path}: the tensor 'token_embd.weight' is missing or no matrix; a vocabulary-only file cannot run."
        )
    return family(file.metadata, embedding.shape[0], where)


def planned(file: GGUFFile, device: str = "cpu", rank: Rank | None = None) -> Program:
    """The program that evaluates a file's model on a device, or a rank's share of it."""
    model = architecture(file)
    graph = Graph(file)
    logits = model.build(graph)
    if rank:
        from ggpy.tensor_parallel import divided

        graph, logits = divided(graph, logits, rank)
    if device != "cpu":
        from ggpy.cuda.weights import activation_form
    else:
        from ggpy.cpu.needed import activation_form

    return plan(graph, logits, model.hparams.norm_eps, activation_form)


def cache_type(
    file: GGUFFile, cache_type_k: str | None = None, cache_type_v: str | None = None, device: str = "cpu"
) -> str:
    """The types of cached keys and values, as the kernels for them are called.

    Without a choice "f16", as everywhere in the field, but on the CPU "f32" for a model kept in float32: who keeps that
    wants its precision. Raises GGPYError where a type is unknown, or model, type and device do not suit each other.
    """
    matrices = (info.type_name for info in file.tensors.values() if len(info.shape) == 2)
    default = "f32" if device == "cpu" and all(name == "F32" for name in matrices) else "f16"
    chosen = [cache_type_k or default, cache_type_v or default]
    for option, name in zip(("cache_type_k", "cache_type_v"), chosen, strict=True):
        if name not in CACHE_TYPES:
            known = ", ".join(CACHE_TYPES)
            raise GGPYError(f"{option} is {quoted(name)}, but the cache holds only {known}; choose one.")
    head_dim = architecture(file).hparams.head_dim
    if device != "cpu":
        wide = next((name for name in chosen if name not in GPU_CACHE_TYPES), None)
        if wide:
            raise GGPYError(
                f"On a GPU the cache holds {' or '.join(GPU_CACHE_TYPES)}, not {wide}; choose one of them, leave its "
                "type out, or run the model on the CPU (--device cpu)."
            )
        if head_dim > GPU_HEAD_DIM:
            raise GGPYError(
                f"{file.path}: heads of {head_dim} dimensions are more than the {GPU_HEAD_DIM} that ggpy's kernels for "
                "GPUs hold; run the model on the CPU (--device cpu)."
            )
    if "q8_0" in chosen and head_dim % BLOCK:
        raise GGPYError(
            f"{file.path}: heads of {head_dim} dimensions do not divide into the blocks of {BLOCK} that a q8_0 cache "
            "has; take f16 for this model's cache."
        )
    return cache_name(*chosen)


def _within(values: Integers, least: int, limit: int) -> bool:
    """Whether all values are from `least` to below `limit`."""
    if isinstance(values, np.ndarray):
        return not values.size or bool(values.min() >= least and values.max() < limit)
    return not values or (min(values) >= least and max(values) < limit)


class Runtime:
    """One model with a key/value cache of `n_slots` sequences of up to `n_ctx` tokens.

    `placement`: where its layers are; without one it is made here, of `placing`, what `Placement` takes beside the
    file. `notify` receives one-line notes: that kernels are being compiled, that a type runs slowly.
    """

    def __init__(
        self,
        file: GGUFFile,
        n_ctx: int,
        n_threads: int | None = None,
        notify: Callable[[str], None] | None = None,
        placement: Placement | None = None,
        **placing: Any,
    ) -> None:
        placement = placement or Placement(file, **placing)
        self.parts, most_tokens = placement.place(n_ctx)
        self.hparams = placement.hparams

        self.file, self.device = file, placement.device if self.parts[-1].on_gpu else "cpu"
        self.n_ctx, self.n_slots = n_ctx, placement.n_slots
        self.n_batch = min(most_tokens, n_ctx)
        self.n_vocab = self.hparams.n_vocab
        self.n_threads = n_threads or usable_cores()
        self.cache_type = cache_type(file, *placement.cache_types, self.device)
        # Whether generated tokens and prompts' are evaluated in ways of their own, as GPUs do where results shall not
        # depend on the batch. The CPU's never do.
        self.by_kind = placement.batch_invariant and self.device != "cpu"
        notify = self._notify = notify or _quiet
        self._cut = False, False  # what the user has been told of `Executor.cut`
        if self.device != "cpu":
            notify(placement.describe(self.parts))
        elif placement.asked is None:
            notify(f"{placement.shortage(1, n_ctx)}: the CPU runs them all")
        if placement.by_rows and len(self.parts[-1].gpus) < 2:
            notify("split_mode (-sm) is of no effect without several GPUs: name them (--device cuda:0,1)")
        if self.n_threads > usable_cpus() and any(not part.on_gpu for part in self.parts):
            notify(f"{self.n_threads} threads share the {usable_cpus()} CPUs that this process may use, and run slower")
        with ExitStack() as undo:
            executors: list[PartExecutor] = []
            for part in self.parts:
                try:
                    executors.append(self._executor_of(part, placement, notify))
                except OutOfMemory as error:
                    undo.close()
                    raise placement.ran_out(self.parts, n_ctx, error) from error
                undo.callback(executors[-1].close)
            undo.pop_all()
        file.check_unchanged()
        self._executor: Executor = executors[0] if len(executors) == 1 else SplitExecutor(executors)
        whole_on_gpu = len(executors) == 1 and self.device != "cpu"
        self._choosing = cast("Choosing", self._executor) if whole_on_gpu else None
        # What `choose` can do: tokens of a step, and of candidates for each; 0 where it cannot.
        self.most_chosen = min(self.n_batch, self._choosing.most_chosen) if self._choosing else 0
        self.most_candidates = self._choosing.most_candidates if self._choosing else 0

    def _executor_of(self, part: Part, placement: Placement, notify: Callable[[str], None]) -> PartExecutor:
        if len(part.gpus) > 1:
            return self._ranks_of(part, placement, notify)
        program = placement.program(part.on_gpu).part(part.first, part.last)
        if part.on_gpu:
            from ggpy.cuda.driver import Device

            return self._on_gpu(program, Device(*part.gpus), notify)
        from ggpy.cpu.executor import CpuExecutor

        return CpuExecutor(
            program,
            self.file,
            n_ctx=self.n_ctx,
            n_slots=self.n_slots,
            n_batch=self.n_batch,
            n_threads=self.n_threads,
            cache_type=self.cache_type,
            notify=notify,
        )

    def _ranks_of(self, part: Part, placement: Placement, notify: Callable[[str], None]) -> RanksExecutor:
        from ggpy.cuda.driver import Device
        from ggpy.cuda.ranks import RanksExecutor, require_peers
        from ggpy.tensor_parallel import Rank

        devices = [Device(gpu) for gpu in part.gpus]
        require_peers(devices)
        with ExitStack() as undo:
            executors = []
            for index, device in enumerate(devices):
                rank = Rank(index, len(devices))
                program = placement.program(True, rank).part(part.first, part.last)
                executors.append(self._on_gpu(program, device, notify, rank))
                undo.callback(executors[-1].close)
            made = RanksExecutor(executors)
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

        n_generated: so many tokens, the first ones, were generated, each in a slot of its own; the others are of
        prompts. It only matters where `by_kind`: a token must then always be called the same, as its cells are made.
        """
        evaluate = self._step_by_kind if self.by_kind else self._evaluate
        logits = evaluate(tokens, slots, positions, outputs, n_generated)
        if self._executor.cut != self._cut:
            self._tell_of_cuts()
        return logits

    def _evaluate(
        self, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers, n_generated: int
    ) -> np.ndarray:
        """A batch whose tokens are all generated, or none."""
        self._describe(tokens, slots, positions, outputs, 0)
        return self._executor.run(len(tokens), len(outputs), n_generated > 0)

    def _step_by_kind(
        self, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers, n_generated: int
    ) -> np.ndarray:
        """The generated tokens first, as many at a time as a GPU decodes, then the prompts'."""
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
            part = tokens[first:end], slots[first:end], positions[first:end]
            logits[here] = self._evaluate(*part, wanted[here] - first, max(0, n_generated - first))
        return logits[place]

    def choose(self, tokens: Integers, slots: Integers, positions: Integers, choices: Choices) -> Chosen:
        """Start a step of one token in each of some slots, and the choice of the token after it: [n] as for `step`,
        choices `ggpy.choice.CHOICE` [n]. For up to `most_chosen` tokens.

        A token may be `chosen_by_last_step(slot)`. It may be called once more before what it returned is asked.
        """
        n = len(tokens)
        if n > self.most_chosen or len(choices) != n or len(set(slots)) != n:
            raise ValueError(f"{n} tokens, {len(choices)} choices; at most {self.most_chosen}, in slots of their own")
        self._describe(tokens, slots, positions, (), self.n_slots)
        assert self._choosing is not None
        chosen = self._choosing.choose(n, choices)
        if self._executor.cut != self._cut:
            self._tell_of_cuts()
        return chosen

    def _tell_of_cuts(self) -> None:
        """Once for keys and once for values: they were beyond what their cache holds."""
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
        """Tell the executor of a batch. n_unknown: for how many slots a token may be the last one chosen."""
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

    def chain_for(self, params: SamplingParams) -> Chain | None:
        """What samples with these parameters (resolved) in machine code, where the CPU's kernels are at hand."""
        if self.device != "cpu":
            return None
        from ggpy.cpu.sampling import MachineChain

        return MachineChain.of(params)

    @property
    def executor(self) -> Executor:
        """What runs the program: `CpuExecutor`, `CudaExecutor`, or `SplitExecutor` where several devices do."""
        return self._executor

    def close(self) -> None:
        """Stop the threads, or give back the GPU's memory. The runtime cannot be used afterwards."""
        self._executor.close()

    @staticmethod
    def kv_bytes(
        file: GGUFFile,
        n_ctx: int,
        n_slots: int = 1,
        cache_type_k: str | None = None,
        cache_type_v: str | None = None,
        device: str = "cpu",
    ) -> int:
        """Bytes that the key/value cache of `n_slots` sequences of `n_ctx` tokens takes on the CPU when full. device:
        another one has the last layers, and its types hold for all."""
        hp = architecture(file).hparams
        cells = n_slots * (-(-n_ctx // SPAN) * SPAN)
        k, v = cache_types(cache_type(file, cache_type_k, cache_type_v, device))
        per_cell = cell_bytes(k, hp.head_dim) + cell_bytes(v, -(-hp.head_dim // 16) * 16)
        return hp.n_layer * hp.n_head_kv * cells * per_cell

    @staticmethod
    def weight_bytes(file: GGUFFile) -> int:
        """Bytes that the weights take on the CPU: a packed matrix may be larger than the file's, most of all one of a
        type without a packed form, which is kept in half precision."""
        from ggpy.cpu.needed import packed_format

        matrices = [info for info in file.tensors.values() if len(info.shape) == 2]
        return file.size + sum(max(0, packed_format(m).matrix_bytes(*m.shape) - m.nbytes) for m in matrices)
