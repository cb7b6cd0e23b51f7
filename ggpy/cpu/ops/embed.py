"""Embedding rows, from the file's own bytes: only the rows of tokens that occur are ever read."""

from __future__ import annotations

from typing import Any

from numba import carray, types

from ggpy.codegen.scalars import bf16_to_f32, f16_to_f32, load_f32, load_u8, load_u16, store_f32
from ggpy.cpu.isa.records import as_op, as_step
from ggpy.cpu.weights.blocks import number_of, readers, scale_of
from ggpy.quant import FORMATS
from ggpy.quant.packed import Packed

read_codes: Any = None  # these names are set by `specialized`
read_scales: Any = None
number: Any = None
scale_value: Any = None
MINIMA = 0
UNIT = 1.0
FORMAT = ""


def embed_blocks(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[i] = row i of those at `weight`, quantized and `weight_stride` bytes apart: the batch's, already gathered."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    codes = op.scratch + types.uint64(tid * op.scratch_stride)
    for i in range(step.n_tokens * tid // nth, step.n_tokens * (tid + 1) // nth):
        row = op.weight + types.uint64(i * op.weight_stride)
        out = op.dst + types.uint64(i * op.dst_stride)
        for block in range(op.n_cols // 32):
            read_codes(row, block, codes)
            found = read_scales(row, block)
            top = f16_to_f32(types.uint16(found[0])) * types.float32(UNIT)
            top_minimum = f16_to_f32(types.uint16(found[1]))
            for half in range(2):
                scale = scale_value(top, found[2 + half])
                minimum = types.float32(0.0)
                if MINIMA:  # with its sign
                    minimum = types.float32(MINIMA) * scale_value(top_minimum, found[4 + half])
                for j in range(16 * half, 16 * half + 16):
                    value = scale * types.float32(number(load_u8(codes + types.uint64(j)))) + minimum
                    store_f32(out + types.uint64(4 * (32 * block + j)), value)


def embed_floats(op_at, step_at, tid, nth):  # type: ignore[no-untyped-def]
    """dst[i] = row i of those at `weight`, which are floats: see `embed_blocks`."""
    op = carray(as_op(op_at), 1)[0]
    step = carray(as_step(step_at), 1)[0]
    for i in range(step.n_tokens * tid // nth, step.n_tokens * (tid + 1) // nth):
        row = op.weight + types.uint64(i * op.weight_stride)
        out = op.dst + types.uint64(i * op.dst_stride)
        for c in range(op.n_cols):
            if FORMAT == "F32":
                value = load_f32(row + types.uint64(4 * c))
            elif FORMAT == "F16":
                value = f16_to_f32(load_u16(row + types.uint64(2 * c)))
            else:
                value = bf16_to_f32(load_u16(row + types.uint64(2 * c)))
            store_f32(out + types.uint64(4 * c), value)


def embed_names(p: Packed) -> dict[str, Any]:
    """Global names that `specialized` replaces in the loop of a format."""
    if p.is_float:
        return {"FORMAT": p.name}
    read_codes, read_scales = readers(FORMATS[p.name])
    return {
        "read_codes": read_codes,
        "read_scales": read_scales,
        "number": number_of(p),
        "scale_value": scale_of(p),
        "UNIT": p.unit,
        "MINIMA": p.minimum_sign * p.minima,
    }
