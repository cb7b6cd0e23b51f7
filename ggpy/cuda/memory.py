"""GPU memory that a model takes, and how much is free. Imports no numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggpy.cuda.driver import Device, device_index
from ggpy.cuda.lower import HeadProduct, Product, lower, weight_groups
from ggpy.cuda.queue_experts import order_bytes
from ggpy.cuda.slot_states import carried_bytes, carried_states
from ggpy.cuda.weights.cache_layout import CacheLayout
from ggpy.cuda.weights.layout import round_up
from ggpy.cuda.weights.weights import layout_of
from ggpy.graph.state import KVState

if TYPE_CHECKING:
    from ggpy.graph.operations import Attention
    from ggpy.graph.program import Program
    from ggpy.graph.tensor_parallel import Rank


def available(device: str) -> int:
    """Bytes free on the GPU that `device` names."""
    gpu = Device(device_index(device))
    try:
        return gpu.memory()[0]
    finally:
        gpu.close()


def weight_bytes(program: Program) -> int:
    """Bytes that the weights of a program, or of a part of one, take."""
    return sum(layout_of(group).n_bytes for group in weight_groups(lower(program)))


def working_bytes(program: Program, n_batch: int) -> int:
    """Bytes of working memory of steps of `n_batch` tokens; no part of the program needs more."""
    steps = lower(program)
    products = [step for step in steps if isinstance(step, Product)]
    several = [product for product in products if len(product.linears) > 1]
    wide = {product.place: product.n_used * round_up(sum(product.widths), 32) for product in several}
    widest = max(product.rows_read * product.activations.srcs[0].n_cols for product in products)
    widest = max(widest, *(step.source.n_cols for step in steps if isinstance(step, HeadProduct)), 0)
    columns = sum(b.n_used * round_up(b.n_cols, 32) for b in program.buffers if not b.outputs_only) + sum(wide.values())
    # the last for logits, angles and the driver
    return n_batch * (4 * columns + 4 * widest) + sum(order_bytes(steps, n_batch)) + (256 << 20)


def rank_bytes(program: Program, rank: Rank, n_batch: int) -> int:
    """Bytes that a rank's share of a program takes without the cache: weights, working memory, sums over ranks."""
    from ggpy.cuda.exchange import Exchange
    from ggpy.cuda.queue import MATVEC_TOKENS

    n_cols = next(
        step.linears[0].dst.n_cols
        for step in lower(program)
        if isinstance(step, Product) and step.partial and step.linears[0].dst
    )
    sums = Exchange.n_bytes(rank, n_cols, MATVEC_TOKENS, n_batch)
    return weight_bytes(program) + working_bytes(program, n_batch) + sums


def cache_layout(a: Attention, n_ctx: int, n_slots: int, n_batch: int, cache_type: str = "f16") -> CacheLayout:
    """The layout of the cache of that type (`ggpy.runtime.cache_types`) that an attention reads. Where tokens see later
    ones their sequences are needed for one step alone, side by side in one slot, and layers share one memory."""
    if a.causal:
        return CacheLayout.of(a, n_slots, n_ctx, cache_type)
    return CacheLayout.of(a, 1, KVState.step_cells(n_slots, n_batch), cache_type)


def cache_bytes(
    attentions: Sequence[Attention], n_ctx: int, n_slots: int, n_batch: int, cache_type: str = "f16"
) -> int:
    """Bytes of the keys and values of some layers' attentions."""
    layouts = [(a, cache_layout(a, n_ctx, n_slots, n_batch, cache_type)) for a in attentions if a.state]
    own, shared = [cache for a, cache in layouts if a.causal], {cache for a, cache in layouts if not a.causal}
    return sum(cache.key_bytes + cache.value_bytes for cache in (*own, *shared))


def slot_carried_bytes(program: Program) -> dict[int, int]:
    """Bytes of what a slot carries on beside keys and values, of one length, by layer."""
    found: dict[int, int] = {}
    for state in carried_states(program.states):
        found[state.layer] = found.get(state.layer, 0) + carried_bytes(state)
    return found
