"""The matrix product: activations of a few tokens at once times a stripe of 16 packed weight rows.

Quantized weights meet activations as `ggpy.cpu.weights.activations` lays them out, a tile of w tokens being a run of
32-column blocks

    codes    [8 column groups][w tokens][4 bytes]     int8
    scale    [w]    float32
    sum      [w]    float32, scale times the sum of the codes: what a minimum multiplies
    starts   [5][w] int32, what a sum starts from for an offset of the weights' codes (SUM_STARTS)

and float weights a tile [n_cols][w] of float32. For logits two tokens side by side are the planes of one row (q16,
`layout.planes`), and their products are added. Everything is at a constant distance from one moving pointer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.isa.layout import (
    FROM_BIAS,
    FROM_DST,
    SUM_STARTS,
    TILE_LANES,
    TILE_STRIPES,
    TOKEN_BLOCK_BYTES,
    tile_widths,
)
from ggpy.cpu.isa.vector import Vec, f32, i32
from ggpy.quant.packed import BLOCK, ROWS, Packed

HALVES = next(offset for offset, part in SUM_STARTS if part)  # what activations bring for sums of 16 columns


Block = tuple[ir.Value, int]  # address of a block, and the row of its 16 from which on a vector's lanes count


class QuantizedTile:
    """Emitter of the product of a tile of `width` tokens, `tokens` at once, with neighbouring stripes of a quantized
    format; of each stripe, the vectors that begin at `rows`."""

    # Cycles for 32 columns of 16 rows and a token, on a core that starts two 512-bit instructions a cycle, from the
    # assembly of the loop over blocks in tiles of 12 (loads, two a cycle, stay below: 125 of Q4_0's 12 tokens):
    #
    #                 dot  + each token: to float,   + unpacking, shared   = limit
    #                        times scales, added       by 12 (or 6 x 2)
    #     Q8_0          4        1.5                     0.4                 5.9   xor, scales
    #     Q4_0          4        1.5                     0.6                 6.1   4 shifts, 8 ands, scales
    #     IQ4_NL        4        1.5                     0.9                 6.4   8 shuffles more: the table
    #     Q3_K          4        3.0                     2.7                 9.7   two scales, a second plane
    #     Q2_K          4        5.6                     2.5                12.1   two scales, two minima
    #
    # Of the limit Q4_0 reached 0.7 to 0.9 on a shared machine, stripes and tile in the caches. What remains above the
    # dot products is conversion, twice for types with a scale for 16 columns. (Multiplying a block's sum by the
    # activations' scale once, after both halves, saves a seventh of Q2_K's arithmetic and needs 12 more registers than
    # there are: it measured a tenth slower.) One token at a time unpacking is not shared: 12 cycles (Q4_0) to 25 (Q3_K)
    # for blocks of 288 and 228 bytes, still faster than two cores read memory.

    def __init__(self, v: Vec, packed: Packed, width: int, rows: Sequence[int], ahead: ir.Value) -> None:
        self.v, self.p, self.width, self.rows, self.ahead = v, packed, width, rows, ahead
        # 32 registers hold the sums and totals of 12 tokens; with a second scale to keep, of 6 and two stripes
        in_pairs = width <= 4 or (width == 12 and packed.n_scales == 2)
        self.stripes = TILE_STRIPES[v.isa] if in_pairs else 1
        self.tokens = width // 2 if in_pairs and width == 12 else width

    def starts(self, x: ir.Value, part: int, offset: int) -> list[ir.Value]:
        """The initial value of each token's sum: minus `offset` times the sum of its codes."""
        v, b, w, tokens = self.v, self.v.b, self.width, self.tokens
        if not offset:
            return [v.int(0)] * tokens
        kept = max(n for n, p in SUM_STARTS if p == part and n <= offset)
        at = BLOCK * w + 4 * w * (2 + SUM_STARTS.index((kept, part)))
        start = v.scalars(v.at(x, at), tokens, i32)
        found = [start(t) for t in range(tokens)]
        shift = offset.bit_length() - kept.bit_length()
        return [b.shl(start, v.int(shift)) for start in found] if shift else found

    def prefetch(self, blocks: list[ir.Value]) -> None:
        """Prefetch the stripes after these, block by block, so that memory is read while this tile computes."""
        v, b = self.v, self.v.b
        with b.if_then(b.icmp_signed("!=", self.ahead, v.const(0))):
            for block in blocks:
                following = b.add(block, self.ahead)
                for line in range(0, self.p.block_bytes, 64):
                    v.prefetch(v.at(following, line))

    @property
    def offset(self) -> int:
        """The offset that makes weights unsigned for the dot product; `starts` subtracts it from the sum."""
        return 128 if self.p.signed and not self.v.signed_weights else self.p.offset << self.lift

    @property
    def lift(self) -> int:
        """Bits by which codes are shifted up, and super-scales down, to reach an offset that `starts` has a sum for."""
        kept = SUM_STARTS[0][0] if self.p.n_scales == 1 else HALVES
        small = self.p.super_scales and not self.p.table and 0 < self.p.offset < kept
        return kept.bit_length() - self.p.offset.bit_length() if small else 0

    def codes(self, block: Block, g: int) -> ir.Value:
        """The numbers of columns 4g..4g+3 of the block's rows, one byte each, with `offset`."""
        v, p, b = self.v, self.p, self.v.b
        (at, row), out = block, None
        for plane in p.planes:
            vector, bit = plane.place(g)
            part, up = v.load_bytes(v.at(at, plane.at + 64 * vector + 4 * row)), plane.shift + self.lift
            down = bit - up
            if (plane.bits, bit, up) == (4, 4, 0):
                part = v.high_nibbles(part)
            elif plane.bits < 8:
                if down:
                    part = b.lshr(part, v.int(down)) if down > 0 else b.shl(part, v.int(-down))
                part = b.and_(part, v.int(((1 << plane.bits) - 1 << up) * 0x01010101))
            out = part if out is None else b.or_(out, part)
        if p.table:
            return v.lookup(out, [t + self.offset for t in p.table])
        if p.signed and self.offset:
            out = b.xor(out, v.int(-0x7F7F7F80))  # 0x80808080: +128 in every byte
        return out

    def super_scales(self, block: Block) -> list[ir.Value]:
        """Super-scales and super-minima; minima of 16 columns multiply -HALVES times the activations' sum of codes."""
        v, p, b = self.v, self.p, self.v.b
        of_minima = p.minimum_sign * (1.0 if p.n_scales == 1 else -1 / HALVES)
        factors = [p.unit / (1 << self.lift), of_minima][: 1 + p.minima]
        at, row = block
        found = [v.load_f16(v.at(at, 2 * (ROWS * k + row))) for k in range(len(factors))]
        return [h if f == 1.0 else b.fmul(h, v.float(f)) for h, f in zip(found, factors, strict=True)]

    def scales_and_minima(self, block: Block, supers: list[ir.Value]) -> tuple[list[ir.Value], list[ir.Value]]:
        """The scales of the block's rows and their minima (as they are added)."""
        v, p, b = self.v, self.p, self.v.b
        top, row = block
        if p.scales == "super":
            return [supers[0]], []
        if p.scales == "nibbles":
            both = [v.load_u8_int(v.at(top, ROWS * i + row)) for i in range(p.n_scales)]
            parts = [[b.and_(pair, v.int(15)) for pair in both], [b.lshr(pair, v.int(4)) for pair in both]]
            scales, minima = ([b.fmul(b.sitofp(x, v.vf), h) for x in xs] for xs, h in zip(parts, supers, strict=True))
            return scales, minima
        load = {"half": v.load_f16, "power": v.load_power, "byte": v.load_u8, "signed byte": v.load_s8}[p.scales]
        found = [
            [load(v.at(top, at + (i * ROWS + row) * p.scale_bytes)) for i in range(p.n_scales)]
            for at in (0, p.minima_at)[: 1 + p.minima]
        ]
        if p.super_scales:
            found = [[b.fmul(x, h) for x in xs] for xs, h in zip(found, supers, strict=True)]
        return found[0], found[1] if p.minima else []

    def block(
        self, blocks: list[Block], x: ir.Value, totals: list[ir.Value], supers: list[list[ir.Value]]
    ) -> list[ir.Value]:
        """Add one block of each stripe to `totals`, a vector for each of `blocks` and token."""
        v, p, b, w, tokens = self.v, self.p, self.v.b, self.width, self.tokens
        found = [self.scales_and_minima(block, its) for block, its in zip(blocks, supers, strict=True)]
        scale_at, sum_at = BLOCK * w, BLOCK * w + 4 * w
        per_scale = 8 // p.n_scales
        dot = v.dot_signed if p.signed else v.dot
        fours = v.scalars(x, 8 * w, i32)
        x_scale, x_sums = (v.scalars(v.at(x, at), tokens, f32) for at in (scale_at, sum_at))
        for i in range(p.n_scales):
            sums = self.starts(x, 0 if p.n_scales == 1 else 1 + i, self.offset) * len(blocks)
            # One vector of codes meets every token before the next, so that the sums in flight hide the latency of the
            # dot product; a broadcast serves every block, because loads are scarcer than products.
            groups = [g for g in range(8) if g // per_scale == i]
            groups.sort(key=lambda g: p.planes[0].place(g))  # all codes of a vector in turn
            for g in groups:
                codes = [self.codes(block, g) for block in blocks]
                for t in range(tokens):
                    four = fours(g * w + t)
                    for s, code in enumerate(codes):
                        sums[s * tokens + t] = dot(sums[s * tokens + t], code, four)
            for t in range(tokens):
                for s, (scales, _) in enumerate(found):
                    k = s * tokens + t
                    totals[k] = v.fma(b.sitofp(sums[k], v.vf), b.fmul(scales[i], x_scale(t)), totals[k])
        for i in range(p.n_scales * p.minima):
            minus = self.starts(x, 1 + i, HALVES) if p.n_scales > 1 else []
            for t in range(tokens):
                if minus:
                    x_sum = b.fmul(b.sitofp(minus[t], v.vf), x_scale(t))
                else:
                    x_sum = x_sums(t)
                for s, (_, minima) in enumerate(found):
                    totals[s * tokens + t] = v.fma(minima[i], x_sum, totals[s * tokens + t])
        return totals

    def product(
        self, weight: ir.Value, apart: ir.Value, x: ir.Value, n_cols: ir.Value, totals: list[ir.Value]
    ) -> list[ir.Value]:
        v, p, b = self.v, self.p, self.v.b
        step = TOKEN_BLOCK_BYTES * self.width

        def both(address: ir.Value) -> list[ir.Value]:
            return [address, b.add(address, apart)][: self.stripes]

        def vectors(address: ir.Value) -> list[Block]:
            return [(at, row) for at in both(address) for row in self.rows]

        # of several vectors of one stripe one after the other, that no more are in flight than registers are left
        n_vectors = self.stripes * len(self.rows)
        together = n_vectors if self.tokens > 1 or len(self.rows) == 1 else 1

        def blocks(
            count: ir.Value, weight: ir.Value, x: ir.Value, totals: list[ir.Value], supers: list[list[ir.Value]]
        ) -> list[ir.Value]:
            def one(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                w_at, x_at, *sums = carried
                self.prefetch(both(w_at))
                found, n = [], self.tokens
                for s in range(0, n_vectors, together):
                    e = s + together
                    found += self.block(vectors(w_at)[s:e], x_at, sums[s * n : e * n], supers[s:e])
                return [v.at(w_at, p.block_bytes), v.at(x_at, step), *found]

            return v.loop(count, [weight, x, *totals], one)

        n_blocks = b.lshr(n_cols, v.const(5))
        if not p.super_scales:
            return blocks(n_blocks, weight, x, totals, [[]] * n_vectors)[2:]

        def eight(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            w_at, x_at, *sums = carried
            supers = [self.super_scales(block) for block in vectors(w_at)]
            return blocks(v.const(8), v.at(w_at, p.super_bytes), x_at, sums, supers)

        return v.loop(b.lshr(n_blocks, v.const(3)), [weight, x, *totals], eight)[2:]


class FloatTile:
    """Emitter of `width` tokens times neighbouring stripes of float weights, in float32; see QuantizedTile."""

    # 16-bit weights are converted as they are loaded, and multiplied in float32: exact but for the sums' rounding.
    # `vdpbf16ps` takes two columns an instruction, but rounds activations to 8 bits: results are off by 1.7e-3 of
    # their size, eight times what float16's 11 bits would cost (2.1e-4; random normal numbers, 2048 columns). To stay
    # within that it needs activations in two parts (2e-6), which takes as many instructions as multiply-adds, and
    # for F16 the weights in two parts as well.

    def __init__(self, v: Vec, packed: Packed, width: int, rows: Sequence[int], ahead: ir.Value) -> None:
        self.v, self.p, self.width, self.tokens, self.rows = v, packed, width, width, rows
        self.stripes = TILE_STRIPES[v.isa]

    def product(
        self, weight: ir.Value, apart: ir.Value, x: ir.Value, n_cols: ir.Value, totals: list[ir.Value]
    ) -> list[ir.Value]:
        v, p, b, w = self.v, self.p, self.v.b, self.width
        load = {"F32": v.load_f32, "F16": v.load_f16, "BF16": v.load_bf16}[p.name]
        element = p.bits // 8
        n = self.stripes * len(self.rows) * w
        chains = 2  # of sums, to hide the multiply-add's latency; one number for all widths: results must not differ

        def columns(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            w_at, x_at, *sums = carried
            stripes = (w_at, b.add(w_at, apart))[: self.stripes]
            values = v.scalars(x_at, 8 * w, f32)
            for c in range(8):
                weights = [load(v.at(at, (c * ROWS + row) * element)) for at in stripes for row in self.rows]
                for t in range(w):
                    value = values(c * w + t)
                    for s, weight in enumerate(weights):
                        k = (c % chains) * n + s * w + t
                        sums[k] = v.fma(weight, value, sums[k])
            return [v.at(w_at, 8 * ROWS * element), v.at(x_at, 8 * 4 * w), *sums]

        # columns are padded to a multiple of 8 with zero weights and zero activations
        zeros = [v.float(0.0)] * (n * (chains - 1))
        sums = v.loop(b.lshr(n_cols, v.const(3)), [weight, x, *totals, *zeros], columns)[2:]
        return [b.fadd(even, odd) for even, odd in zip(sums[:n], sums[n:], strict=True)]


def _emit_tile(packed: Packed, n_planes: int, width: int, v: Vec, args: list[ir.Value]) -> None:
    """Emit the tile as passes over its columns, each with as many vectors of rows as registers hold."""
    rows = range(0, ROWS, v.lanes)
    # one token's weights come from memory, and are read as they lie there; several tokens find them in the cache
    together = len(rows) if width == 1 else min(2, len(rows))
    for first in range(0, len(rows), together):
        _emit_pass(packed, n_planes, width, rows[first : first + together], v, args)


def _emit_pass(packed: Packed, n_planes: int, width: int, rows: Sequence[int], v: Vec, args: list[ir.Value]) -> None:
    """Emit one pass: the vectors that begin at `rows` of every stripe, as many stripes and tokens at once as registers
    hold. Sums of tokens that are planes of one row are stored as one."""
    weight, apart, ahead, x, n_cols, bias, dst, stride, start = args
    b = v.b
    ahead = ahead if rows[0] == 0 else v.const(0)
    tile = (FloatTile if packed.is_float else QuantizedTile)(v, packed, width, rows, ahead)
    from_bias = v.splat(b.icmp_signed("!=", start, v.const(FROM_DST)))
    from_dst = v.splat(b.icmp_signed("!=", start, v.const(FROM_BIAS)))
    alone = b.icmp_signed("==", apart, v.const(0))
    # the second stripe only repeats the first where there is none
    stripe_at = [v.const(0), b.select(alone, v.const(0), v.const(64))][: tile.stripes]
    offsets = [v.at(at, 4 * row) for at in stripe_at for row in rows]

    def stripes(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        weight, bias, dst = carried
        biases = [b.select(from_bias, v.load_f32(b.add(bias, at)), v.float(0.0)) for at in offsets]

        def tokens(j: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            x, dst = carried
            at = [dst]
            for _ in range(tile.tokens // n_planes):
                at.append(b.add(at[-1], stride))
            places = [b.add(token, offset) for offset in offsets for token in at[:-1]]
            befores = [b.select(from_dst, v.load_f32(place), v.float(0.0)) for place in places]
            firsts = [bias for bias in biases for _ in at[:-1]]
            totals = []
            for first, before in zip(firsts, befores, strict=True):
                totals += [b.fadd(first, before), *[v.float(0.0)] * (n_planes - 1)]
            sums = tile.product(weight, apart, x, n_cols, totals)
            for k, place in enumerate(places):
                v.store(reduce(b.fadd, sums[n_planes * k : n_planes * (k + 1)]), place)
            return [v.at(x, 4 * tile.tokens), at[-1]]

        v.loop(v.const(width // tile.tokens), [x, dst], tokens)
        return [b.add(weight, apart), v.at(bias, 64), v.at(dst, 64)]

    in_turn = tile.stripes < TILE_STRIPES[v.isa]
    v.loop(b.select(alone, v.const(1), v.const(2)) if in_turn else v.const(1), [weight, bias, dst], stripes)


def tile_intrinsic(packed: Packed, isa: str, n_planes: int) -> Any:
    """`tile(width, weight, apart, ahead, x, n_cols, bias, dst, dst_stride, start)`: dst = a tile of `width` tokens
    times a stripe at `weight` and, on tiers that take two, the one `apart` bytes further (0: there is none), plus what
    `start` names. What lies `ahead` bytes further (0: nothing) is fetched into the cache.
    """

    def tile(
        typingctx: Any,
        width: Any,
        weight: Any,
        apart: Any,
        ahead: Any,
        x: Any,
        n_cols: Any,
        bias: Any,
        dst: Any,
        stride: Any,
        start: Any,
    ) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa, TILE_LANES[isa])
            functions = {
                n: v.function(f"tile_{packed.name}_{n}", len(args) - 1, partial(_emit_tile, packed, n_planes, n))
                for n in tile_widths(isa, packed.is_float)
                if n % n_planes == 0
            }
            v.dispatch(args[0], functions, args[1:])
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(i, u, i, i, u, i, u, u, i, i), codegen

    return intrinsic(tile)
