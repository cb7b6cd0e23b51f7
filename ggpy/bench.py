"""Tokens per second of a runtime: prompts and generation apart, without tokenizer or sampler."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggpy.engine import RuntimeLike
from ggpy.errors import GGPYError


@dataclass(frozen=True)
class Measurement:
    """tok_s is the median of `samples` (tokens per second, one a repeat)."""

    n_prompt: int
    n_gen: int
    n_threads: int
    samples: list[float]

    @property
    def test(self) -> str:
        return f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"

    @property
    def tok_s(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the range of the samples."""
        return (max(self.samples) - min(self.samples)) / 2

    def as_json(self) -> dict[str, Any]:
        return {
            "test": self.test,
            "n_prompt": self.n_prompt,
            "n_gen": self.n_gen,
            "n_threads": self.n_threads,
            "tok_s": round(self.tok_s, 2),
            "samples": [round(sample, 2) for sample in self.samples],
        }


def measure(runtime: RuntimeLike, n_threads: int, n_prompt: int, n_gen: int, repeats: int) -> list[Measurement]:
    """One measurement each for n_prompt and n_gen, where they are not 0; `repeats` samples after a warm-up."""
    for name, count in (("-p", n_prompt), ("-n", n_gen)):
        if count > runtime.n_ctx:
            raise GGPYError(
                f"{name} is {count} tokens, but the context holds {runtime.n_ctx}; ask for a larger one (-c)."
            )
    results = []
    if n_prompt:
        samples = [n_prompt / _prefill(runtime, n_prompt) for _ in range(repeats + 1)][1:]
        results.append(Measurement(n_prompt, 0, n_threads, samples))
    if n_gen:
        _decode(runtime, min(n_gen, 16))
        results.append(Measurement(0, n_gen, n_threads, [n_gen / _decode(runtime, n_gen) for _ in range(repeats)]))
    return results


def _prefill(runtime: RuntimeLike, n: int) -> float:
    """Seconds for a prompt of n arbitrary tokens."""
    tokens = np.random.default_rng(0).integers(0, runtime.n_vocab, n).astype(np.int32)
    slots, positions = np.zeros(n, np.int32), np.arange(n, dtype=np.int32)
    started = time.perf_counter()
    for start in range(0, n, runtime.n_batch):
        piece = slice(start, min(start + runtime.n_batch, n))
        # Only the prompt's last token needs logits.
        outputs = np.array([piece.stop - 1 - start] if piece.stop == n else [], np.int32)
        runtime.step(tokens[piece], slots[piece], positions[piece], outputs)
    return time.perf_counter() - started


def _decode(runtime: RuntimeLike, n: int) -> float:
    """Seconds for n tokens, one after the other, from an empty context."""
    tokens = np.random.default_rng(0).integers(0, runtime.n_vocab, n).astype(np.int32)
    slots, outputs = np.zeros(1, np.int32), np.zeros(1, np.int32)
    positions = np.arange(n, dtype=np.int32)
    started = time.perf_counter()
    for i in range(n):
        runtime.step(tokens[i : i + 1], slots, positions[i : i + 1], outputs)
    return time.perf_counter() - started
