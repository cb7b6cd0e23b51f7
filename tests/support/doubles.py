"""Stand-ins for a model: a runtime whose logits follow from the tokens it was given, and a tokenizer of plain bytes.

The runtime keeps its cache as the real one does, one cell per position, so that an engine that mixes up slots or
positions, or that reuses a prefix wrongly, gets other logits.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ggpy.engine.drafts import StepTimes
from ggpy.engine.engine import Engine
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.graph.state import Reach
from ggpy.runtime.host_memory import HostMemory
from ggpy.sampling import stages
from ggpy.text.chat_messages import plain_messages

EOS, BOS, N_VOCAB = 256, 257, 260


def pick(logits: NDArray[np.float32], choice: Any) -> int:
    """The token that a SAMPLE_SPEC asks for, by the sampler's own stages."""
    logits = logits.copy()
    logits[choice["banned"][: choice["n_banned"]]] -= np.inf
    best = logits.max()
    if not np.isfinite(best):
        return -1 if np.isnan(best) else -2 if best > 0 else -3
    c = stages.top_k(stages.Candidates(logits, None, False), int(choice["candidates"]))
    c = stages.top_p(c, float(choice["top_p"]))
    c = stages.min_p(c, float(np.exp(choice["least"])))
    return stages.draw(stages.temperature(c, float(choice["temperature"])), float(choice["uniform"]))


class FakeChosen:
    def __init__(self, found: list[int]) -> None:
        self.found, self.gone = found, False

    def tokens(self) -> list[int]:
        assert not self.gone, "its memory belongs to another step now"
        return self.found


class FakeRuntime:
    """Logits are a function of the whole prefix: `script(prefix)` names the next token, else a hash of the prefix.

    kv_cells: cells that slots share, as in `ggpy.runtime.runtime.Runtime`."""

    def __init__(
        self,
        n_ctx: int = 256,
        n_slots: int = 2,
        n_batch: int = 16,
        script: Any = None,
        max_sampled: int = 0,
        by_kind: bool = False,
        kv_cells: int | None = None,
    ) -> None:
        self.device, self.reach, self.copied, self.loaded = "cpu", Reach(), 0, 0
        self.devices, self.draft_ctx = "1 layers on the CPU", None
        self.n_ctx, self.n_slots, self.n_batch, self.n_vocab, self.n_threads = n_ctx, n_slots, n_batch, N_VOCAB, 1
        self.kv_cells, self.moved = kv_cells, 0
        self.ranges = [(0, 0) if kv_cells else (i * n_ctx, n_ctx) for i in range(n_slots)]  # first cell, and how many
        self.cells = np.full(kv_cells or n_slots * n_ctx, -1, np.int32)
        self.by_kind = by_kind
        self.generated = np.zeros(len(self.cells), bool)  # whether a cell's token was evaluated as a generated one
        self.script = script
        self.batches: list[int] = []  # tokens in each step
        self.max_sampled, self.max_top_k = max_sampled, 128
        self.chosen: list[Any] = [None] * n_slots  # the last token chosen for each slot
        self.under_way: list[FakeChosen] = []
        self.closed = False
        self.cache_type, self.host_memory = "f16", HostMemory(1 << 30, 1 << 30)
        self.hparams = SimpleNamespace(
            arch="fake", n_layer=1, n_embd=8, n_ctx_train=n_ctx, writes_text=True, pooling=None
        )

    def step(self, tokens: Any, slots: Any, positions: Any, outputs: Any, n_generated: int = 0) -> NDArray[np.float32]:
        assert 0 < len(tokens) <= self.n_batch
        assert len(tokens) == len(slots) == len(positions)
        self.batches.append(len(tokens))
        assert all(position < self.ranges[slot][1] for slot, position in zip(slots, positions, strict=True))
        cells = [self.ranges[slot][0] + position for slot, position in zip(slots, positions, strict=True)]
        assert len(set(cells)) == len(cells), "a cell is written twice"
        self.cells[cells] = tokens
        assert len(set(list(slots)[:n_generated])) == n_generated
        self.generated[cells] = self.by_kind & (np.arange(len(tokens)) < n_generated)
        rows = [self._logits(slots[i], positions[i] + 1) for i in outputs]
        return np.array(rows, np.float32).reshape(len(outputs), N_VOCAB)

    def sample(self, tokens: list[int], slots: list[int], positions: list[int], specs: NDArray[Any]) -> FakeChosen:
        """Sample as a GPU does, which goes on by itself and remembers the tokens of its last two steps."""
        assert 0 < len(tokens) <= self.max_sampled
        assert len(tokens) == len(specs)
        for step in self.under_way[:-1]:
            step.gone = True
        known = [self.chosen[-1 - token] if token < 0 else token for token in tokens]
        assert None not in known
        logits = self.step(known, slots, positions, list(range(len(tokens))), len(tokens))
        found = [pick(row, choice) for row, choice in zip(logits, specs, strict=True)]
        for slot, token in zip(slots, found, strict=True):
            self.chosen[slot] = max(token, 0)
        self.under_way.append(FakeChosen(found))
        return self.under_way[-1]

    def _logits(self, slot: int, n: int) -> NDArray[np.float32]:
        prefix, generated = self.of(slot, n)
        assert (prefix >= 0).all(), "attends to a cell that was never written"
        rng = np.random.default_rng(zlib.crc32((2 * prefix + generated).tobytes()))
        logits = rng.standard_normal(N_VOCAB).astype(np.float32)
        if self.script is not None:
            logits[self.script(prefix.tolist())] = 20.0
        else:
            logits[EOS] = -5.0
        return logits

    def of(self, slot: int, n: int | None = None) -> list[NDArray[Any]]:
        """A slot's first n cells, or all, and how each was evaluated: views."""
        start, capacity = self.ranges[slot]
        assert (n or 0) <= capacity
        end = start + (capacity if n is None else n)
        return [self.cells[start:end], self.generated[start:end]]

    def assign_cells(self, slot: int, start: int, n_cells: int, n: int) -> None:
        held = [part.copy() for part in self.of(slot, n)]
        self.moved += n * (start != self.ranges[slot][0])
        self.of(slot)[0][:] = -1
        self.ranges[slot] = start, n_cells
        spans = sorted(span for span in self.ranges if span[1])
        assert all(first + size <= after for (first, size), (after, _) in pairwise(spans)), "ranges overlap"
        assert all(first >= 0 and first + size <= len(self.cells) for first, size in spans)
        self.of(slot)[0][:] = -1
        self._fill(slot, held)

    def _fill(self, slot: int, held: list[NDArray[Any]]) -> None:
        for to, part in zip(self.of(slot, len(held[0])), held, strict=True):
            to[:] = part

    def copy_state(self, source: int, target: int, n: int) -> None:
        self.copied += n
        self.of(target)[0][:] = -1
        self._fill(target, self.of(source, n))

    def save(self, slot: int, n: int) -> list[NDArray[Any]]:
        return [part.copy() for part in self.of(slot, n)]

    def load(self, slot: int, kept: Iterator[NDArray[Any]], n: int, n_kept: int) -> None:
        self.loaded += n
        self.of(slot)[0][:] = -1
        held = [next(kept), next(kept)]
        assert len(held[0]) == len(held[1]) == n_kept
        self._fill(slot, [part[:n] for part in held])

    def checkpoint(self, slot: int, n: int) -> list[NDArray[Any]]:
        return []

    def restore(self, slot: int, kept: Iterator[NDArray[Any]], n: int) -> None:
        assert next(kept, None) is None

    def close(self) -> None:
        self.closed = True

    def chain_for(self, params: Any) -> None:
        return None


