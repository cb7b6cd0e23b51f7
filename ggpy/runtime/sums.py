"""Bytes that a model's layers take on a CPU or a GPU, before anything is loaded: the figures by which layers are placed
and a context is chosen, and which `ggpy fit` shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from ggpy.cpu.sizes import WorkingSizes, checkpoint_bytes, slot_bytes, slots_bytes, weight_bytes
from ggpy.graph.state import ConvState, KVState, LatentState, State
from ggpy.graph.tensor_parallel import Rank
from ggpy.host.memory import MemoryUse
from ggpy.runtime.host_memory import HostMemory

if TYPE_CHECKING:
    from ggpy.graph.program import Program


class Programs(Protocol):
    """The program of the whole model for GPUs or for the CPU, or a rank's share of it."""

    def __call__(self, on_gpu: bool, rank: Rank | None = None) -> Program: ...


class Sums:
    """The sums of one model, for caches of `n_slots` sequences and `n_threads` threads on the CPU.

    program: see `Programs`. cache_type: gives the types of keys and values where a device, "cpu" or another, runs the
    last layers. cache_ram: bytes for parked conversations (`HostMemory.of`); 0 and no checkpoints without an engine.
    n_ctx is the most tokens of a slot everywhere, n_batch the most of a step, as the runtime makes it.
    """

    def __init__(
        self,
        program: Programs,
        cache_type: Callable[[str], str],
        n_slots: int,
        n_threads: int,
        engine: bool = False,
        cache_ram: int | None = None,
    ) -> None:
        self._program, self._cache_type = program, cache_type
        self._n_slots, self._n_threads = n_slots, n_threads
        self._engine, self._cache_ram = engine, cache_ram
        # Found out once: a search for the largest context asks for the same ones again and again.
        self._stage, self._cpu_weights = cache(self._cpu_stage), cache(self._cpu_weight_bytes)
        self._working, self._gpu_caches = cache(self._working_bytes), cache(self._cache_bytes)
        self._rank_share = cache(self._ranks)

    # ---- the CPU

    def on_cpu(
        self,
        n: int,
        n_ctx: int,
        n_batch: int,
        free: int,
        device: str = "cpu",
        kv_cells: int | None = None,
        drafts: int = 0,
    ) -> MemoryUse:
        """The first n layers on the CPU, and what an engine keeps beside them, also where n is 0; `device` is that of
        the last layers. kv_cells: see `slots_bytes`. drafts: bytes that are taken beside them, see `MemoryUse`."""
        use = MemoryUse("cpu", free, 0, 0, 0)
        if n:
            stage = self._stage(n)
            working = WorkingSizes(stage, n_ctx, n_batch, self._n_threads).total
            state = slots_bytes(stage.states, n_ctx, self._n_slots, n_batch, self._cache_type(device), kv_cells)
            use = MemoryUse("cpu", free, self._cpu_weights(n), working, state, drafts=drafts)
        return replace(use, kept=self.host_memory(n, n_ctx, n_batch, use.room, device).total)

    def host_memory(self, n: int, n_ctx: int, n_batch: int, room: int, device: str) -> HostMemory:
        """Limits of what an engine keeps beside the slots, where the first n layers run on the CPU and leave so much
        room."""
        if not self._engine:
            return HostMemory()
        states = self._stage(n).states if n else ()
        checkpoint = checkpoint_bytes(states, n_ctx, n_batch, self._cache_type(device))
        if device != "cpu":
            checkpoint += self._carried(n, self._n_layer)
        # A GPU gives a slot's whole context, however little of it is filled: who wants that asks for it.
        parked = 0 if self._cache_ram is None and device != "cpu" else self._cache_ram
        return HostMemory.of(self._n_slots, checkpoint, room, parked)

    def _cpu_stage(self, n: int) -> Program:
        whole = self._program(False)
        return whole if n == len(whole.layers) else whole.stage(0, n)

    def _cpu_weight_bytes(self, n: int) -> int:
        return weight_bytes(self._stage(n))

    # ---- GPUs

    def on_gpu(self, gpu: str, first: int, last: int, n_ctx: int, n_batch: int, free: int = 0) -> MemoryUse:
        """Layers first .. last - 1 on a GPU."""
        whole = last - first == self._n_layer
        weights = self._whole_weights if whole else sum(self._layer_weights[first:last])
        state = self._gpu_caches(first, last, n_ctx, n_batch) + self._slots_carried(first, last)
        return MemoryUse(gpu, free, weights, self._working(n_batch), state)

    def on_ranks(self, gpus: list[str], n: int, n_ctx: int, n_batch: int, free: list[int]) -> list[MemoryUse]:
        """The last n layers on GPUs that share their rows: what each takes."""
        caches = self._gpu_caches(self._n_layer - n, self._n_layer, n_ctx, n_batch)
        carried = self._slots_carried(self._n_layer - n, self._n_layer)  # by layers that are whole on each
        return [
            MemoryUse(gpu, room, weights, working, caches * own // whole + carried)
            for gpu, room, (weights, working, own, whole) in zip(
                gpus, free, self._rank_share(n, len(gpus), n_batch), strict=True
            )
        ]

    @cached_property
    def _n_layer(self) -> int:
        return len(self._program(True).layers)

    @cached_property
    def _whole_weights(self) -> int:
        """Bytes of all weights; an embedding that is also the output matrix counts once."""
        from ggpy.cuda.memory import weight_bytes

        return weight_bytes(self._program(True))

    @cached_property
    def _layer_weights(self) -> list[int]:
        """Bytes of the weights by layer; the first has the embedding, the last the output matrix, and the first of
        layers that cannot be parted those of all of them."""
        from ggpy.cuda.memory import weight_bytes

        program, sizes = self._program(True), [0] * self._n_layer
        for first, last in pairwise([0, *program.cut_layers, self._n_layer]):
            sizes[first] = weight_bytes(program.stage(first, last))
        return sizes

    def _working_bytes(self, n_batch: int) -> int:
        from ggpy.cuda.memory import working_bytes

        return working_bytes(self._program(True), n_batch)

    def _cache_bytes(self, first: int, last: int, n_ctx: int, n_batch: int) -> int:
        """Bytes of the cache of layers first .. last - 1 on a GPU."""
        from ggpy.cuda.memory import cache_bytes

        attentions = [a for a in self._program(True).attentions if first <= a.layer < last]
        return cache_bytes(attentions, n_ctx, self._n_slots, n_batch, self._cache_type("cuda"))

    def _slots_carried(self, first: int, last: int) -> int:
        """Bytes of what layers first .. last - 1 carry on of all slots on a GPU."""
        from ggpy.cuda.slot_states import LENGTHS

        return self._n_slots * LENGTHS * self._carried(first, last)

    def _carried(self, first: int, last: int) -> int:
        """Bytes of what layers first .. last - 1 carry on of a slot on a GPU, of one length."""
        return sum(n_bytes for layer, n_bytes in self._slot_carried.items() if first <= layer < last)

    @cached_property
    def _slot_carried(self) -> dict[int, int]:
        from ggpy.cuda.memory import slot_carried_bytes

        return slot_carried_bytes(self._program(True))

    def _ranks(self, n: int, count: int, n_batch: int) -> list[tuple[int, int, int, int]]:
        """For each rank that shares the last n layers: bytes of its weights and of its working memory, and its heads
        of keys and values among all."""
        from ggpy.cuda.memory import rank_bytes, weight_bytes

        shares = []
        for index in range(count):
            rank = Rank(index, count)
            program = self._program(True, rank).stage(self._n_layer - n, self._n_layer)
            own, whole = (p.attentions[0].n_head_kv for p in (program, self._program(True)))
            weights = weight_bytes(program)
            shares.append((weights, rank_bytes(program, rank, n_batch) - weights, own, whole))
        return shares


@dataclass(frozen=True)
class StateUse:
    """Bytes of one sequence's state of one kind, of `n_layers` layers together.

    n_cells: positions that there is room for; 0 for what has one size. per_token: bytes by which it grows with the
    context, 0 where it does not.
    """

    kind: str
    n_layers: int
    n_cells: int
    per_token: float
    per_slot: int


def state_uses(states: Sequence[State], n_ctx: int, n_batch: int, cache_type: str) -> list[StateUse]:
    """The state of a sequence on the CPU by its kinds, in the order of the layers that have them first."""
    groups: dict[tuple[str, int], list[State]] = {}
    for state in states:
        cells = state.n_cells(n_ctx, n_batch) if isinstance(state, KVState) else 0
        groups.setdefault((_kind(state, cells, n_ctx), cells), []).append(state)
    found = []
    for (kind, cells), some in groups.items():
        size = slot_bytes(some, n_ctx, n_batch, cache_type)
        grows = cells >= n_ctx
        found.append(StateUse(kind, len(some), cells, size / cells if grows else 0, size))
    return found


def _kind(state: State, n_cells: int, n_ctx: int) -> str:
    if isinstance(state, KVState):
        if not state.causal:
            return "keys and values of a step, which layers share"
        if n_cells < n_ctx:
            return f"keys and values of a window of {state.window}"
        return "latent keys" if isinstance(state, LatentState) else "keys and values"
    return "convolution" if isinstance(state, ConvState) else "recurrent"
