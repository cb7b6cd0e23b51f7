"""The values of a GGUF tensor as a checkpoint has them: which of its tensors they come from, and what is done to them.

A `Source` is a stored tensor or a transform of other sources, so layouts are composed:

    Stored("model.norm.weight", (n_embd,)).plus(1)                                  a norm stored less 1
    Stored("…q_proj.weight", (rows, n_embd)).rope_pairs(n_head)                     rows as interleaved rope pairs them
    Stored("…c_attn.weight", (n_embd, 3 * n_embd)).transpose().slice(0, n_embd)     one of several in one matrix
    stack([Stored(f"…experts.{i}.w1.weight", (n_ff, n_embd)) for i in range(n)])    [n, n_ff, n_embd]
    Mxfp4(Stored("…_blocks", …, raw=True), Stored("…_scales", …, raw=True))         blocks that are quantized already

| transform | values |
|---|---|
| `plus(c)`, `times(c)` | w + c, w * c |
| `neg_exp()` | -exp(w) |
| `unit_rows()` | each row divided by its length |
| `transpose()` | the last two axes swapped |
| `reshape(*shape)` | the same values in order |
| `slice(first, n, axis)`, `every(step, first, axis)`, `take(indices, axis)` | some of an axis |
| `rope_pairs(n_head)` | rows of each head: 2i is row i, 2i + 1 is row i + d/2 |
| `reorder_heads(order, axis)` | equal runs of an axis, in the given order |
| `stack(sources)` | a first axis more |
| `concat(sources)` | one behind the other along the first axis |
| `Mxfp4(blocks, scales)` | bytes of GGUF's MXFP4 blocks, the same numbers |

Rows are read by ranges, so whoever writes a file holds a few chunks of it at a time: a source of shape [..., columns]
has prod(shape[:-1]) rows, and one dimension or none is one row. Values are float32, float16, or uint16 that holds
bfloat16's bits; arithmetic is done in float32. Knows nothing of files: `read` gives rows of a tensor by its name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

#: Rows [start, stop) of the checkpoint's tensor of that name, [stop - start, columns].
Read = Callable[[str, int, int], np.ndarray]

# Weights read at once where whole matrices pass for some of their columns.
_PIECE = 1 << 21

# Rows between two that are wanted which are read with them rather than skipped.
_GAP = 4


def float32(values: np.ndarray) -> np.ndarray:
    """Stored weights as float32; uint16 arrays hold bfloat16's bits."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


class Source(ABC):
    """Values of the shape `shape`. `format` names a block format where rows are its bytes, and is empty where they are
    numbers: of such rows the last axis stays whole."""

    shape: tuple[int, ...]
    format: str = ""

    @abstractmethod
    def rows(self, read: Read, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop): [stop - start, columns], or uint8 [stop - start, bytes of a row] of blocks."""

    @abstractmethod
    def stored(self) -> Iterator[Stored]:
        """The checkpoint's tensors that the values come from."""

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def n_cols(self) -> int:
        return self.shape[-1] if self.shape else 1

    def plus(self, constant: float) -> Source:
        return _Plus(self, constant)

    def times(self, constant: float) -> Source:
        return self if constant == 1.0 else _Times(self, constant)

    def neg_exp(self) -> Source:
        return _NegExp(self)

    def unit_rows(self) -> Source:
        return _UnitRows(self)

    def transpose(self) -> Source:
        return _Transpose(self)

    def reshape(self, *shape: int) -> Source:
        return _Reshape(self, shape)

    def take(self, indices: Sequence[int], axis: int = 0) -> Source:
        """The entries of an axis at these indices, in their order."""
        if not all(0 <= index < self.shape[axis] for index in indices):
            raise ValueError(f"indices up to {max(indices)} of an axis of {self.shape[axis]}")
        return self._pick(axis, len(indices), "take", indices)

    def slice(self, first: int, n: int, axis: int = 0) -> Source:
        """`n` entries of an axis, from `first` on."""
        if not 0 <= first <= first + n <= self.shape[axis]:
            raise ValueError(f"{n} entries from {first} of an axis of {self.shape[axis]}")
        return self._pick(axis, n, "step", (first, 1))

    def every(self, step: int, first: int = 0, axis: int = 0) -> Source:
        """Every `step`-th entry of an axis, from `first` on."""
        return self._pick(axis, len(range(first, self.shape[axis], step)), "step", (first, step))

    def rope_pairs(self, n_head: int) -> Source:
        """Rows (or the entries of a bias) in the order of a file whose rope pairs neighbours, from one that pairs the
        halves of heads."""
        return self._pick(0, self.shape[0], "pairs", (_run(self.shape[0], n_head * 2),))

    def reorder_heads(self, order: Sequence[int], axis: int = 0) -> Source:
        """The axis cut into len(order) equal runs, which come in that order."""
        if sorted(order) != list(range(len(order))):
            raise ValueError("an order that names a run twice")
        return self._pick(axis, self.shape[axis], "runs", (_run(self.shape[axis], len(order)), *order))

    def _pick(self, axis: int, n: int, kind: str, numbers: Sequence[int]) -> Source:
        return _Pick(self, axis % len(self.shape), n, kind, tuple(map(int, numbers)))


