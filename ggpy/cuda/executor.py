"""The CUDA executor: runs a program on one GPU behind the interface of the CPU's.

Small steps (decoding) are products of matrices with few vectors; each number of tokens is recorded once as a CUDA
graph, inputs, logits and all, and replayed by one call. Large steps (prompts) use tile products, launched one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cuda.compile import compile_missing
from ggpy.cuda.driver import Device, Event, Graph
from ggpy.cuda.exchange import Exchange
from ggpy.cuda.inputs import Inputs
from ggpy.cuda.lower import Embed, HeadProduct, Product, Step, lower, weight_groups
from ggpy.cuda.memory import cache_layout
from ggpy.cuda.ops.matmul import launch as matmul_launch
from ggpy.cuda.queue import MATVEC_SIZES, MATVEC_TOKENS, StepQueue
from ggpy.cuda.queue_experts import order_bytes
from ggpy.cuda.sampler import IN_FLIGHT, DeviceSampler, TokensInFlight
from ggpy.cuda.slot_states import SlotStates
from ggpy.cuda.weights.cache_layout import DEEP, AttentionShape, attention_ring_kib
from ggpy.cuda.weights.layout import LOG2_E, ActivationLayout, round_up
from ggpy.cuda.weights.weights import Weights, layout_of
from ggpy.cuda.working_memory import WorkingMemory
from ggpy.errors import GGPYError
from ggpy.graph.batch import side_by_side, token_segments

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile, TensorInfo
    from ggpy.graph.executor import StageExecutor
    from ggpy.graph.program import Program
    from ggpy.graph.rope import Rope
    from ggpy.graph.tensor_parallel import Rank
    from ggpy.sampling.sample_spec import SampleSpecs

GRAPH_SIZES = (*MATVEC_SIZES, 16, 32, 64)  # tokens of a step that is recorded
OUTPUT_ROWS = 64  # of logits made at a time
ANGLES_AT_ONCE = 1 << 14  # positions
MOST_BLOCKS = 65535  # of a launch in each direction but the first


class CudaExecutor:
    """Executor of one program, or a part of one, or a rank's share of it (`ggpy.cuda.tensor_parallel`). `run` takes the
    batch's description and returns logits; if none are asked for, it may return before the GPU is done. `sample` also
    chooses the tokens on the GPU, for a program that computes logits."""

    max_top_k = DeviceSampler.max_top_k
    max_sampled = GRAPH_SIZES[-1]  # tokens of a step that `sample` takes
    unpooled = False  # see `Executor`
    exchange: Exchange | None = None  # with the other ranks that share the model
    _epoch = 1  # of the next sum with them; memory begins with zeros
    _recorded: Inputs | None = None  # of the step that was started last, where it is a graph

    def __init__(
        self,
        program: Program,
        file: GGUFFile,
        *,
        n_ctx: int,
        n_slots: int,
        n_batch: int,
        notify: Callable[[str], None],
        cache_type: str = "f16",
        device: Device | None = None,
        rank: Rank | None = None,
        batch_invariant: bool = False,
    ) -> None:
        self.program, self.rank, self.batch_invariant = program, rank, batch_invariant
        self._whole = program.whole_sequences  # whose steps are as prompts are, even one of few tokens
        self.device = device or Device()
        self.device.use()
        try:
            self._set_up(file, n_ctx, n_slots, n_batch, cache_type, notify)
        except BaseException:
            self.close()
            raise

    def _set_up(
        self, file: GGUFFile, n_ctx: int, n_slots: int, n_batch: int, cache_type: str, notify: Callable[[str], None]
    ) -> None:
        device, program = self.device, self.program
        self.shapes: dict[int, AttentionShape] = {}  # by layer
        for a in program.attentions:
            cache = cache_layout(a, n_ctx, n_slots, n_batch, cache_type)
            ring = attention_ring_kib(device.shared_limit)
            self.shapes[a.layer] = AttentionShape.of(a, cache, ring, self.batch_invariant)
        self.n_ctx, self.n_batch = n_ctx, n_batch
        rows = round_up(max(n_batch, GRAPH_SIZES[-1]), MATVEC_TOKENS)  # read so many at a time
        steps = lower(program)
        self._check_positions(file, steps, n_ctx)
        self._check_grids(file)
        sums = [step.linears[0].dst for step in steps if isinstance(step, Product) and step.partial]
        self._n_sums = len(sums)
        if self.rank and sums[0]:
            self.exchange = Exchange(device, self.rank, sums[0].n_cols, MATVEC_TOKENS, rows)
        groups = weight_groups(steps)
        weights = Weights(device, file)
        compile_missing(self._kernel_names(weights, steps, groups), device.cc, notify)
        weights.load(groups, notify)
        memory = self._memory = WorkingMemory(device, rows)
        for buffer in program.buffers:
            memory.buffer(buffer, OUTPUT_ROWS if buffer.outputs_only else rows)
        products = [step for step in steps if isinstance(step, Product)]
        for product in products:
            memory.wide(product)
        by_heads = [4 * rows * step.source.n_cols for step in steps if isinstance(step, HeadProduct)]
        sizes = (self._activation_bytes(product, rows) for product in products)
        memory.activations = device.allocate(max((*sizes, *by_heads)))
        n_parts = {s.parts_bytes(n, device.n_multiprocessors) for s in set(self.shapes.values()) for n in GRAPH_SIZES}
        memory.parts = device.allocate(max(n_parts, default=0), zero=True)
        memory.order, memory.tiles = map(device.allocate, order_bytes(steps, rows))
        memory.zeros = device.allocate(4 * rows, zero=True)
        caches = {layer: shape.cache for layer, shape in self.shapes.items()}
        memory.states = SlotStates(device, program, caches, n_slots)
        ropes = dict.fromkeys(a.rope for a in program.attentions if a.rope)
        memory.angles = {rope: self._angles(rope, n_ctx) for rope in ropes}
        memory.vectors = {t: self._vector(t.factors(n_ctx)) for a in program.attentions if (t := a.temperature)}
        slopes = (a.slopes for a in program.attentions if a.alibi)
        memory.vectors |= {each: self._vector(np.float32(LOG2_E) * np.array(each, np.float32)) for each in slopes}
        self._many = Inputs(device, rows)
        self._few = [Inputs(device, GRAPH_SIZES[-1], samples=True)]
        self._few += [Inputs(device, GRAPH_SIZES[-1], True, self._few[0].address) for _ in range(1, IN_FLIGHT)]
        self._turn = 0  # which of these is next
        cut_at, buffer = device.page_locked(8)
        self._cut = np.frombuffer(buffer, np.uint32)
        self._cut[:] = 0
        for inputs in (self._many, *self._few):
            inputs.header[4:6].view(np.uint64)[0] = cut_at
        n_vocab = program.result.n_cols
        self._chooser = DeviceSampler(device, n_vocab, n_slots, GRAPH_SIZES[-1])
        memory.chosen = self._chooser.chosen
        self._row_bytes = 4 * round_up(n_vocab, 32)
        self._host_logits, buffer = device.page_locked(self._row_bytes * OUTPUT_ROWS)
        self._logits = np.frombuffer(buffer, np.float32).reshape(OUTPUT_ROWS, -1)[:, :n_vocab]
        self._all_logits = np.empty((0, n_vocab), np.float32)
        self._queue = self._queue_of(weights, steps, memory)
        self._queue.load_vectors()
        self._graphs: dict[tuple[int, str, str], Graph] = {}
        self.tokens, self.slots, self.positions, self.outputs = (np.zeros(n_batch, np.int32) for _ in range(4))
        self.types = np.zeros(n_batch, np.int32)
        device.synchronize()

    def _kernel_names(self, weights: Weights, steps: list[Step], groups: list[list[TensorInfo]]) -> list[str]:
        """Every kernel that steps of this program may launch."""
        names = Weights.kernel_names(groups)
        dry = self._queue_of(weights, steps, None, names.append)
        for n in () if self._whole else GRAPH_SIZES:
            dry.queue(n, "apart")
            if self.program.logits:
                dry.queue_logits(n, "apart")
        if self.n_ctx > DEEP and not self.batch_invariant and not self._whole:
            dry.queue(1, "deep")
        for n in () if self.batch_invariant or self._whole else MATVEC_SIZES[1:]:
            dry.queue(n, "together")
        dry.queue(self.n_batch + MATVEC_TOKENS, "prompt")
        if self.program.logits:
            dry.queue_logits(OUTPUT_ROWS, "prompt")
        if self.program.logits and not self._whole:
            names += DeviceSampler.kernel_names(self.program.logits.n_cols)
        return names

    def _queue_of(
        self,
        weights: Weights,
        steps: list[Step],
        memory: WorkingMemory | None,
        collect: Callable[[str], None] | None = None,
    ) -> StepQueue:
        return StepQueue(
            self.device, weights, steps, self.shapes, memory, collect, self.exchange, self.batch_invariant, self._whole
        )

    @staticmethod
    def _check_positions(file: GGUFFile, steps: list[Step], n_ctx: int) -> None:
        for step in steps:
            n_rows = step.weight.shape[0] if isinstance(step, Embed) and step.index == "position" else n_ctx
            if n_rows < n_ctx:
                raise GGPYError(
                    f"{file.path}: the model knows {n_rows} positions, fewer than the context of {n_ctx} tokens; take a"
                    f" smaller one (-c {n_rows})."
                )

    def _check_grids(self, file: GGUFFile) -> None:
        """Raise GGPYError where a step has more rows than launches can count: of a token for each of its experts, and
        16 query heads of one key/value head at a time (`WideShape.rows`)."""
        groups = (-(-a.n_head // (16 * a.n_head_kv)) for a in self.program.attentions)
        most = MOST_BLOCKS // max((1, *groups, *(buffer.n_used for buffer in self.program.buffers)))
        if self.n_batch > most:
            raise GGPYError(
                f"{file.path}: a GPU takes at most {most} tokens of this model in a step, fewer than {self.n_batch};"
                f" take a smaller context (-c {most}), or the CPU (--device cpu)."
            )

    def _activation_bytes(self, product: Product, rows: int) -> int:
        dtype, n_cols = product.quantize.dtype, product.activations.srcs[0].n_cols
        each = product.rows_read
        most = GRAPH_SIZES[-1] if self.batch_invariant else MATVEC_TOKENS
        vectors = ActivationLayout(dtype, each * most, n_cols).n_bytes
        return max(vectors, matmul_launch.activation_bytes(layout_of(product.infos), each * rows))

    def _angles(self, rope: Rope, n_ctx: int) -> int:
        """Address of the table of cosines and sines, float32 [position][n_rot / 2][2]."""
        address = self.device.allocate(n_ctx * rope.n_rot * 4)
        for start in range(0, n_ctx, ANGLES_AT_ONCE):
            table = rope.table(start, min(n_ctx, start + ANGLES_AT_ONCE), n_ctx)
            self.device.upload(address + start * rope.n_rot * 4, table.ctypes.data, table.nbytes)
            self.device.synchronize()
        return address

    def _vector(self, values: np.ndarray) -> int:
        """Address of a copy of these numbers, float32."""
        address = self.device.allocate(values.nbytes)
        self.device.upload(address, values.ctypes.data, values.nbytes)
        self.device.synchronize()
        return address

    # ---- a step

    def run(self, n: int, m: int, generated: bool = False) -> np.ndarray:
        """Evaluate the batch described in `tokens`, `slots`, `positions` [:n] and `outputs` [:m]: see `Executor.run`.

        Returns the logits, float32 [m, n_vocab]: a view of working memory, valid until the next step.
        """
        for _ in self.start(n, m, generated):
            pass
        return self.finish(m)

    def start(self, n: int, m: int, generated: bool = False) -> Iterator[None]:
        """Queue a step as `run` describes it, piece by piece: where ranks share a model, none may be pieces ahead of
        the others."""
        self.device.use()
        slots = self.slots[:n]
        apart = n == 1 or (n <= GRAPH_SIZES[-1] and len(set(slots.tolist())) == n)
        few = m <= n and (apart or n <= MATVEC_TOKENS)
        if self._whole:
            few = False
        elif self.batch_invariant:  # what the tokens are decides, not how many there are
            assert not generated or (few and apart)
            few = generated
        self._recorded = None
        if few:
            self._recorded = self._next_inputs()
            self._fill(self._recorded, n, m)
            head = m > 0 and self.program.logits is not None
            self._replay(self._recorded, n, "logits" if head else "", self._apart(n) if apart else "together")
        else:
            yield from self._prompt(n, m)

    def finish(self, m: int) -> np.ndarray:
        """The logits of the step that was started last, for its m outputs: see `run`."""
        self.device.use()
        if m == 0 or self.program.logits is None:
            return self._logits[:0]
        if self._recorded:
            self._recorded.done.wait()
            return self._logits[:m]
        return self._prompt_logits(m)

    @property
    def cut(self) -> tuple[bool, bool]:
        """Flags that a key, or a value, was cut: see `ggpy.runtime.pipeline.Executor.cut`."""
        keys, values = self._cut.tolist()
        return keys != 0, values != 0

    def _apart(self, n: int) -> str:
        """The way in which `StepQueue` queues a step of n tokens in slots of their own."""
        return "deep" if n == 1 and self.positions[0] >= DEEP and not self.batch_invariant else "apart"

    def _fill(self, inputs: Inputs, n: int, m: int) -> None:
        inputs.done.wait()  # a step may have returned before it was over
        inputs.header[0], inputs.header[2] = n, self._epoch
        self._epoch = (self._epoch + self._n_sums + (1 << 31)) % (1 << 32) - (1 << 31)  # as int32, round and round
        inputs.tokens[:n], inputs.slots[:n] = self.tokens[:n], self.slots[:n]
        inputs.positions[:n], inputs.types[:n] = self.positions[:n], self.types[:n]
        inputs.outputs[:m] = self.outputs[:m]
        inputs.outputs[m : GRAPH_SIZES[-1]] = 0
        self._memory.inputs, self._memory.header = inputs.device_address, inputs.address

    def sample(self, n: int, specs: SampleSpecs) -> TokensInFlight:
        """Queue a step of n tokens in slots of their own, as `tokens`, `slots` and `positions` [:n] describe them, and
        the choice of the token after each; waits for nothing but the step before the last."""
        self.device.use()
        inputs = self._next_inputs()
        self._fill(inputs, n, 0)
        inputs.outputs[:n] = np.arange(n)
        inputs.header[1] = self._chooser.place(self._turn)
        inputs.specs[:n] = specs
        self._replay(inputs, n, "tokens", self._apart(n))
        return self._chooser.answers(self._turn, n, inputs.done)

    def _next_inputs(self) -> Inputs:
        self._turn = (self._turn + 1) % IN_FLIGHT
        return self._few[self._turn]

    def _replay(self, inputs: Inputs, n: int, wanted: str, way: str) -> None:
        """Run a step of few tokens by its graph, of which there is one for each number of tokens."""
        key = (next(size for size in GRAPH_SIZES if size >= n), wanted, way)
        if key not in self._graphs:
            self._graphs[key] = self.device.capture(lambda: self._record(*key))
        if self._memory.states.carries:
            self._describe_runs(inputs, n, key[0], way)
        inputs.upload()
        self._graphs[key].launch()
        inputs.done.set()

    def _describe_runs(self, inputs: Inputs, n: int, size: int, way: str) -> None:
        """Describe the runs of tokens in one slot to a graph of `size` tokens."""
        runs = inputs.segments
        if way == "together":
            segments = self._segments(n)
            n = len(segments)
            runs[:n] = segments
        else:
            runs[:n, 0], runs[:n, 1], runs[:n, 2], runs[:n, 3] = self.slots[:n], np.arange(n), 1, self.positions[:n]
        runs[n:size, 2] = 0

    def _segments(self, n: int) -> np.ndarray:
        """The runs of a step's tokens in one slot. Where state is carried on, each slot has one alone, as blocks that
        carry it on know nothing of each other."""
        segments = token_segments(self.slots[:n], self.positions[:n])
        if self._memory.states.carries and len(np.unique(segments[:, 0])) < len(segments):
            raise ValueError("a slot's tokens in several runs, of a model whose layers carry state on")
        return segments

    def _record(self, size: int, wanted: str, way: str) -> None:
        """Queue a step to be recorded. wanted: "logits", "tokens" chosen from them, or "" for neither."""
        self._queue.queue(size, way)
        if not wanted:
            return
        logits = self._queue.queue_logits(size, way)
        if wanted == "logits":
            self._fetch_logits(size, logits)
        else:
            self._chooser.queue(size, logits, self._memory.inputs, self._memory.header)

    def _fetch_logits(self, n: int, place: tuple[int, int]) -> None:
        address, stride = place
        assert stride == self._row_bytes
        self.device.download(self._host_logits, address, n * stride)

    def _prompt(self, n: int, m: int) -> Iterator[None]:
        """Queue a step of many tokens, piece by piece."""
        inputs, memory = self._many, self._memory
        self._fill(inputs, n, m)
        segments = self._segments(n)
        self._queue.pooled = not self.unpooled
        if self.program.two_way:
            segments[:, 0] = side_by_side(segments)
            inputs.cells[:n] = self.positions[:n] + segments[:, 0].repeat(segments[:, 2])
        inputs.segments[: len(segments)] = segments
        memory.n_segments, memory.max_tokens = len(segments), int(segments[:, 2].max())
        inputs.upload()
        inputs.done.set()
        for _ in self._queue.pieces(n, "prompt"):
            yield
            self.device.use()

    def _prompt_logits(self, m: int) -> np.ndarray:
        if m > OUTPUT_ROWS and len(self._all_logits) < m:
            self._all_logits = np.empty((m, self._logits.shape[1]), np.float32)
        for first in range(0, m, OUTPUT_ROWS):
            k = min(OUTPUT_ROWS, m - first)
            self._fetch_logits(k, self._queue.queue_logits(k, "prompt", first))
            self.device.synchronize()
            if m > OUTPUT_ROWS:
                self._all_logits[first : first + k] = self._logits[:k]
        return self._logits[:m] if m <= OUTPUT_ROWS else self._all_logits[:m]

    # ---- a part of a program

    @cached_property
    def _crossing(self) -> tuple[int, np.ndarray, Event]:
        """Page-locked host memory for hidden states received or sent: its address, float32 [rows, columns], and the end
        of the last copy to the GPU."""
        region = self.program.hidden_in or self.program.hidden_out
        assert region is not None
        _, stride = self._memory.home(region.buffer)
        address, buffer = self.device.page_locked(self._many.capacity * stride)
        values = np.frombuffer(buffer, np.float32).reshape(-1, stride // 4)
        return address, values[:, : region.n_cols], self.device.event()

    def receive_hidden(self, before: StageExecutor, n: int) -> None:
        """Have the next step, of n tokens, begin with the hidden states that the part before this one left."""
        assert self.program.hidden_in is not None
        address, stride = self._memory.home(self.program.hidden_in.buffer)
        self.device.use()
        if isinstance(before, CudaExecutor):
            assert before.program.hidden_out is not None
            of, _ = before._memory.home(before.program.hidden_out.buffer)
            self.device.receive(address, before.device, of, n * stride)
            return
        host, values, uploaded = self._crossing
        uploaded.wait()
        values[:n] = before.send_hidden(n)
        self.device.upload(address, host, n * stride)
        uploaded.set()

    def send_hidden(self, n: int) -> np.ndarray:
        """Hidden states of the last step, of n tokens, for the part after this one: float32 [n, n_cols] on the host."""
        assert self.program.hidden_out is not None
        address, stride = self._memory.home(self.program.hidden_out.buffer)
        self.device.use()
        host, values, _ = self._crossing
        self.device.download(host, address, n * stride)
        self.device.synchronize()
        return values[:n]

    # ---- slots

    def copy_state(self, source: int, target: int, n: int) -> None:
        """Make a slot's state that of another slot, keys and values of its whole context whatever n."""
        self.device.use()
        self._memory.states.copy(source, target)

    def save(self, slot: int, n: int) -> list[np.ndarray]:
        """A copy of a slot's state, keys and values of its whole context whatever n."""
        self.device.use()
        return self._memory.states.save(slot, n)

    def load(self, slot: int, kept: Iterator[np.ndarray], n: int, n_kept: int) -> None:
        """Put back what `save` gave."""
        self.device.use()
        self._memory.states.load(slot, kept, n_kept)

    def checkpoint(self, slot: int, n: int) -> list[np.ndarray]:
        """A copy of what a slot of n tokens cannot be cut back from (`SlotStates.checkpoint`)."""
        self.device.use()
        return self._memory.states.checkpoint(slot, n)

    def restore(self, slot: int, kept: Iterator[np.ndarray], n: int) -> None:
        """Put back what `checkpoint` gave of n tokens."""
        self.device.use()
        self._memory.states.restore(slot, kept, n)

    def close(self) -> None:
        self.device.close()
