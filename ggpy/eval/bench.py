"""Tokens per second of a runtime, without tokenizer or sampler: prompts and generation apart, at any depth of context,
for one sequence or several; and what the memory would allow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggpy.engine.engine import RuntimeLike
from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile

WARM_UP = 16  # tokens generated before the first sample
LINE = 1024  # bytes: what the reading kernel takes at a time
AT_ONCE = 256 << 20  # bytes: what is read before threads meet, which takes them some 0.1 ms


@dataclass(frozen=True)
class Case:
    """A prompt of n_prompt tokens in one sequence, or n_gen tokens in each of n_parallel sequences that are decoded
    together; n_depth tokens are in every sequence before."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0
    n_parallel: int = 1

    def __post_init__(self) -> None:
        assert bool(self.n_prompt) != bool(self.n_gen)
        assert self.n_parallel == 1 or self.n_gen

    @property
    def name(self) -> str:
        """The name as in llama-bench: pp512, tg64 @ d4096; with x8 for eight sequences."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        name += f" x{self.n_parallel}" if self.n_parallel > 1 else ""
        return name + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_tokens(self) -> int:
        return self.n_prompt or self.n_gen * self.n_parallel

    @property
    def n_cells(self) -> int:
        """Tokens that the context of one sequence must hold."""
        return self.n_depth + max(self.n_prompt, self.n_gen)


@dataclass(frozen=True)
class Measurement:
    """`samples`: tokens per second of all sequences together, one a repeat. `bytes_per_step`: bytes of weights and
    cache that a decoding step reads; `bandwidth`: bytes per second at which the machine reads as many, again and again.
    None where not known."""

    case: Case
    n_threads: int
    samples: list[float]
    bytes_per_step: float | None = None
    bandwidth: float | None = None

    @property
    def tok_s(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the range of the samples."""
        return (max(self.samples) - min(self.samples)) / 2

    @property
    def bandwidth_share(self) -> float | None:
        """The share of the bandwidth that decoding uses: 1 is as fast as memory allows, or the CPU cache where that
        holds all that decoding reads."""
        if self.case.n_prompt or not self.bytes_per_step or not self.bandwidth:
            return None
        return self.bytes_per_step * self.tok_s / self.case.n_parallel / self.bandwidth

    def as_json(self) -> dict[str, Any]:
        share = self.bandwidth_share
        return {
            "test": self.case.name,
            "n_prompt": self.case.n_prompt,
            "n_gen": self.case.n_gen,
            "n_depth": self.case.n_depth,
            "n_parallel": self.case.n_parallel,
            "n_threads": self.n_threads,
            "tok_s": round(self.tok_s, 2),
            "samples": [round(sample, 2) for sample in self.samples],
            "gb_per_step": None if self.bytes_per_step is None else round(self.bytes_per_step / 1e9, 4),
            "bandwidth_gb_s": None if self.bandwidth is None else round(self.bandwidth / 1e9, 2),
            "bandwidth_share": None if share is None else round(share, 4),
        }


def plan_cases(
    n_prompt: Sequence[int], n_gen: Sequence[int], n_depth: Sequence[int], n_parallel: Sequence[int]
) -> list[Case]:
    """The cases of all combinations, shallow ones first; counts of 0 in n_prompt and n_gen are left out."""
    cases = []
    for depth in sorted(set(n_depth)):
        cases += [Case(n, 0, depth) for n in dict.fromkeys(n_prompt) if n]
        cases += [Case(0, n, depth, p) for n in dict.fromkeys(n_gen) if n for p in sorted(set(n_parallel))]
    return cases


def measure(
    runtime: RuntimeLike,
    n_threads: int,
    cases: Sequence[Case],
    repeats: int,
    *,
    bytes_per_step: Callable[[Case], float] | None = None,
    bandwidth: Callable[[float], float] | None = None,
) -> Iterator[Measurement]:
    """Each case's measurement as it is made: `repeats` samples after a warm-up. `bandwidth(bytes_per_step(case))` is
    measured before and after each generation, and the higher one counts: a machine's bandwidth drifts.

    Raises GGPYError where a case does not fit the runtime.
    """
    for case in cases:
        if case.n_cells > runtime.n_ctx:
            raise GGPYError(
                f"{case.name} takes {case.n_cells} tokens, but the context holds {runtime.n_ctx}; "
                "ask for a larger one (-c)."
            )
        if case.n_parallel > min(runtime.n_slots, runtime.n_batch):
            raise GGPYError(f"{case.name} takes more sequences than the {min(runtime.n_slots, runtime.n_batch)} there.")
    bench = _Bench(runtime)
    for case in cases:
        for slot in range(case.n_parallel):
            bench.fill(slot, case.n_depth)
        read, limit = None, None
        if case.n_prompt:
            seconds = [bench.prefill(0, case.n_depth, case.n_prompt) for _ in range(repeats + 1)][1:]
        else:
            if bytes_per_step and bandwidth:
                read = bytes_per_step(case)
                limit = bandwidth(read)
            bench.decode(case.n_parallel, case.n_depth, min(case.n_gen, WARM_UP))
            seconds = [bench.decode(case.n_parallel, case.n_depth, case.n_gen) for _ in range(repeats)]
            if read and limit and bandwidth:
                limit = max(limit, bandwidth(read))
        yield Measurement(case, n_threads, [case.n_tokens / s for s in seconds], read, limit)


