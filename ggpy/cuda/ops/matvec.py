"""Products of a packed matrix with up to 8 tokens: what decoding is made of, bound by how fast weights are read.

A warp takes a row, a lane every 32nd block of it. Weights come through shared memory, some units ahead of the one being
multiplied (`ggpy.cuda.weights.layout.MatvecShape`). Half of the first ones are asked for before the kernel waits for
the one before it, the others once that one has ended: memory stays busy while activations are made.

A warp that has asked for its last weights prefetches a piece of those that the next kernel reads into the L2 cache
(`ggpy.cuda.l2_prefetch`).

inputs   "ready": activations as the kernel `activations` made them; "norm": one row of float32, normalised here;
         "plain": the same without a norm; "partsNxD": N parts of attention for each head of D columns, joined here. All
         but "ready" are for one token, and every block of threads does it again for itself, which is cheaper than
         another kernel.
outputs  "rows": dst = product + bias (+ dst); "swiglu": rows r and r + half_rows are gate and up, dst silu(gate) * up;
         "pushN": a partial product, sent to N ranks (`ggpy.cuda.ops.all_reduce`): dst is the table of their addresses,
         and `accumulate` the number of the sum.
"""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, f32, i32, inline, u32, u64, warp_sum
from ggpy.cuda.isa.instructions import (
    bring_near,
    copy_commit,
    copy_wait,
    dynamic_shared,
    exp2,
    load_f32,
    reciprocal,
    release_next,
    store_f32,
    sync_block,
    sync_warp,
    wait_for_previous,
)
from ggpy.cuda.ops.all_reduce import epoch, sender
from ggpy.cuda.ops.row_product import row_product
from ggpy.cuda.weights.activations import norm_function, row_reader, writer
from ggpy.cuda.weights.layout import SUMS, MatvecShape
from ggpy.quant.formats import PACKED

SIGNATURE = (
    "u64 u64 u64 u64 i32 i32 i32 i32 "  # codes, high, scales, supers and their strides
    "i32 i32 "  # rows of the result, half_rows
    "u64 i32 u64 i32 u64 f32 "  # x (codes), its stride; scales of x, their stride; norm weight, eps
    "u64 u64 i32 i32 u64 "  # bias or 0, dst, dst_stride, accumulate, epochs
    "u64 u64 i32"  # what will be read next, in one place or two (or 0), and how much of each is a warp's to ask for
)


