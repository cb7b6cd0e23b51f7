"""The rows for chosen experts of many tokens put in order, those of one expert side by side, and cut into tiles: what
products of many tokens (`ggpy.cuda.ops.matmul`) go by, without the host knowing what was chosen."""

from __future__ import annotations

from numba import cuda

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.device import at, divided, i32, u32, u64
from ggpy.cuda.isa.instructions import (
    dynamic_shared,
    load_i32,
    release_next,
    shared_add,
    shared_load_u32,
    shared_store_u32,
    store_i32,
    sync_block,
    wait_for_previous,
)

THREADS = 1024


def source() -> Source:
    """group_experts(route, route_stride, n_used, n_tokens, there, n_experts, tile, order, tiles), one block, 8 shared
    bytes an expert.

    route: rows as `route` makes them, of `n_tokens`, or of as many as `there` points at, where that is not 0 and they
    are fewer. order: int32, row n_used * token + j for each chosen expert, by expert. tiles: int32, how many there are;
    after 16 bytes, 16 of each, of up to `tile` rows: its expert, the first place in `order`, how many.

    The order within an expert is that in which threads come. Nothing depends on it: every row is multiplied by itself.
    """

    def group_experts(route, route_stride, n_used, n_tokens, there, n_experts, tile, order, tiles):  # type: ignore[no-untyped-def]
        release_next()
        wait_for_previous()
        e, memory = i32(cuda.threadIdx.x), dynamic_shared()
        counts, following = memory, memory + u32(n_experts * i32(4))
        if there != u64(0):
            n_there = load_i32(there)
            n_tokens = n_there if n_there < n_tokens else n_tokens
        n = i32(n_tokens * n_used)
        if e < n_experts:
            shared_store_u32(counts + u32(e * i32(4)), u32(0))
        sync_block()
        for i in range(e, n, i32(THREADS)):
            token = divided(i, n_used)
            of = at(route + u64(u32(token)) * u64(u32(route_stride)), (i32(i) - token * n_used) * i32(4))
            shared_add(counts + u32(load_i32(of) * i32(4)), u32(1))
        sync_block()
        if e < n_experts:
            first, first_tile = i32(0), i32(0)
            for k in range(e):
                count = i32(shared_load_u32(counts + u32(i32(k) * i32(4))))
                first += count
                first_tile += divided(count + tile - i32(1), tile)
            count = i32(shared_load_u32(counts + u32(e * i32(4))))
            shared_store_u32(following + u32(e * i32(4)), u32(first))
            n_tiles = divided(count + tile - i32(1), tile)
            for k in range(n_tiles):
                to, left = at(tiles, (first_tile + i32(k) + i32(1)) * i32(16)), count - i32(k) * tile
                store_i32(to, e)
                store_i32(at(to, i32(4)), first + i32(k) * tile)
                store_i32(at(to, i32(8)), tile if tile < left else left)
            if e == n_experts - i32(1):
                store_i32(tiles, first_tile + n_tiles)
        sync_block()
        for i in range(e, n, i32(THREADS)):
            token = divided(i, n_used)
            of = at(route + u64(u32(token)) * u64(u32(route_stride)), (i32(i) - token * n_used) * i32(4))
            place = shared_add(following + u32(load_i32(of) * i32(4)), u32(1))
            store_i32(at(order, i32(place) * i32(4)), i32(i))

    return Source(group_experts, "u64 i32 i32 i32 u64 i32 i32 u64 u64", THREADS)