class PassingRuntime(FakeRuntime):
    """A runtime whose state passes: carried from token to token, or a ring of `n_cells` cells of which a token sees the
    last `window`, or both. A sequence that goes on from where its state does not stand fails. As on a GPU, a device
    that samples has what is carried of two lengths, even and odd ones."""

    def __init__(self, carried: bool, n_cells: int = 0, window: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.reach = Reach(carried, frozenset({(n_cells, window)} if n_cells else ()))
        self.n_cells, self.window = n_cells, window
        self.n_lengths = 2 if self.max_sampled else 1
        self.state = np.zeros((self.n_slots, self.n_lengths, 2), np.int64)  # a hash of the tokens, and their number
        self.ring = np.full((self.n_slots, max(1, n_cells)), -1, np.int64)  # the position in each cell
        self.checkpoints = self.restored = 0

    def copy_state(self, source: int, target: int, n: int) -> None:
        super().copy_state(source, target, n)
        self.state[target], self.ring[target] = self.state[source], self.ring[source]

    def step(self, tokens: Any, slots: Any, positions: Any, outputs: Any, n_generated: int = 0) -> NDArray[np.float32]:
        carried: dict[int, list[int]] = {}
        for token, slot, position in zip(tokens, slots, positions, strict=True):
            if self.reach.carried:
                found = [0, 0] if position == 0 else self.state[slot, position % self.n_lengths].tolist()
                state, n = carried.get(slot, found)
                assert n == position, "carried state is of another length"
                assert position == 0 or state == self._hash(self.of(slot, position)[0]), "of other tokens"
                carried[slot] = [zlib.crc32(np.int64([state, token]).tobytes()), position + 1]
            self.of(slot)[0][position] = token
            if self.n_cells:
                seen = np.arange(max(0, position - self.window + 1), position)
                assert (self.ring[slot, seen % self.n_cells] == seen).all(), "sees a cell that was written over"
                self.ring[slot, position % self.n_cells] = position
        for slot, (state, n) in carried.items():
            self.state[slot, n % self.n_lengths] = state, n
        return super().step(tokens, slots, positions, outputs, n_generated)

    def save(self, slot: int, n: int) -> list[NDArray[Any]]:
        return [*super().save(slot, n), *self.checkpoint(slot, n)]

    def load(self, slot: int, kept: Iterator[NDArray[Any]], n: int, n_kept: int) -> None:
        super().load(slot, kept, n, n_kept)
        self.state[slot, n_kept % self.n_lengths], self.ring[slot] = next(kept), next(kept)

    @staticmethod
    def _hash(tokens: Any) -> int:
        state = 0
        for token in tokens:
            state = zlib.crc32(np.int64([state, token]).tobytes())
        return state

    def checkpoint(self, slot: int, n: int) -> list[NDArray[Any]]:
        self.checkpoints += 1
        return [self.state[slot, n % self.n_lengths].copy(), self.ring[slot].copy()]

    def restore(self, slot: int, kept: Iterator[NDArray[Any]], n: int) -> None:
        self.restored += 1
        self.state[slot, n % self.n_lengths], self.ring[slot] = next(kept), next(kept)


class FixedTimes(StepTimes):
    """Times of steps that need no clock: of one token, and for each more a share of that."""

    def __init__(self, first: float, slope: float = 0.05) -> None:
        super().__init__()
        self.first, self.slope = first, slope

    @property
    def known(self) -> bool:
        return True

    def estimate(self, n_tokens: int) -> float:
        return self.first * (1 + self.slope * (n_tokens - 1))


def finish(engine: Engine, *requests: Request) -> int:
    """Run requests to their end; how many steps it took."""
    for request in requests:
        engine.add(request)
    steps = 0
    while not all(request.finished for request in requests):
        engine.step()
        steps += 1
    return steps


class ByteTokenizer:
    """Token ids 0 to 255 are bytes; 256 ends a text, 257 begins one."""

    n_vocab, bos, eos, eog = N_VOCAB, BOS, EOS, frozenset({EOS})
    add_bos, add_eos = True, False
    _special: ClassVar = {"<|end|>": EOS, "<|begin|>": BOS}

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = False, *, continues: bool = False
    ) -> list[int]:
        ids = [BOS] if add_special else []
        while text:
            name = next((name for name in self._special if parse_special and text.startswith(name)), None)
            if name:
                ids.append(self._special[name])
                text = text[len(name) :]
            else:
                ids += text[0].encode("utf-8", "replace")
                text = text[1:]
        return ids

    def tokenize_chat(self, rendered: str) -> list[int]:
        ids = self.tokenize(rendered, add_special=False, parse_special=True)
        return ids if ids[:1] == [BOS] else [BOS, *ids]

    def token_bytes(self, id: int, special: bool = True) -> bytes:
        if id < 256:
            return bytes([id])
        return next((n.encode() for n, i in self._special.items() if i == id), b"") if special else b""

    def detokenize(self, ids: Any, skip_special: bool = False) -> str:
        return b"".join(self.token_bytes(i, not skip_special) for i in ids).decode("utf-8", "replace")

    def token_id(self, text: str) -> int | None:
        return self._special.get(text)

    def is_control(self, id: int) -> bool:
        return id >= 256