def source(name: str, n_cols_: str, tokens_: str, inputs: str, outputs: str, ring: str) -> Source:
    """matvec.TYPE.COLUMNS.TOKENS.INPUTS.OUTPUTS.RING: see the module; MatvecShape has its threads and memory."""
    p, n_cols, tokens = PACKED[name], int(n_cols_), int(tokens_)
    shape = MatvecShape(p, n_cols, tokens, int(ring))
    fused, norm_here = inputs != "ready", inputs == "norm"
    pair = outputs == "swiglu"
    ranks = int(outputs[4:]) if outputs.startswith("push") else 0
    copy, dot = row_product(shape, fused, shape.padded_blocks if fused else shape.layout.n_blocks)
    n_items, chunks, n_units = shape.n_items, shape.chunks, shape.n_units
    slots, unit_bytes, activations_at = shape.slots, shape.unit_bytes, shape.activations_at
    threads, warps = shape.threads, shape.threads // 32
    # Units that are asked for while the kernel ahead is at work; the others when it has ended, as the memory would else
    # have nothing to do until activations are made.
    early = slots // 2
    # A single token's activations lie in shared memory with zeros after them, as far as the last unit reaches.
    padded = n_items % (32 * chunks) == 0 or (fused and not p.is_float)
    wait = copy_wait(slots - 1)
    splits, head_dim = map(int, inputs[5:].split("x")) if inputs.startswith("parts") else (0, 0)
    n_each, read_row = row_reader(n_cols, threads, splits, head_dim)
    n_held = 4 * n_each
    _, read_weights = row_reader(n_cols, threads)
    norm = norm_function(n_cols, threads)
    write = writer(n_cols, threads, "f32" if p.is_float else "q8", True, shape.padded_blocks)
    scales_after = 32 * shape.padded_blocks
    send = sender(ranks)

    @inline
    def after(row, second, unit, step):  # type: ignore[no-untyped-def]
        """The unit that follows: of this row, of its other half, or of the warp's next row."""
        unit = i32(unit + i32(1))
        if unit == i32(n_units):
            unit = i32(0)
            if pair:
                second = not second
            if not second:
                row = i32(row + step)
        return row, second, unit

    @inline
    def ask(planes, strides, half_rows, n_rows, far, step, lane, to):  # type: ignore[no-untyped-def]
        """Start to copy the unit `far`; past the last one, commit an empty group to keep the count. Returns the unit
        that follows."""
        row, second, unit = far
        if row < n_rows:
            r = u64(u32(row + half_rows)) if second else u64(u32(row))
            copy(
                to, planes[0] + r * u64(u32(strides[0])), planes[1] + r * u64(u32(strides[1])),
                planes[2] + r * u64(u32(strides[2])), planes[3] + r * u64(u32(strides[3])), unit, lane,
            )  # fmt: skip
        copy_commit()
        return after(row, second, unit, step)

    def matvec(codes, high, scales, supers, code_stride, high_stride, scale_stride, super_stride,
               n_rows, half_rows, x, x_stride, xl, xl_stride, norm_weight, eps,
               bias, dst, dst_stride, accumulate, epochs, ahead, ahead_too, piece):  # type: ignore[no-untyped-def]  # fmt: skip
        tid = i32(cuda.threadIdx.x)
        lane, warp = tid & i32(31), tid >> i32(5)
        # Rows are dealt out block by block, so that every block has as many, and all read near each other.
        row = i32(i32(cuda.blockIdx.x) + i32(cuda.gridDim.x) * warp)
        step = i32(i32(cuda.gridDim.x) * i32(warps))
        memory = dynamic_shared()
        ring = memory + u32(SUMS) + u32(warp * i32(slots * unit_bytes))
        planes, strides = (codes, high, scales, supers), (code_stride, high_stride, scale_stride, super_stride)
        # Weights depend on no kernel before: have some under way while that one ends.
        far = row, False, i32(0)
        for s in range(early):
            far = ask(planes, strides, half_rows, n_rows, far, step, lane, ring + u32(s * unit_bytes))
        if fused:
            held = cuda.local.array(n_held, types.float32)
            weights = cuda.local.array(n_held, types.float32)
            if norm_here:
                read_weights(norm_weight, weights)
            wait_for_previous()
            release_next()  # not sooner: the weights of the kernel after this one would be in the way of this one's
            read_row(x, held)
            for s in range(early, slots):  # while activations are made
                far = ask(planes, strides, half_rows, n_rows, far, step, lane, ring + u32(s * unit_bytes))
            if norm_here:
                norm(held, weights, eps, memory)
            here = memory + u32(activations_at)
            here_scales = here + u32(scales_after)
            write(held, here, here_scales)
            sync_block()
        else:
            wait_for_previous()
            release_next()
            for s in range(early, slots):
                far = ask(planes, strides, half_rows, n_rows, far, step, lane, ring + u32(s * unit_bytes))
            here, here_scales = x, xl

        total = cuda.local.array(tokens, types.float32)
        gate = cuda.local.array(tokens, types.float32)
        for t in range(tokens):
            total[t], gate[t] = f32(0.0), f32(0.0)
        second, unit, of, left = False, i32(0), ring, piece
        while row < n_rows:
            wait()
            sync_warp()
            out = dst + u64(u32(lane)) * u64(u32(dst_stride)) + u64(u32(row * i32(4)))
            first_bias, second_bias, old = f32(0.0), f32(0.0), f32(0.0)
            if unit == i32(n_units - 1) and second == pair and lane < i32(tokens):  # on their way while we multiply
                if bias != u64(0):
                    first_bias = load_f32(at(bias, row * i32(4)))
                    if pair:
                        second_bias = load_f32(at(bias, (row + half_rows) * i32(4)))
                if not ranks and accumulate != i32(0):
                    old = load_f32(out)
            for k in range(chunks):
                item = i32((unit * i32(chunks) + i32(k)) * i32(32) + lane)
                if padded:
                    dot(of, k, item, lane, True, here, x_stride, here_scales, xl_stride, total)
                else:
                    on = item < i32(n_items)
                    dot(
                        of, k, item if on else i32(n_items - 1), lane, on, here, x_stride, here_scales, xl_stride, total
                    )
            sync_warp()  # before another unit takes this one's place
            far = ask(planes, strides, half_rows, n_rows, far, step, lane, of)
            if far[0] >= n_rows and left > i32(0):
                if lane == i32(0):
                    share = u64(u32(i32(cuda.blockIdx.x) + i32(cuda.gridDim.x) * warp)) * u64(u32(left))
                    bring_near(ahead + share, u32(left))
                    if ahead_too != u64(0):
                        bring_near(ahead_too + share, u32(left))
                left = i32(0)
            if unit == i32(n_units - 1):
                if pair and not second:
                    for t in range(tokens):
                        gate[t], total[t] = total[t], f32(0.0)
                else:
                    value, gated = f32(0.0), f32(0.0)
                    for t in range(tokens):
                        summed = warp_sum(total[t])
                        if pair:
                            other = warp_sum(gate[t])
                            if lane == i32(t):
                                gated = other
                        if lane == i32(t):
                            value = summed
                        total[t] = f32(0.0)
                    if lane < i32(tokens):
                        if pair:
                            gated += first_bias
                            value += second_bias
                            value *= gated * reciprocal(f32(1.0) + exp2(gated * f32(-1.4426950408889634)))
                        else:
                            value += first_bias
                        if ranks:
                            send(dst, lane * dst_stride + row * i32(8), value, epoch(epochs, accumulate))
                        else:
                            store_f32(out, value + old)
            row, second, unit = after(row, second, unit, step)
            of = ring if of == ring + u32((slots - 1) * unit_bytes) else of + u32(unit_bytes)

    return Source(matvec, SIGNATURE, threads, 2)
