"""The base of all lowerings of operations, which say what memory an operation touches: barriers follow from that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ggpy.graph.operations import Operation
from ggpy.quant.packed import ROWS

if TYPE_CHECKING:
    import numpy as np

    from ggpy.cpu.embedding import Embeddings
    from ggpy.cpu.memory import Memory
    from ggpy.cpu.packed_weights import PackedWeights
    from ggpy.graph.program import Op, Region

EVERYONE = "everyone"  # any thread may touch any part
OWN = "own"  # each thread has a copy of its own
PARTS, ACTIVATIONS, ORDER = "parts", "activations", "order of experts' rows"
SOURCES = (("src", "src_stride"), *((f"src{n}", f"src{n}_stride") for n in range(2, 6)))


class Access(NamedTuple):
    """Memory that an operation touches. Under the same `share`, the rule by which threads divide it, no thread touches
    another one's part."""

    memory: Any
    writes: bool
    share: str


class Places(NamedTuple):
    """Where a program's parts lie in memory."""

    memory: Memory
    weights: PackedWeights
    embeddings: Embeddings


Kind = TypeVar("Kind", bound=Operation)


class Lowering(Generic[Kind]):
    """The CPU's way to run operations of one kind."""

    def kernel(self, operation: Kind, cache_type: str) -> str:
        """The name of its kernel, as in `ggpy.cpu.kernels`."""
        raise NotImplementedError

    def record(self, op: Op, operation: Kind, places: Places, r: np.ndarray) -> None:
        """Fill the record r [1] with what is beside its operands and destination."""

    def accesses(self, op: Op, operation: Kind, small: bool) -> list[Access]:
        """The memory that it reads and writes in a step, small or large."""
        rows = rows_of(op)
        return [*touch(op.srcs, False, rows), *touch(dst_of(op), True, rows)]


def rows_of(op: Op) -> str:
    """The rule by which threads divide rows: of the same kind, each has the same share."""
    return f"{'outputs' if op.outputs_only else 'tokens'} times {op.n_used}"


def stripes_of(n_cols: int) -> str:
    """The rule by which threads divide columns."""
    return f"stripes of {-(-n_cols // ROWS)}"


def touch(regions: Iterable[Region], writes: bool, share: str) -> list[Access]:
    return [Access(region.buffer, writes, share) for region in regions]


def dst_of(op: Op) -> tuple[Region, ...]:
    return (op.dst,) if op.dst else ()


def by_columns(op: Op) -> list[Access]:
    """The memory that an operation touches whose threads divide columns."""
    columns = stripes_of(op.srcs[0].n_cols)
    # a region that begins within a buffer has its stripes elsewhere than the buffer's
    whole = [columns if region.first == 0 else EVERYONE for region in op.srcs]
    reads = [Access(region.buffer, False, share) for region, share in zip(op.srcs, whole, strict=True)]
    return [*reads, *touch(dst_of(op), True, columns)]