def _run(n: int, count: int) -> int:
    """Entries a run where `n` are cut into `count` equal ones."""
    if n % count:
        raise ValueError(f"{n} entries in {count} equal runs")
    return n // count


@dataclass(frozen=True)
class Stored(Source):
    """A tensor of the checkpoint as it is. `raw`: of bytes (U8), which are no numbers."""

    name: str
    shape: tuple[int, ...]
    raw: bool = False

    def rows(self, read: Read, start: int, stop: int) -> np.ndarray:
        return read(self.name, start, stop)

    def stored(self) -> Iterator[Stored]:
        yield self


@dataclass
class _Derived(Source):
    """A transform of one source."""

    source: Source

    def stored(self) -> Iterator[Stored]:
        yield from self.source.stored()


@dataclass
class _Plus(_Derived):
    constant: float

    def __post_init__(self) -> None:
        self.shape = _numbers(self.source)

    def rows(self, read: Read, start: int, stop: int) -> np.ndarray:
        return float32(self.source.rows(read, start, stop)) + np.float32(self.constant)


@dataclass
class _Times(_Derived):
    constant: float

    def __post_init__(self) -> None:
        self.shape = _numbers(self.source)

    def rows(self, read: Read, start: int, stop: int) -> np.ndarray:
        return float32(self.source.rows(read, start, stop)) * np.float32(self.constant)


@dataclass
class _NegExp(_Derived):
    def __post_init__(self) -> None:
        self.shape = _numbers(self.source)

    def rows(self, read: Read, start: int, stop: int) -> np.ndarray:
        return -np.exp(float32(self.source.rows(read, start, stop)))


@dataclass
class _UnitRows(_Derived):
    def __post_init__(self) -> None:
        self.shape = _numbers(self.source)

    def rows(self, read: Read, start: int, stop: int) -> np.ndarray:
        rows = float32(self.source.rows(read, start, stop))
        length = np.sqrt(np.square(rows, dtype=np.float64).sum(-1, keepdims=True))
        return (rows / np.maximum(length, 1e-12)).astype(np.float32)


