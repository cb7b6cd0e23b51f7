"""Products of the chosen experts' matrices with the activations of few tokens: what decoding of a mixture is made of,
bound by how fast the weights of those experts are read. `ggpy.cuda.ops.matvec` tells how a warp multiplies rows.

A matrix holds the rows of expert after expert. Which ones are multiplied is read on the device, so that a recorded step
serves any choice; until it is known nothing can be asked for, and then all of a warp's first weights are asked for at
once, before activations are made.

inputs   "tokens": activations of each token, as the kernel `activations` made them; "rows": the same of each of its
         experts; "norm", "plain": one token's row of float32, with or without a norm, made here; "joined": the rows of
         one token's experts, which lie one after the other, made here.
outputs  "rows": dst[USED * token + j] = product of expert j's row + bias (+ plus); a gated unit's function, such as
         "silu_glu": rows r and n_rows + r of an expert are gate and up, and their unit is stored; "sum": dst[token] =
         the sum over j of weight j * (product + bias) (+ plus): a warp takes a row of all experts.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, divided, f32, i32, inline, u32, u64, warp_sum
from ggpy.cuda.isa.instructions import (
    bring_near,
    copy_commit,
    copy_wait,
    dynamic_shared,
    fma,
    load_f32,
    load_i32,
    load_u32,
    release_next,
    shared_load_f32,
    shared_load_u32,
    shared_store_u32,
    store_f32,
    sync_block,
    sync_warp,
    wait_for_previous,
)
from ggpy.cuda.ops.elementwise import function_of
from ggpy.cuda.ops.row_product import row_product
from ggpy.cuda.weights.activations import norm_function, row_reader, writer
from ggpy.cuda.weights.layout import SUMS, ExpertShape
from ggpy.quant.formats import PACKED

SIGNATURE = (
    "u64 u64 u64 u64 i32 i32 i32 i32 "  # codes, high, scales, supers and their strides
    "i32 u64 i32 i32 "  # tokens, address of how many are there or 0, rows of the result, rows of an expert
    "u64 i32 "  # the route: each token's experts, then their weights; its stride
    "u64 i32 u64 i32 u64 f32 "  # x (codes), its stride; scales of x, their stride; norm weight, eps
    "u64 u64 i32 u64 i32 "  # bias or 0, dst, dst_stride, plus or 0, plus_stride
    "u64 u64 i32"  # what will be read next, as `matvec` has it
)


def source(name: str, n_cols_: str, used_: str, inputs: str, outputs: str, ring: str) -> Source:
    """expert_matvec.TYPE.COLUMNS.USED.INPUTS.OUTPUTS.RING: see the module; ExpertShape has its threads and memory."""
    p, n_cols, used = PACKED[name], int(n_cols_), int(used_)
    shape = ExpertShape(p, n_cols, used, inputs, int(ring))
    row_shape, n_segments = shape.row, shape.n_segments
    fused, norm_here, of_rows = n_segments > 0, inputs == "norm", inputs in ("rows", "joined")
    sums, gated = outputs == "sum", outputs not in ("rows", "sum")
    parts = used if sums else 2 if gated else 1
    copy, dot = row_product(row_shape, fused, shape.x_blocks)
    n_items, chunks, n_units = row_shape.n_items, row_shape.chunks, row_shape.n_units
    slots, unit_bytes = row_shape.slots, row_shape.unit_bytes
    activations_at, table_at = row_shape.activations_at, shape.table_at
    threads, warps = row_shape.threads, row_shape.threads // 32
    # What a unit has beyond its row's last block multiplies zeros with what follows in shared memory.
    padded = n_items % (32 * chunks) == 0 or (fused and not p.is_float)
    wait = copy_wait(slots - 1)
    width = shape.width
    n_each, read_row = row_reader(width, threads)
    n_held = 4 * n_each
    norm = norm_function(width, threads)
    write = writer(width, threads, "f32" if p.is_float else "q8", True, shape.x_blocks)
    scales_after = 32 * shape.x_blocks
    # from the activations of one of the joined rows to the next one's, and their scales
    segment = row_shape.layout.padded_cols * 4 if p.is_float else row_shape.layout.n_blocks * 16
    scale_segment = 0 if p.is_float else row_shape.layout.n_blocks * 8
    function: Any = function_of(outputs) if gated else None

    @inline
    def after(group, row, part, unit, step_groups, step_rows, n_rows):  # type: ignore[no-untyped-def]
        """The unit that follows: of this row, of another expert or half, or of the warp's next row."""
        unit = i32(unit + i32(1))
        if unit == i32(n_units):
            unit, part = i32(0), i32(part + i32(1))
            if part == i32(parts):
                part, group, row = i32(0), i32(group + step_groups), i32(row + step_rows)
                if row >= n_rows:
                    group, row = i32(group + i32(1)), i32(row - n_rows)
        return group, row, part, unit

    @inline
    def pair_of(group, part):  # type: ignore[no-untyped-def]
        """Which of the steps' chosen experts, in the order of tokens."""
        return i32(group * i32(used) + part) if sums else group

    @inline
    def row_of(group, row, part, n_rows, expert_rows, table):  # type: ignore[no-untyped-def]
        """The row of the matrix."""
        expert = i32(shared_load_u32(table + u32(pair_of(group, part) * i32(8))))
        found = i32(expert * expert_rows + row)
        return i32(found + part * n_rows) if gated else found

    @inline
    def ask(planes, strides, n_groups, n_rows, expert_rows, table, far, steps, lane, to):  # type: ignore[no-untyped-def]
        """Start to copy the unit `far`; past the last one, commit an empty group to keep the count. Returns the unit
        that follows."""
        group, row, part, unit = far
        if group < n_groups:
            r = u64(u32(row_of(group, row, part, n_rows, expert_rows, table)))
            copy(
                to, planes[0] + r * u64(u32(strides[0])), planes[1] + r * u64(u32(strides[1])),
                planes[2] + r * u64(u32(strides[2])), planes[3] + r * u64(u32(strides[3])), unit, lane,
            )  # fmt: skip
        copy_commit()
        return after(group, row, part, unit, steps[0], steps[1], n_rows)

    def expert_matvec(codes, high, scales, supers, code_stride, high_stride, scale_stride, super_stride,
                      n_tokens, there, n_rows, expert_rows, route, route_stride,
                      x, x_stride, xl, xl_stride, norm_weight, eps,
                      bias, dst, dst_stride, plus, plus_stride, ahead, ahead_too, piece):  # type: ignore[no-untyped-def]  # fmt: skip
        tid = i32(cuda.threadIdx.x)
        lane, warp = tid & i32(31), tid >> i32(5)
        first = i32(i32(cuda.blockIdx.x) + i32(cuda.gridDim.x) * warp)
        step = i32(i32(cuda.gridDim.x) * i32(warps))
        step_groups = divided(step, n_rows)
        steps = step_groups, i32(step - step_groups * n_rows)
        memory = dynamic_shared()
        table = memory + u32(table_at)
        ring = memory + u32(SUMS) + u32(warp * i32(slots * unit_bytes))
        planes, strides = (codes, high, scales, supers), (code_stride, high_stride, scale_stride, super_stride)
        held = cuda.local.array(n_held, types.float32)
        weights = cuda.local.array(n_held, types.float32)
        if norm_here:
            read_row(norm_weight, weights)
        wait_for_previous()
        release_next()
        if there != u64(0):
            n_there = load_i32(there)
            n_tokens = n_there if n_there < n_tokens else n_tokens
        if fused:
            read_row(x, held)
        for i in range(tid, n_tokens * i32(used), i32(threads)):
            token = divided(i, i32(used))
            of = at(route + u64(u32(token)) * u64(u32(route_stride)), (i32(i) - token * i32(used)) * i32(4))
            to = table + u32(i32(i) * i32(8))
            shared_store_u32(to, load_u32(of))
            shared_store_u32(to + u32(4), load_u32(at(of, i32(4 * used))))
        sync_block()
        n_groups = n_tokens if sums else i32(n_tokens * i32(used))
        group = divided(first, n_rows)
        row = i32(first - group * n_rows)
        far = group, row, i32(0), i32(0)
        for s in range(slots):
            far = ask(
                planes, strides, n_groups, n_rows, expert_rows, table, far, steps, lane, ring + u32(s * unit_bytes)
            )
        if fused:
            if norm_here:
                norm(held, weights, eps, memory)
            write(held, memory + u32(activations_at), memory + u32(activations_at + scales_after))
            sync_block()

        total = cuda.local.array(1, types.float32)
        total[0], gate, summed = f32(0.0), f32(0.0), f32(0.0)
        part, unit, of, left = i32(0), i32(0), ring, piece
        while group < n_groups:
            wait()
            sync_warp()
            pair = pair_of(group, part)
            out = dst + u64(u32(group)) * u64(u32(dst_stride)) + u64(u32(row * i32(4)))
            own_bias, old = f32(0.0), f32(0.0)
            if unit == i32(n_units - 1) and lane == i32(0):  # on their way while we multiply
                if bias != u64(0):
                    own_bias = load_f32(at(bias, row_of(group, row, part, n_rows, expert_rows, table) * i32(4)))
                if not gated and plus != u64(0) and part == i32(parts - 1):
                    old = load_f32(plus + u64(u32(group)) * u64(u32(plus_stride)) + u64(u32(row * i32(4))))
            if fused:
                here, here_scales = memory + u32(activations_at), memory + u32(activations_at + scales_after)
                if of_rows:
                    here += u32(pair * i32(segment))
                    here_scales += u32(pair * i32(scale_segment))
            else:
                source_row = pair if of_rows else divided(pair, i32(used))
                here = x + u64(u32(source_row)) * u64(u32(x_stride))
                here_scales = xl + u64(u32(source_row)) * u64(u32(xl_stride))
            for k in range(chunks):
                item = i32((unit * i32(chunks) + i32(k)) * i32(32) + lane)
                if padded:
                    dot(of, k, item, lane, True, here, i32(0), here_scales, i32(0), total)
                else:
                    on = item < i32(n_items)
                    dot(of, k, item if on else i32(n_items - 1), lane, on, here, i32(0), here_scales, i32(0), total)
            sync_warp()  # before another unit takes this one's place
            far = ask(planes, strides, n_groups, n_rows, expert_rows, table, far, steps, lane, of)
            if far[0] >= n_groups and left > i32(0):
                if lane == i32(0):
                    share = u64(u32(first)) * u64(u32(left))
                    bring_near(ahead + share, u32(left))
                    if ahead_too != u64(0):
                        bring_near(ahead_too + share, u32(left))
                left = i32(0)
            if unit == i32(n_units - 1):
                mine = total[0] + own_bias  # lane 0's holds the bias
                total[0] = f32(0.0)
                if sums:
                    mine = fma(mine, shared_load_f32(table + u32(pair * i32(8) + i32(4))), summed)
                    summed = mine
                if part == i32(parts - 1):
                    value = warp_sum(mine)
                    summed = f32(0.0)
                    if gated:
                        value = function(warp_sum(gate), value, f32(0.0))
                    if lane == i32(0):
                        store_f32(out, value + old)
                elif gated:
                    gate = mine
            group, row, part, unit = after(group, row, part, unit, steps[0], steps[1], n_rows)
            of = ring if of == ring + u32((slots - 1) * unit_bytes) else of + u32(unit_bytes)

    return Source(expert_matvec, SIGNATURE, threads, 2)
