"""The inside of attention over a latent cache, whose keys are the values as well (`ggpy.cpu.ops.attention`): scores out
of the form that values lie in. Everything else is `ggpy.cpu.ops.attend`'s.

A key's dimensions are lanes, and queries [head_dim / 16][rows][16]; a score is the sum of 16 lanes, added in one order
for any number of rows.
"""

from __future__ import annotations

from llvmlite import ir

from ggpy.cpu.isa.vector import LANES, Vec, f32, i32
from ggpy.cpu.ops.attend import Attend, Cells


class AttendLatent(Attend):
    """Emitter of the function for one number of rows; `head_dim` is a multiple of 16."""

    def __init__(self, v: Vec, cache_k: str, cache_v: str, rows: int, args: list[ir.Value]) -> None:
        super().__init__(v, cache_k, cache_v, rows, args)
        self.k = self.v_cells = Cells(v, cache_k, self.head_dim)
        self.blocks = 1
        # keys at a time: registers hold a vector of products for each of them and each row
        self.keys_held = next(n for n in (8, 4, 2, 1) if n == 1 or n * rows <= self.held)

    def score(self, keys: ir.Value, n_spans: ir.Value) -> None:
        """Scores q . k, of a few positions at a time. Those past the last position are of what the cache holds there,
        and are masked afterwards."""
        v, b, cells, held = self.v, self.b, self.k, self.keys_held
        n_cells = v.mul(n_spans, LANES)
        if cells.scaled:
            self.unpack_scales(keys, n_cells)
        apart = [v.mul(cells.row_bytes, n) for n in range(held)]
        n_vectors = b.lshr(self.head_dim, v.const(4))

        def block(j: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            at, scales, out = carried

            def group(i: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                key_at, scale_at, out = inner
                sums = self.products(n_vectors, key_at, apart, scale_at)
                self.store_sums(sums, out)
                return [b.add(key_at, v.mul(cells.row_bytes, held)), v.at(scale_at, 4 * held), v.at(out, 4 * held)]

            v.loop(v.const(LANES // held), [at, scales, out], group)
            after = b.add(scales, v.mul(cells.n_scales, 4 * LANES))
            return [b.add(at, cells.block_bytes), after, v.at(out, self.score_bytes)]

        v.loop(n_spans, [keys, self.scales, self.scores], block)

    def products(
        self, n_vectors: ir.Value, key_at: ir.Value, apart: list[ir.Value], scale_at: ir.Value
    ) -> list[ir.Value]:
        """For each row and each of the keys, the products of all dimensions, summed up lane by lane."""
        v, b, cells, rows = self.v, self.b, self.k, self.rows

        def some(count: int, i: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
            at, q, scales, *sums = inner
            for c in range(count):
                key = [cells.load(v.at(b.add(at, far), cells.element * LANES * c)) for far in apart]
                if cells.scaled:
                    key = [b.fmul(code, v.bcast_f32(v.at(scales, 4 * n))) for n, code in enumerate(key)]
                for m in range(rows):
                    query = v.load_f32(v.at(q, 4 * LANES * (c * rows + m)))
                    for n, of in enumerate(key):
                        sums[m * len(apart) + n] = v.fma(of, query, sums[m * len(apart) + n])
            following = [v.at(at, cells.element * LANES * count), v.at(q, 4 * LANES * rows * count)]
            return [*following, v.at(scales, 4 * LANES), *sums]

        count = 2 if cells.scaled else 1  # vectors that share a scale
        start = [key_at, self.q, scale_at, *[v.float(0.0)] * (rows * len(apart))]
        n_times = b.lshr(n_vectors, v.const(count - 1))
        return v.loop(n_times, start, lambda i, inner: some(count, i, inner))[3:]

    def store_sums(self, sums: list[ir.Value], out: ir.Value) -> None:
        """Each row's sums across lanes, side by side."""
        v, b, held = self.v, self.b, len(sums) // self.rows
        for first in range(0, len(sums), LANES):
            totals = v.sum_each(sums[first : first + LANES])
            for place in range(first, min(first + LANES, len(sums)), held):
                order = ir.Constant(ir.VectorType(i32, held), [place - first + i for i in range(held)])
                to = v.at(out, 4 * LANES * (place // held))
                if held == 1:
                    lane = b.extract_element(totals, ir.Constant(i32, place - first))
                    b.store(lane, b.inttoptr(to, f32.as_pointer()), align=4)
                else:
                    v.store(b.shuffle_vector(totals, totals, order), to)
