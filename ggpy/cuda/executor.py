"""The CUDA executor: runs a program on one GPU behind the interface of the CPU's.

Small steps (decoding) are products of matrices with few vectors; each number of tokens is recorded once as a CUDA graph,
inputs, logits and all, and replayed by one call. Large steps (prompts) use tile products, launched one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cuda.compile import compile_missing
from ggpy.cuda.driver import Device, Graph
from ggpy.cuda.layout import ActivationLayout, AttentionShape, CacheLayout, round_up
from ggpy.cuda.lower import Attention, Product, RopeStore, lower, weight_groups
from ggpy.cuda.queue import Memory, StepQueue
from ggpy.cuda.weights import Weights

if TYPE_CHECKING:
    from ggpy.gguf_file import GGUFFile
    from ggpy.program import Program

SMALL_SIZES = (1, 2, 4, 8)  # tokens of a small step, each a graph
SMALL = SMALL_SIZES[-1]
OUTPUT_ROWS = 64  # of logits made at a time
ANGLES_AT_ONCE = 1 << 14  # positions


class Inputs:
    """What describes a batch: a block of page-locked host memory and its copy on the GPU."""

    HEADER = 16  # words: the number of tokens first

    def __init__(self, device: Device, capacity: int) -> None:
        self.capacity = capacity
        self._bytes = 4 * (self.HEADER + 8 * capacity)
        self._host, buffer = device.page_locked(self._bytes)
        words = np.frombuffer(buffer, np.int32)
        words[:] = 0
        self.address = device.allocate(self._bytes)
        self.header = words[: self.HEADER]
        at = self.HEADER
        self.tokens, self.slots, self.positions, self.outputs = (
            words[at + i * capacity : at + (i + 1) * capacity] for i in range(4)
        )
        self.segments = words[at + 4 * capacity :].reshape(capacity, 4)
        self._device = device

    def device_address(self, name: str) -> int:
        place = ("tokens", "slots", "positions", "outputs", "segments").index(name)
        return self.address + 4 * (self.HEADER + place * self.capacity)

    def upload(self) -> None:
        self._device.upload(self.address, self._host, self._bytes)


class CudaExecutor:
    """Runs one program. `run` takes the batch's description and returns logits."""

    angles = None  # turned by a table on the GPU

    def __init__(
        self,
        program: Program,
        file: GGUFFile,
        *,
        n_ctx: int,
        n_slots: int,
        n_batch: int,
        notify: Callable[[str], None],
        device: Device | None = None,
    ) -> None:
        self.program = program
        self.device = device or Device()
        self.device.use()
        try:
            self._prepare(file, n_ctx, n_slots, n_batch, notify)
        except BaseException:
            self.close()
            raise

    def _prepare(
        self, file: GGUFFile, n_ctx: int, n_slots: int, n_batch: int, notify: Callable[[str], None]
    ) -> None:
        device, program = self.device, self.program
        heads = next(op.params for op in program.ops if op.kind == "attention")
        self.cache = CacheLayout(n_slots, heads["n_head_kv"], n_ctx, heads["head_dim"])
        self.shape = AttentionShape(self.cache, heads["n_head"])
        self.n_batch, self.rows = n_batch, max(n_batch, SMALL)
        steps = lower(program)
        groups = weight_groups(steps)
        weights = Weights(device, file)
        names = Weights.kernel_names(groups)
        for n in SMALL_SIZES:
            StepQueue(device, weights, steps, self.cache, self.shape, None, names.append).small(n, head=True)
        compile_missing(names, device.cc, notify)
        weights.load(groups, notify)
        memory = Memory(device, self.rows)
        for buffer in program.buffers:
            memory.buffer(buffer, min(self.rows, OUTPUT_ROWS) if buffer.outputs_only else self.rows)
        products = [step for step in steps if isinstance(step, Product)]
        for product in products:
            memory.wide(product)
        memory.activations = device.allocate(
            max(
                ActivationLayout(p.prepare.params["form"], SMALL, p.prepare.srcs[0].n_cols).n_bytes for p in products
            )
        )
        n_sm = device.n_multiprocessors
        memory.parts = device.allocate(max(self.shape.parts_bytes(n, n_sm) for n in SMALL_SIZES))
        layers = sorted({step.op.params["layer"] for step in steps if isinstance(step, Attention)})
        memory.keys = {i: device.allocate(self.cache.n_bytes, zero=True) for i in layers}
        memory.values = {i: device.allocate(self.cache.n_bytes, zero=True) for i in layers}
        rope = next(step.op.params["rope"] for step in steps if isinstance(step, RopeStore))
        memory.angles = self._angles(np.array(rope.inv_freq), rope.magnitude, n_ctx)
        self._inputs = Inputs(device, SMALL)
        memory.inputs = self._inputs.device_address
        memory.header = self._inputs.address
        n_vocab = program.logits.n_cols
        stride = round_up(n_vocab, 32)
        self._host_logits, buffer = device.page_locked(4 * stride * SMALL)
        self._logits = np.frombuffer(buffer, np.float32).reshape(SMALL, stride)[:, :n_vocab]
        self._queue = StepQueue(device, weights, steps, self.cache, self.shape, memory, None)
        self._queue.load_vectors()
        self._graphs: dict[tuple[int, bool], Graph] = {}
        self.tokens, self.slots, self.positions, self.outputs = (np.zeros(n_batch, np.int32) for _ in range(4))
        self._many = np.empty((0, n_vocab), np.float32)
        device.synchronize()

    def _angles(self, inv_freq: np.ndarray, magnitude: float, n_ctx: int) -> int:
        """The table of cosines and sines, float32 [position][half][2]."""
        half = len(inv_freq)
        address = self.device.allocate(n_ctx * half * 8)
        for start in range(0, n_ctx, ANGLES_AT_ONCE):
            angle = np.arange(start, min(n_ctx, start + ANGLES_AT_ONCE))[:, None] * inv_freq
            table = (np.stack([np.cos(angle), np.sin(angle)], 2) * magnitude).astype(np.float32)
            self.device.upload(address + start * half * 8, table.ctypes.data, table.nbytes)
            self.device.synchronize()
        return address

    # ---- a step

    def run(self, n: int, m: int) -> np.ndarray:
        """Evaluate the batch described in `tokens`, `slots`, `positions` [:n] and `outputs` [:m].

        Returns the logits, float32 [m, n_vocab]: a view of working memory, valid until the next step.
        """
        self.device.use()
        if n <= SMALL and m <= SMALL:
            return self._small(self.tokens[:n], self.slots[:n], self.positions[:n], self.outputs[:m])
        return self._in_pieces(n, m)

    def _small(self, tokens: np.ndarray, slots: np.ndarray, positions: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        n, m, inputs = len(tokens), len(outputs), self._inputs
        inputs.header[0] = n
        inputs.tokens[:n], inputs.slots[:n], inputs.positions[:n] = tokens, slots, positions
        inputs.outputs[:m] = outputs
        inputs.outputs[m:] = 0
        size = next(size for size in SMALL_SIZES if size >= max(n, m))
        key = (size, m > 0)
        if key not in self._graphs:
            self._graphs[key] = self.device.capture(lambda: self._record(*key))
        self._graphs[key].launch()
        self.device.synchronize()
        return self._logits[:m]

    def _record(self, size: int, head: bool) -> None:
        self._inputs.upload()
        logits = self._queue.small(size, head)
        if head:
            assert logits is not None
            address, stride = logits
            to = self._logits.strides[0]
            if stride == to:
                self.device.download(self._host_logits, address, size * stride)
            else:
                for i in range(size):
                    self.device.download(self._host_logits + i * to, address + i * stride, 4 * self._logits.shape[1])

    def _in_pieces(self, n: int, m: int) -> np.ndarray:
        if len(self._many) < m:
            self._many = np.empty((m, self._logits.shape[1]), np.float32)
        for start in range(0, n, SMALL):
            piece = slice(start, min(n, start + SMALL))
            wanted = np.flatnonzero((self.outputs[:m] >= start) & (self.outputs[:m] < piece.stop))
            for first in range(0, max(1, len(wanted)), SMALL):
                rows = wanted[first : first + SMALL]
                outputs = self.outputs[rows] - start
                self._many[rows] = self._small(self.tokens[piece], self.slots[piece], self.positions[piece], outputs)
        return self._many[:m]

    def close(self) -> None:
        self.device.close()