class FakeTemplate:
    """`<|begin|>role:content<|end|>` for each message."""

    whole_source, values_read = "{{ messages }}", frozenset({"messages"})

    def check_values(self, values: Any) -> None:
        pass

    def render(self, messages: Any, add_generation_prompt: bool = True, **extra: Any) -> str:
        messages = plain_messages(messages)
        if any(m["role"] == "tool" for m in messages):
            raise GGPYError("The template knows no tools.")
        text = "".join(f"<|begin|>{m['role']}:{m['content']}<|end|>" for m in messages)
        return text + ("<|begin|>assistant:" if add_generation_prompt else "")


class FakeFile:
    def __init__(self, metadata: dict[str, Any] | None = None) -> None:
        self.metadata, self.tensors = metadata or {}, {}  # type: ignore[var-annotated]
        self.size = 1000
        self.path = Path("fake.gguf")
        self.paths = [self.path]

    def close(self) -> None:
        pass


def saying(text: str) -> Any:
    """A script that answers every prompt with the text, then ends; the answer starts after `assistant:` or byte 0."""
    answer = [*text.encode(), EOS]

    def script(prefix: list[int]) -> int:
        for said in range(len(answer) - 1, -1, -1):
            if prefix[len(prefix) - said :] == answer[:said] and _at_prompt_end(prefix[: len(prefix) - said]):
                return answer[said]
        return EOS

    return script


def _at_prompt_end(prefix: list[int]) -> bool:
    return bytes(i for i in prefix if i < 256).endswith((b"assistant:", b"\x00"))