@dataclass
class _Transpose(_Derived):
    def __post_init__(self) -> None:
        *lead, n_rows, n_cols = _numbers(self.source)
        self.shape = (*lead, n_cols, n_rows)

    def rows(self, read: Read, start: int, stop: int) -> np.ndarray:
        """Each chunk reads the whole matrices that it touches, in pieces: those that are stored so are read from
        memory, where the system keeps them, and no more than a piece of them is held."""
        n_cols, n_rows = self.shape[-2:]  # of the source
        step = max(1, _PIECE // n_cols)
        parts = []
        for matrix in range(start // n_cols, -(-stop // n_cols)):
            first, last = max(start - matrix * n_cols, 0), min(stop - matrix * n_cols, n_cols)
            at = matrix * n_rows
            pieces = [
                self.source.rows(read, at + row, at + min(row + step, n_rows))[:, first:last].copy()
                for row in range(0, n_rows, step)
            ]
            parts.append(np.concatenate(pieces).T)
        return _joined(parts)


@dataclass
class _Reshape(_Derived):
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        self.format = self.source.format
        if math.prod(self.shape) != math.prod(self.source.shape) or (self.format and not self._whole_rows):
            raise ValueError(f"{list(self.source.shape)} does not reshape to {list(self.shape)}")

    @property
    def _whole_rows(self) -> bool:
        return self.n_cols == self.source.n_cols

    def rows(self, read: Read, start: int, stop: int) -> np.ndarray:
        if self._whole_rows:
            return self.source.rows(read, start, stop)
        first, last, width = start * self.n_cols, stop * self.n_cols, self.source.n_cols
        rows = self.source.rows(read, first // width, -(-last // width)).reshape(-1)
        skipped = first // width * width
        return rows[first - skipped : last - skipped].reshape(-1, self.n_cols)


@dataclass
class _Pick(_Derived):
    """`n` entries of an axis. Their places in the source are computed for the rows that are read: a layout is made
    before anyone has seen that a checkpoint is as large as its config says."""

    axis: int
    n: int
    kind: str
    numbers: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = self.source.shape
        self.format = self.source.format
        if self.format and self.axis == len(shape) - 1:
            raise ValueError("rows of blocks stay whole")
        self.shape = (*shape[: self.axis], self.n, *shape[self.axis + 1 :])

    def _places(self, i: np.ndarray) -> np.ndarray:
        """Where the entries `i` stand in the source."""
        numbers = np.array(self.numbers)
        if self.kind == "take":
            return numbers[i]
        if self.kind == "step":
            return numbers[0] + i * numbers[1]
        width = numbers[0]
        if self.kind == "runs":
            return numbers[1:][i // width] * width + i % width
        assert self.kind == "pairs"
        pair = i // 2
        return (pair // width * 2 + i % 2) * width + pair % width

    def rows(self, read: Read, start: int, stop: int) -> np.ndarray:
        if self.axis == len(self.shape) - 1:
            return self.source.rows(read, start, stop)[:, self._places(np.arange(self.n))]
        at = list(np.unravel_index(np.arange(start, stop), self.shape[:-1]))
        at[self.axis] = self._places(at[self.axis])
        wanted, places = np.unique(np.ravel_multi_index(tuple(at), self.source.shape[:-1]), return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > _GAP) + 1)
        parts = [self.source.rows(read, int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs]
        return _joined(parts)[places.reshape(-1)]


@dataclass
class _Joined(Source):
    """Rows of several sources one behind the other, under one shape."""

    sources: tuple[Source, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        formats = {source.format for source in self.sources}
        if len(formats) != 1:
            raise ValueError("a tensor of several formats")
        self.format = formats.pop()

    def rows(self, read: Read, start: int, stop: int) -> np.ndarray:
        parts, at = [], 0
        for source in self.sources:
            first, last = max(start - at, 0), min(stop - at, source.n_rows)
            if first < last:
                parts.append(source.rows(read, first, last))
            at += source.n_rows
        return _joined(parts)

    def stored(self) -> Iterator[Stored]:
        for source in self.sources:
            yield from source.stored()


def stack(sources: Sequence[Source]) -> Source:
    """Sources of one shape as the entries of a first axis more."""
    if len({source.shape for source in sources}) != 1:
        raise ValueError("a stack of different shapes")
    return _Joined(tuple(sources), (len(sources), *sources[0].shape))


def concat(sources: Sequence[Source]) -> Source:
    """Sources one behind the other along the first axis; the other axes are alike."""
    if len({source.shape[1:] for source in sources}) != 1:
        raise ValueError("sources of different widths one behind the other")
    n = sum(source.shape[0] for source in sources)
    if len(sources[0].shape) > 1:
        return _Joined(tuple(sources), (n, *sources[0].shape[1:]))
    entries = [source.reshape(source.shape[0], 1) for source in sources]
    return _Joined(tuple(entries), (n, 1)).reshape(n)


@dataclass
class Mxfp4(Source):
    """Numbers that are MXFP4 blocks already: `blocks` [..., rows, n_blocks, 16] of two 4-bit numbers a byte, the first
    in the low half, and `scales` [..., rows, n_blocks], as transformers keeps gpt-oss's experts.

    GGUF's block is its scale (both are powers of two with a bias of 127), then the first 16 numbers in the low halves
    of 16 bytes and the others in the high ones. Source: `block_mxfp4` in ggml-common.h."""

    blocks: Source
    scales: Source

    def __post_init__(self) -> None:
        if self.blocks.shape != (*self.scales.shape, 16):
            raise ValueError(f"blocks {list(self.blocks.shape)} with scales {list(self.scales.shape)}")
        self.shape = (*self.scales.shape[:-1], self.scales.shape[-1] * 32)
        self.format = "MXFP4"

    def rows(self, read: Read, start: int, stop: int) -> np.ndarray:
        n_blocks = self.scales.n_cols
        pairs = self.blocks.rows(read, start * n_blocks, stop * n_blocks)  # [blocks, 16]
        numbers = np.stack([pairs & 15, pairs >> 4], 2).reshape(-1, 2, 16)  # [blocks, half, number]
        out = np.empty((len(pairs), 17), np.uint8)
        out[:, 0] = self.scales.rows(read, start, stop).reshape(-1)
        out[:, 1:] = numbers[:, 0] | numbers[:, 1] << 4
        return out.reshape(stop - start, n_blocks * 17)

    def stored(self) -> Iterator[Stored]:
        yield from self.blocks.stored()
        yield from self.scales.stored()


def _numbers(source: Source) -> tuple[int, ...]:
    """The shape of a source whose values are numbers."""
    if source.format:
        raise ValueError(f"arithmetic on {source.format} blocks")
    return source.shape


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Rows one behind the other; of different types they become float32."""
    if len({part.dtype for part in parts}) > 1:
        parts = [float32(part) for part in parts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
