"""Products of a large step on tensor cores: out[token, row] = sum over columns of activation[token] * weight[row].

A block of threads owns a tile of rows by tokens and walks the columns, COLUMNS at a time. Packed weights and
activations are copied to shared memory some tiles ahead; each warp makes halves of the codes of its rows in its own
registers, where the tensor cores want their first operand, and takes activations as the second. Sums are float32.

One body serves all formats (`matmul_formats`), tile shapes (`matmul_layout.Tiling`) and two instructions: `mma`, which
every warp issues for itself with activations in registers, and Hopper's asynchronous one, which four warps issue
together and which reads activations from shared memory; while it runs, they already make halves of the next tile. Where
tokens are few, several teams of warps take turns at the tiles of columns, and their sums meet at the end.

Of a mixture's experts, whose rows lie one after the other in one matrix, a tile has rows of one expert and tokens that
chose it: those are looked up in the order that `ggpy.cuda.ops.group_experts` made, and go back to where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.warp import Value, Warp, f32, kernel
from ggpy.cuda.ops.matmul.formats import RowReader
from ggpy.cuda.ops.matmul.launch import TILINGS
from ggpy.cuda.ops.matmul.layout import BLOCKS, COLUMNS, PAIR, TilePlane, Tiling, plane_offsets, tile_planes
from ggpy.cuda.weights.layout import ALIGN, MatrixLayout
from ggpy.quant.formats import PACKED
from ggpy.quant.packed import BLOCK, Packed

PARAMETERS = "u64 u32 u64 u64 u64 u64 u32 u32 u32 u32"  # see `_Product.emit`
OF_EXPERTS = " u64 u64 u32 u32"
Sums = list[Value]
Copy = Callable[[Value, Value, Value], None]  # (tile, address of its stage, whether the tile exists)


def source(name: str, tiling: str, experts: str = "") -> Source:
    """A kernel "matmul.Q4_0.128x128", or "matmul.Q4_0.128x128.experts"."""
    shape, parameters = TILINGS[tiling], PARAMETERS + (OF_EXPERTS if experts else "")
    product = _Product(PACKED[name], shape)
    function = kernel(f"matmul_{name}_{tiling}{experts}", parameters, product.emit)
    return Source(function, parameters, shape.threads, shape.blocks)


@dataclass
class _Tile:
    """The tokens and rows of a block. tokens, rows: the first, and the one after the last that there are; `n_all` rows
    are in the matrix. order: of experts, the tokens in order, each `n_used` times."""

    tokens: tuple[Value, Value]
    rows: tuple[Value, Value]
    n_all: Value
    order: Value | None = None
    n_used: Value | None = None


class _Product:
    """Emitter of the kernel of one format and tiling."""

    def __init__(self, packed: Packed, tiling: Tiling) -> None:
        self.packed, self.tiling = packed, tiling
        self.planes = tile_planes(packed)
        self.places = plane_offsets(packed, tiling.rows)
        self.layout = MatrixLayout(packed, 1, BLOCK)

    def emit(
        self,
        w: Warp,
        dst: Value,  # float32 [n_tokens][n_rows]
        dst_stride: Value,  # bytes from token to token
        activations: Value,  # HalfActivations
        scales: Value,  # of the activations
        weight: Value,  # MatrixLayout
        bias: Value,  # float32 [n_rows], or 0
        n_tokens: Value,
        n_rows: Value,
        n_cols: Value,
        accumulate: Value,  # add to dst instead of setting it
        *of_experts: Value,  # order and tiles as `group_experts` made them, rows of dst a token of activations, experts
    ) -> None:
        """Emit the kernel. Grid: tiles of tokens, tiles of rows; of experts as many of tokens as there may be."""
        shape, self.w = self.tiling, w
        thread = w.special("tid.x")
        split, self.thread = thread // shape.team, thread % shape.team
        self.lane, warp = self.thread & 31, self.thread >> 5
        self.group, self.t = self.lane >> 2, self.lane & 3
        self.row_warp = (warp // shape.token_warps) * (shape.rows // shape.row_warps)
        self.token_warp = (warp % shape.token_warps) * (shape.tokens // shape.token_warps)
        at = self._tile(n_tokens, n_rows, *of_experts)
        n_blocks = (n_cols + (BLOCK - 1)) // BLOCK
        n_tiles = (n_blocks + (BLOCKS - 1)) // BLOCKS
        copies = [self._activation_copies(activations, at, (n_tiles + 1) // 2 * (2 * PAIR))]
        copies += self._weight_copies(weight, at, n_blocks)

        unit, size = 2 if shape.paired else 1, shape.stage_bytes(self.packed)
        stages, unit_bytes = shape.stages_of(self.packed) // unit, unit * size

        def tiles(step: Value) -> list[Value]:
            return [(step * unit + k) * shape.splits + split for k in range(unit)]

        def fetch(step: Value, stage: Value) -> None:
            # no branch around it: Hopper's instruction runs on only through straight code. A tile beyond the last
            # column is zeros.
            for k, tile in enumerate(tiles(step)):
                exists = tile < n_tiles
                for copy in copies:
                    copy(tile, stage + k * size, exists)
            w.commit_copies()

        block_shared = w.shared_memory()
        self.shared = block_shared + split * (stages * unit_bytes)
        end = self.shared + stages * unit_bytes
        # Hopper's instruction may still read the tile before this one while the next tiles are fetched
        ahead = stages - (2 if shape.hopper else 1)
        vectors = block_shared + shape.stages_bytes(self.packed)
        self._vector_copies(scales, at.tokens, shape.tokens, vectors, at)
        first_row, end_row = at.rows
        biased = first_row, (bias > 0).select(end_row, 0)
        self._vector_copies(bias, biased, shape.rows, vectors + 4 * shape.tokens)
        if at.order:
            self._vector_copies(at.order, at.tokens, shape.tokens, vectors + 4 * (shape.tokens + shape.rows))
        for step in range(ahead):
            fetch(w.word(step), self.shared + step * unit_bytes)

        def one(step: Value, state: Sequence[Value]) -> list[Value]:
            stage, free, *sums = state
            if shape.hopper:
                sums = w.group_wait(1, sums)
            w.wait_copies(ahead - 1)
            if shape.hopper:
                w.shared_fence()
            if shape.splits == 1:
                w.barrier()
            else:
                w.barrier(split + 1, shape.team)
            fetch(step + ahead, free)
            multiply = self._multiply_hopper if shape.hopper else self._multiply
            for k, tile in enumerate(tiles(step)):
                if k:
                    sums = w.group_wait(1, sums)
                sums = multiply(tile, stage + k * size, sums)
            return [
                *((at + unit_bytes).equals(end).select(self.shared, at + unit_bytes) for at in (stage, free)),
                *sums,
            ]

        def two(pair: Value, state: Sequence[Value]) -> list[Value]:
            # the registers of one tile's weights are being read while those of the next are written
            return one(pair * 2 + 1, one(pair * 2, state))

        state = [self.shared, self.shared + ahead * unit_bytes]
        state += [w.real(0.0)] * (4 * shape.row_fragments * shape.token_fragments)
        steps = (n_tiles + (shape.splits * unit - 1)) // (shape.splits * unit)
        if shape.hopper and not shape.paired:
            sums = w.group_wait(0, w.loop(w.word(0), (steps + 1) // 2, state, two, once=True)[2:])
        else:
            sums = w.loop(w.word(0), steps, state, one, once=True)[2:]
            if shape.hopper:
                sums = w.group_wait(0, sums)
        results = (dst, dst_stride, vectors, at, accumulate)
        if shape.splits == 1:
            self._store(sums, *results)
            return
        sums = self._over_teams(sums, split, block_shared)
        with w.when(split.equals(0)):
            self._store(sums, *results)

    def _tile(self, n_tokens: Value, n_rows: Value, *of_experts: Value) -> _Tile:
        w, shape = self.w, self.tiling
        place, first_row = w.special("ctaid.x"), w.special("ctaid.y") * shape.rows
        if not of_experts:
            return _Tile((place * shape.tokens, n_tokens), (first_row, n_rows), n_rows)
        order, tiles, n_used, n_experts = of_experts
        w.exit(place >= w.load(tiles))  # fewer tiles than there might have been
        expert, first, count, _ = w.load(tiles + 16 + (place * 16).wide(), count=4)
        row = expert * n_rows
        return _Tile((first, first + count), (row + first_row, row + n_rows), n_experts * n_rows, order, n_used)

    def _over_teams(self, sums: Sums, split: Value, shared: Value) -> Sums:
        """The sums over all teams, in the registers of the first one."""
        w, team, size = self.w, self.tiling.team, 4 * self.tiling.team * len(sums)
        assert (self.tiling.splits - 1) * size <= self.tiling.stages_bytes(self.packed)
        w.wait_copies(0)
        w.barrier()
        place = shared + self.thread * 4
        with w.when(split > 0):
            at = place + (split - w.word(1)) * size
            for k, value in enumerate(sums):
                w.store(value, at + 4 * team * k)
        w.barrier()
        for other in range(self.tiling.splits - 1):
            sums = [value + w.load(place + (other * size + 4 * team * k), f32) for k, value in enumerate(sums)]
        return sums

    # ---- copies to shared memory

    def _token(self, at: _Tile, place: Value) -> Value:
        """The token of activations at a place of the tile's order; any where there is none."""
        if at.order is None or at.n_used is None:
            return place
        inside = place < at.tokens[1]
        return self.w.load_where(inside, at.order + (place * 4).wide(), self.w.word(0)) // at.n_used

    def _activation_copies(self, activations: Value, at: _Tile, stride: Value) -> Copy:
        w, shape = self.w, self.tiling
        first, end = at.tokens
        base = activations if at.order else activations + first.wide() * stride.wide()
        row, piece = self.thread >> 3, self.thread & 7
        step, left = shape.team // 8, end - first
        rows = [row + k * step for k in range(shape.tokens // step)]
        tokens = [self._token(at, first + r) for r in rows] if at.order else rows
        offsets = [token * stride + piece * 16 for token in tokens]
        # tokens beyond the last are zeros: reading one again and again would hold up all blocks
        sizes = [(r < left).select(w.word(16), 0) for r in rows]
        to = row * 128 + ((piece ^ row & 7) << 4)

        def copy(tile: Value, stage: Value, exists: Value) -> None:
            source = base + (tile * (2 * COLUMNS)).wide()
            for k, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
                w.copy(stage + to + k * step * 128, source + offset.wide(), 16, exists.select(size, 0))

        return copy

    def _weight_copies(self, weight: Value, at: _Tile, n_blocks: Value) -> list[Copy]:
        layout, address = self.layout, weight
        copies: list[Copy] = []
        start, stride = weight, weight
        codes = layout.code_bytes // 2 if self.packed.bits == 8 else layout.code_bytes
        sizes = {"codes": codes, "last": codes, "high": layout.high_bytes, "scales": layout.scale_bytes}
        for plane in self.planes:
            if plane.name == "supers":
                row_bytes = (n_blocks + 7) // 8 * layout.super_bytes
            else:
                row_bytes = n_blocks * sizes[plane.name]
            if plane.name == "last":  # a second run in the rows of the plane before
                copies.append(self._plane_copies(plane, start + row_bytes.wide(), stride, row_bytes, *at.rows))
                continue
            stride = ((row_bytes * 2 if self.packed.bits == 8 and plane.name == "codes" else row_bytes) + 15) & ~15
            start = address
            copies.append(self._plane_copies(plane, start, stride, row_bytes, *at.rows))
            address = address + (at.n_all.wide() * stride.wide() + (ALIGN - 1) & -ALIGN)
        return copies

    def _vector_copies(
        self, source: Value, span: tuple[Value, Value], count: int, shared: Value, at: _Tile | None = None
    ) -> None:
        """Start to copy `count` floats from index span[0] on, zeros from index span[1] on; with a tile, those of its
        tokens at these places. They arrive with the first tile."""
        w, team, (first, end) = self.w, self.tiling.team, span
        for start in range(0, count, team):
            place = (self.thread + start) % count
            valid = (first + place < end).select(w.word(4), 0)
            index = self._token(at, first + place) if at else first + place
            w.copy(shared + place * 4, source + index.wide() * 4, 4, valid)

    def _plane_copies(
        self, plane: TilePlane, start: Value, stride: Value, row_bytes: Value, first_row: Value, end_row: Value
    ) -> Copy:
        w, shape = self.w, self.tiling
        step = min(shape.rows, shape.team // plane.pieces)  # rows copied at once; threads left over do the same again
        row, piece = self.thread // plane.pieces % step, self.thread % plane.pieces
        rows = [row + k for k in range(0, shape.rows, step)]
        offsets, insides = [r * stride for r in rows], [r < end_row - first_row for r in rows]  # rows beyond are zeros
        base = start + first_row.wide() * stride.wide()
        column_bytes = self.layout.super_bytes if plane.name == "supers" else plane.row_bytes
        to = row * plane.pitch + piece * plane.piece + (2 * COLUMNS * shape.tokens + self.places[plane.name])

        def copy(tile: Value, stage: Value, exists: Value) -> None:
            if plane.name == "supers":
                column = tile // (256 // COLUMNS) * self.layout.super_bytes
            else:
                column = tile * plane.row_bytes + piece * plane.piece
            if column_bytes < 4:
                column = column & ~3
            left = row_bytes - column  # the last tile may end early
            left = left.below(0).select(w.word(0), left).min(plane.piece)
            valid, source = exists.select(left, 0), base + column.wide()
            for k, (offset, inside) in enumerate(zip(offsets, insides, strict=True)):
                size = inside.select(valid, 0)
                w.copy(stage + to + k * step * plane.pitch, source + offset.wide(), plane.piece, size)

        return copy

    # ---- one tile

    def _rows(self, stage: Value, fragment: int, tile: Value) -> list[RowReader]:
        """The two rows of a 16-row fragment that this lane works on."""
        readers = []
        for half in range(2):
            row = self.row_warp + self.group + (16 * fragment + 8 * half)
            places = {
                plane.name: stage + row * plane.pitch + (2 * COLUMNS * self.tiling.tokens + self.places[plane.name])
                for plane in self.planes
            }
            readers.append(RowReader(self.w, self.packed, places, self.t, tile))
        return readers

    def _multiply(self, tile: Value, stage: Value, sums: Sums) -> Sums:
        w, shape, sums = self.w, self.tiling, list(sums)
        rows = [self._rows(stage, fragment, tile) for fragment in range(shape.row_fragments)]
        matrix, inner = self.lane >> 3, self.lane & 7
        for block in range(BLOCKS):
            weights = [[reader.block(block) for reader in pair] for pair in rows]
            piece = (matrix + 4 * block) ^ inner
            at = stage + (self.token_warp + inner) * 128 + (piece << 4)
            for n in range(shape.token_fragments):
                activations = w.matrices(at + 1024 * n)
                for step in range(2):
                    for m, (upper, lower) in enumerate(weights):
                        a = [upper[2 * step], lower[2 * step], upper[2 * step + 1], lower[2 * step + 1]]
                        place = 4 * (m * shape.token_fragments + n)
                        sums[place : place + 4] = w.mma(
                            sums[place : place + 4], a, activations[2 * step : 2 * step + 2]
                        )
        return sums

    def _multiply_hopper(self, tile: Value, stage: Value, sums: Sums) -> Sums:
        w, shape, sums = self.w, self.tiling, list(sums)
        descriptor = w.tile_descriptor(stage + self.token_warp * 128)
        size = 4 * shape.token_fragments
        rows = [self._rows(stage, fragment, tile) for fragment in range(shape.row_fragments)]
        blocks = [[[reader.block(block) for reader in pair] for pair in rows] for block in range(BLOCKS)]
        w.group_fence()
        for block, weights in enumerate(blocks):
            for step in range(2):
                at = descriptor + (4 * block + 2 * step)
                for m, (upper, lower) in enumerate(weights):
                    a = [upper[2 * step], lower[2 * step], upper[2 * step + 1], lower[2 * step + 1]]
                    sums[m * size : (m + 1) * size] = w.group_mma(sums[m * size : (m + 1) * size], a, at)
        w.group_commit()
        return sums

    # ---- results

    def _store(self, sums: Sums, dst: Value, dst_stride: Value, vectors: Value, tile: _Tile, accumulate: Value) -> None:
        """Store sums * scale[token] + bias[row] to dst, or add it to dst."""
        w, shape = self.w, self.tiling
        (first_token, n_tokens), (first_row, n_rows) = tile.tokens, tile.rows
        column_of_row = first_row if tile.order is None else w.special("ctaid.y") * shape.rows  # of dst
        places = [self.row_warp + self.group + (16 * m + 8 * h) for m in range(shape.row_fragments) for h in range(2)]
        biases = [w.load(vectors + 4 * shape.tokens + place * 4, f32) for place in places]

        def write(how: str) -> None:
            for n in range(shape.token_fragments):
                for column in range(2):
                    place = self.token_warp + (self.t << 1) + (8 * n + column)
                    token = first_token + place
                    scale = w.load(vectors + place * 4, f32)
                    to = w.load(vectors + 4 * (shape.tokens + shape.rows) + place * 4) if tile.order else token
                    line = dst + to.wide() * dst_stride.wide() + (column_of_row * 4).wide()
                    for r, row in enumerate(places):
                        m, half = divmod(r, 2)
                        total = w.fma(sums[4 * (m * shape.token_fragments + n) + 2 * half + column], scale, biases[r])
                        at = line + (row * 4).wide()
                        inside = (token < n_tokens) & (first_row + row < n_rows)
                        if how != "add":
                            w.store(total, at, inside & accumulate.equals(0) if how == "test" else None)
                        if how != "set":
                            w.add_to(at, total, inside & accumulate.equals(1) if how == "test" else None)

        # most blocks are whole: no test then stands before each store
        whole = (first_token + shape.tokens - w.word(1) < n_tokens) & (first_row + shape.rows - w.word(1) < n_rows)
        with w.either(whole) as (plain, partial):
            with plain, w.either(accumulate.equals(0)) as (sets, adds):
                with sets:
                    write("set")
                with adds:
                    write("add")
            with partial:
                write("test")
