"""Where a program's operations read what others wrote, as the GPU runs them: later than they stand, since products make
their activations themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.graph import operations as ops

if TYPE_CHECKING:
    from ggpy.graph.program import Program


class Uses:
    """The reads of one program's operations, by their indices."""

    def __init__(self, program: Program) -> None:
        self._ops, self._result = program.ops, program.result.buffer
        self._end = len(program.ops)
        self.reads_until = [*range(self._end), self._end]  # of each operation, the last one with which it still reads
        activations = 0
        for index, op in enumerate(program.ops):
            if isinstance(op.operation, ops.QuantizeActivations):
                activations = index
            elif isinstance(op.operation, ops.Linear):
                self.reads_until[activations] = index
            elif isinstance(op.operation, ops.RopeStore):  # a small step's attention reads keys and values itself
                self.reads_until[index] = index + 1

    def readers(self, index: int) -> list[int]:
        """The operations that read what this one writes, or add to it; after them the number of operations, where it is
        the program's result."""
        dst, found = self._ops[index].dst, []
        assert dst is not None
        for later in range(index + 1, self._end):
            op = self._ops[later]
            same = op.dst is not None and op.dst.buffer == dst.buffer
            if (same and op.accumulates) or any(src.buffer == dst.buffer for src in op.srcs):
                found.append(later)
            if same and not op.accumulates and not isinstance(op.operation, ops.JoinAttention):
                return found
        return [*found, self._end] if dst.buffer == self._result else found

    def last_read(self, index: int) -> int:
        return max((self.reads_until[reader] for reader in self.readers(index)), default=index)

    def source_is_overwritten(self, activations: int) -> bool:
        """True where the source of activations is written to before the last product that reads them has ended, or the
        SwiGLU that it may absorb; they are made at that operation."""
        (source,), last = self._ops[activations].srcs, self.reads_until[activations]
        following = self._ops[last + 1 : last + 2]
        span = self._ops[activations + 1 : last + 1] + tuple(
            op for op in following if isinstance(op.operation, ops.GLU)
        )
        return any(op.dst and op.dst.buffer == source.buffer for op in span)

    def activations_of(self, index: int) -> list[tuple[int, ops.QuantizeActivations]] | None:
        """The operations that read what this one writes, if all make activations of all its columns."""
        found = []
        for reader in self.readers(index):
            op = self._ops[reader] if reader < self._end else None
            if not op or not isinstance(op.operation, ops.QuantizeActivations) or op.srcs != (self._ops[index].dst,):
                return None
            found.append((reader, op.operation))
        return found

    def read_in_parts(self, index: int) -> bool:
        """True where products that can join the parts of the attention at `index` are all that read it."""
        following = (i for i in range(index + 1, self._end) if isinstance(self._ops[i].operation, ops.Attend))
        end, readers = next(following, self._end), self.activations_of(index)
        return readers is not None and all(q.joins and self.reads_until[reader] < end for reader, q in readers)

    def left_to_activations(self, index: int) -> bool:
        """True where only products read what the operation at `index` writes, and read it as it is."""
        readers = self.activations_of(index)
        return readers is not None and not any(q.norm or q.select for _, q in readers)