class _Bench:
    """A timer of arbitrary tokens through a runtime."""

    def __init__(self, runtime: RuntimeLike) -> None:
        self.runtime = runtime
        self.tokens = np.random.default_rng(0).integers(0, runtime.n_vocab, runtime.n_ctx).astype(np.int32)
        self.filled = [0] * runtime.n_slots  # cells of each slot that hold something

    def fill(self, slot: int, n: int) -> None:
        """Fill the first n cells of a slot. Deeper cases come later, so cells that are filled already can stay."""
        if n > self.filled[slot]:
            self.prefill(slot, self.filled[slot], n - self.filled[slot])

    def prefill(self, slot: int, depth: int, n: int) -> float:
        """Seconds for n tokens after `depth` others in one slot."""
        positions = np.arange(depth, depth + n, dtype=np.int32)
        tokens, slots = self.tokens[depth : depth + n], np.full(n, slot, np.int32)
        started = time.perf_counter()
        for start in range(0, n, self.runtime.n_batch):
            piece = slice(start, min(start + self.runtime.n_batch, n))
            # Only the prompt's last token needs logits.
            outputs = np.array([piece.stop - 1 - start] if piece.stop == n else [], np.int32)
            self.runtime.step(tokens[piece], slots[piece], positions[piece], outputs)
        self.filled[slot] = max(self.filled[slot], depth + n)
        return time.perf_counter() - started

    def decode(self, n_parallel: int, depth: int, n: int) -> float:
        """Seconds for n tokens, one after the other, in each of the first n_parallel slots after `depth` others."""
        slots = outputs = np.arange(n_parallel, dtype=np.int32)
        tokens = self.tokens[:n_parallel] if n_parallel <= len(self.tokens) else np.resize(self.tokens, n_parallel)
        positions = np.full(n_parallel, depth, np.int32)
        started = time.perf_counter()
        for _ in range(n):
            self.runtime.step(tokens, slots, positions, outputs, len(tokens))
            positions = positions + np.int32(1)
        for slot in range(n_parallel):
            self.filled[slot] = max(self.filled[slot], depth + n)
        return time.perf_counter() - started


# ---- what memory allows


def bytes_read(file: GGUFFile, cache: str) -> Callable[[Case], float]:
    """Bytes that a decoding step of a case reads, on average: every matrix once, as packed, and each sequence's
    keys and values up to its position, in a cache of that type (`Runtime.cache_type`)."""
    from ggpy.cpu.isa.layout import cache_types, cell_bytes
    from ggpy.quant.formats import packed_format
    from ggpy.runtime.planned import planned

    program = planned(file)
    weights = sum(packed_format(m).matrix_bytes(*m.shape) for m in program.matrices())
    types = cache_types(cache)

    def of(case: Case) -> float:
        cells = case.n_depth + (case.n_gen + 1) / 2
        read = sum(
            layer.n_head_kv * cell_bytes(name, layer.head_dim) * min(cells, layer.window or cells)
            for layer in program.attentions
            for name in types
        )
        return weights + case.n_parallel * read

    return of


class Memory:
    """A buffer that n_threads read together, each the same part of it every time, to see how fast that goes: a model
    that the last-level cache holds is decoded faster than memory is read."""

    def __init__(self, n_threads: int) -> None:
        from ggpy.cpu.kernels import kernel

        self._read = kernel("read").call
        self._buffer = np.empty(0, np.uint8)
        self._sums = np.zeros((n_threads, 64), np.uint8)
        self._pool = ThreadPoolExecutor(n_threads)

    def bandwidth(self, n_bytes: float, seconds: float = 0.3) -> float:
        """Bytes per second of reading `n_bytes` again and again (fewer are enough beyond the size of any cache): the
        best of the passes made in about `seconds`."""
        from ggpy.cpu.memory import allocate

        n_threads = len(self._sums)
        n_bytes = min(n_bytes, max(4 * last_level_cache(), 128 << 20))
        share = max(1, int(n_bytes / n_threads / LINE)) * LINE
        if len(self._buffer) < share * n_threads:
            self._buffer = allocate(share * n_threads)
            self._buffer.fill(1)  # untouched pages would all be the same one
        rounds = -(-AT_ONCE // (share * n_threads))

        def read(thread: int) -> None:
            for _ in range(rounds):
                self._read(self._buffer.ctypes.data + thread * share, share, self._sums[thread].ctypes.data)

        best, until = 0.0, time.perf_counter() + seconds
        while not best or time.perf_counter() < until:
            started = time.perf_counter()
            list(self._pool.map(read, range(n_threads)))
            best = max(best, rounds * share * n_threads / (time.perf_counter() - started))
        return best


def last_level_cache() -> int:
    """Bytes of the largest cache of the first CPU; 32 MiB where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0))
        except (OSError, ValueError):
            continue
    return max(sizes, default=32 << 20)
