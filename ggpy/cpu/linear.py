"""The matrix product: activations of 1 to 16 tokens at once times a stripe of 16 packed weight rows.

Quantized weights meet activations as `ggpy.cpu.activations` lays them out, a tile of w tokens being a run of 32-column
blocks

    codes    [8 column groups][w tokens][4 bytes]     int8
    scale    [w]    float32
    sum      [w]    float32, scale times the sum of the codes: what a minimum multiplies
    minus8   [3][w] int32, -8 times the sum of all 32, the first 16 and the last 16 codes: what an offset of the codes
             starts from

and float weights a tile [n_cols][w] of float32. Everything is at a constant distance from one moving pointer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.layout import TILE_WIDTHS, TOKEN_BLOCK_BYTES
from ggpy.cpu.records import as_op, as_step
from ggpy.cpu.vector import VF, Vec
from ggpy.quant.packed import BLOCK, Packed

# activations walked at a time, so that they stay in the second-level cache while weights stream by
CHUNK_BYTES = 384 * 1024


class QuantizedTile:
    """Emits `width` tokens times one stripe of a quantized format."""

    def __init__(self, v: Vec, packed: Packed, width: int) -> None:
        self.v, self.p, self.width = v, packed, width

    def codes(self, block: ir.Value) -> list[ir.Value]:
        """The block's 8 vectors of codes: vector g has columns 4g..4g+3 of all 16 rows."""
        v, p, b = self.v, self.p, self.v.b
        base = v.at(block, p.codes_at)
        if p.bits == 8:
            out = [v.load_bytes(v.at(base, 64 * g)) for g in range(8)]
            if p.signed and not v.signed_weights:
                out = [b.xor(c, v.int(-0x7F7F7F80)) for c in out]  # 0x80808080: +128 in every byte
            return out
        low = [v.load_bytes(v.at(base, 64 * j)) for j in range(4)]
        nibble = v.int(0x0F0F0F0F)
        out = [b.and_(c, nibble) for c in low] + [b.and_(b.lshr(c, v.int(4)), nibble) for c in low]
        if not p.high_bits:
            return out
        per_vector = 8 // p.high_bits
        mask = v.int(0x10101010 if p.high_bits == 1 else 0x30303030)
        high = [v.load_bytes(v.at(block, p.high_at + 64 * i)) for i in range(8 // per_vector)]
        for g in range(8):
            shift = 4 - (g % per_vector) * p.high_bits
            plane = high[g // per_vector]
            moved = b.shl(plane, v.int(shift)) if shift > 0 else b.lshr(plane, v.int(-shift)) if shift else plane
            out[g] = b.or_(out[g], b.and_(moved, mask))
        return out

    def block(self, block: ir.Value, x: ir.Value, totals: list[ir.Value], header: list[ir.Value]) -> list[ir.Value]:
        """Add one block's products to `totals`, one vector of 16 rows a token."""
        v, p, b, w = self.v, self.p, self.v.b, self.width

        def level(at: int, which: int) -> list[ir.Value]:
            found = []
            for i in range(p.n_scales):
                address = v.at(block, at + i * 16 * p.scale_bytes)
                if not p.header:
                    found.append(v.load_f16(address))
                else:
                    byte = v.load_s8(address) if p.signed_scales else v.load_u8(address)
                    found.append(b.fmul(byte, header[which]))
            return found

        scales = level(0, 0)
        minima = level(p.minima_at, 1) if p.minima else []
        if p.minimum_sign < 0:
            minima = [b.fneg(m) for m in minima]
        codes = self.codes(block)
        offset = p.offset + (128 if p.signed and not v.signed_weights else 0)
        scale_at, sum_at, minus8_at = BLOCK * w, BLOCK * w + 4 * w, BLOCK * w + 8 * w
        per_scale = 8 // p.n_scales
        for t in range(w):
            x_scale = v.bcast_f32(v.at(x, scale_at + 4 * t))
            for i, scale in enumerate(scales):
                total = v.int(0)
                if offset:
                    which = 0 if p.n_scales == 1 else 1 + i
                    total = v.bcast_i32(v.at(x, minus8_at + 4 * (which * w + t)))
                    times = offset.bit_length() - 4  # the offset is 8, 16, 32 or 128
                    if times:
                        total = b.shl(total, v.int(times))
                for g in range(i * per_scale, (i + 1) * per_scale):
                    four = v.bcast_i32(v.at(x, 4 * (g * w + t)))
                    total = v.dot_signed(total, codes[g], four) if p.signed else v.dot(total, codes[g], four)
                totals[t] = v.fma(b.sitofp(total, VF), b.fmul(scale, x_scale), totals[t])
            if minima:
                totals[t] = v.fma(minima[0], v.bcast_f32(v.at(x, sum_at + 4 * t)), totals[t])
        return totals

    def product(self, weight: ir.Value, x: ir.Value, n_cols: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        v, p, b = self.v, self.p, self.v.b
        step = TOKEN_BLOCK_BYTES * self.width

        def blocks(
            count: ir.Value, weight: ir.Value, x: ir.Value, totals: list[ir.Value], header: list[ir.Value]
        ) -> list[ir.Value]:
            def one(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                w_at, x_at, *sums = carried
                sums = self.block(w_at, x_at, sums, header)
                return [v.at(w_at, p.block_bytes), v.at(x_at, step), *sums]

            return v.loop(count, [weight, x, *totals], one)

        n_blocks = b.lshr(n_cols, v.const(5))
        if not p.header:
            return blocks(n_blocks, weight, x, totals, [])[2:]

        def eight(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            w_at, x_at, *sums = carried
            header = [v.load_f16(v.at(w_at, 32 * k)) for k in range(1 + p.minima)]
            return blocks(v.const(8), v.at(w_at, p.header_bytes), x_at, sums, header)

        return v.loop(b.lshr(n_blocks, v.const(3)), [weight, x, *totals], eight)[2:]


class FloatTile:
    """Emits `width` tokens times one stripe of float weights, in float32."""

    def __init__(self, v: Vec, packed: Packed, width: int) -> None:
        self.v, self.p, self.width = v, packed, width

    def product(self, weight: ir.Value, x: ir.Value, n_cols: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
        v, p, b, w = self.v, self.p, self.v.b, self.width
        load = {"F32": v.load_f32, "F16": v.load_f16, "BF16": v.load_bf16}[p.name]
        row_bytes = 16 * p.bits // 8
        # enough independent sums to hide the latency of the fused multiply-add
        chains = max(1, 8 // w)

        def columns(count: int, w_at: ir.Value, x_at: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            for c in range(count):
                weights = load(v.at(w_at, c * row_bytes))
                for t in range(w):
                    k = (c % chains) * w + t
                    sums[k] = v.fma(weights, v.bcast_f32(v.at(x_at, 4 * (c * w + t))), sums[k])
            return [v.at(w_at, count * row_bytes), v.at(x_at, count * 4 * w), *sums]

        zeros = [v.float(0.0)] * (w * (chains - 1))
        # columns are padded to a multiple of 8 with zero weights and zero activations
        done = v.loop(
            b.lshr(n_cols, v.const(3)), [weight, x, *totals, *zeros], lambda i, c: columns(8, c[0], c[1], list(c[2:]))
        )
        sums = done[2:]
        while len(sums) > w:
            half = len(sums) // 2
            sums = [b.fadd(a, c) for a, c in zip(sums[:half], sums[half:], strict=True)]
        return sums


def _emit_tile(packed: Packed, width: int, v: Vec, args: list[ir.Value]) -> None:
    weight, x, n_cols, bias, dst, stride, accumulate = args
    b = v.b
    start = v.load_f32(bias)
    totals = (FloatTile if packed.is_float else QuantizedTile)(v, packed, width).product(
        weight, x, n_cols, [start] * width
    )
    add_to_dst = v.splat(b.icmp_signed("!=", accumulate, v.const(0)))
    for total in totals:
        before = b.select(add_to_dst, v.load_f32(dst), v.float(0.0))
        v.store(b.fadd(total, before), dst)
        dst = b.add(dst, stride)


def tile_intrinsic(packed: Packed, isa: str) -> Any:
    """`tile(width, weight, x, n_cols, bias, dst, dst_stride, accumulate)`: one stripe
    times one tile of `width` tokens, plus bias, into dst."""

    def tile(
        typingctx: Any, width: Any, weight: Any, x: Any, n_cols: Any, bias: Any, dst: Any, stride: Any, accumulate: Any
    ) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            functions = {
                n: v.function(f"tile_{packed.name}_{n}", len(args) - 1, partial(_emit_tile, packed, n))
                for n in TILE_WIDTHS[isa]
            }
            v.dispatch(args[0], functions, args[1:])
            return context.get_dummy_value()

        u, i = types.uintp, types.intp
        return types.void(i, u, u, i, u, u, i, i), codegen

    return intrinsic(tile)


tile: Any = None  # these names are set by `specialized`
widest_tile: Any = None
WIDEST = 0


def linear(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[token, row] (+)= weight[row] . x[token] + bias[row]; thread `tid`
    of `nth` takes a contiguous run of stripes."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    n = step.n_outputs if op.outputs_only else step.n_tokens
    first = op.n_stripes * tid // nth
    last = op.n_stripes * (tid + 1) // nth
    x = op.src
    if step.small:
        x += types.uint64(tid * op.private_stride)
    chunk = max(WIDEST, CHUNK_BYTES // op.token_bytes // WIDEST * WIDEST)
    for start in range(0, n, chunk):
        end = min(n, start + chunk)
        for s in range(first, last):
            weight = op.weight + types.uint64(s * op.stripe_bytes)
            t = start
            while t < end:
                width = widest_tile(end - t)
                tile(
                    width,
                    weight,
                    x + types.uint64(t * op.token_bytes),
                    op.n_cols,
                    op.bias + types.uint64(s * 64),
                    op.dst + types.uint64(t * op.dst_stride + s * 64),
                    op.dst_stride,
                    op.accumulate,
                )
                t += width
