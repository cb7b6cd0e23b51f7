"""Conversion of a piece of the cache to float32, for the row tiles that read it together."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing import Signature
from numba.extending import intrinsic

from ggpy.cpu.isa.vector import LANES, Vec, f16, f32
from ggpy.cpu.ops.attend import Cells
from ggpy.quant.packed import BLOCK


def dequantize_kv_intrinsic(isa: str, cache: str, is_key: bool) -> Any:
    """`dequantize(dst, src, n_dims, n)`: n positions, a multiple of 64, of one head's keys or values as float32."""

    def dequantize(typingctx: Any, dst: Any, src: Any, n_dims: Any, n: Any) -> tuple[Signature, Any]:
        def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            v = Vec(b, isa)
            dst, src, n_dims, n = args
            cells = Cells(v, cache, n_dims)

            def vectors(count: int, scale: ir.Value | None, i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                dst, src = carried
                for w in range(count):
                    value = cells.load(v.at(src, cells.element * LANES * w))
                    v.store(value if scale is None else b.fmul(value, scale), v.at(dst, 4 * LANES * w))
                return [v.at(dst, 4 * LANES * count), v.at(src, cells.element * LANES * count)]

            def key_block(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                dst, src = carried

                def dims(j: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                    scale_at, *places = inner
                    scale = v.load_f16(scale_at)
                    body = lambda *given: vectors(4, scale, *given)  # noqa: E731
                    return [v.at(scale_at, 2 * LANES), *v.loop(v.const(BLOCK // 4), places, body)]

                start = [b.add(src, cells.codes_bytes), dst, src]
                return [v.loop(cells.n_scales, start, dims)[1], b.add(src, cells.block_bytes)]

            def value_block(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                dst, src = carried

                def position(p: ir.Value, inner: list[ir.Value]) -> list[ir.Value]:
                    scales, *places = inner

                    def dims(j: ir.Value, places: list[ir.Value]) -> list[ir.Value]:
                        half = v.load(b.add(scales, v.mul(j, 2 * LANES)), f16, 2)
                        return vectors(BLOCK // LANES, v.splat(b.fpext(half, f32)), j, places)

                    return [v.at(scales, 2), *v.loop(cells.n_scales, places, dims)]

                start = [b.add(src, cells.codes_bytes), dst, src]
                return [v.loop(v.const(LANES), start, position)[1], b.add(src, cells.block_bytes)]

            if cells.scaled:
                v.loop(b.lshr(n, v.const(4)), [dst, src], key_block if is_key else value_block)
            else:
                body = lambda *given: vectors(4, None, *given)  # noqa: E731
                v.loop(b.lshr(b.mul(n_dims, n), v.const(6)), [dst, src], body)
            return context.get_dummy_value()

        return types.void(types.uintp, types.uintp, types.intp, types.intp), codegen

    return intrinsic(dequantize)
