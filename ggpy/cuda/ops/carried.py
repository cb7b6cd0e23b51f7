"""Functions that kernels share which carry a slot's state on from token to token: a step's runs of tokens, and vectors
dealt to a few lanes."""

from __future__ import annotations

from typing import Any

from ggpy.cuda.isa.device import at, f32, i32, inline, u32, u64
from ggpy.cuda.isa.instructions import fresh_f32, fresh_i32, load_f32, store_f32, swap_f32
from ggpy.cuda.weights.layout import STATE_LANES as LANES


@inline
def segment_of(segments, s):  # type: ignore[no-untyped-def]
    """Slot, first token, number of tokens (0: of a step with fewer runs) and position of the first, of run s in int32
    [n][4] at `segments`; they are there before a step's first kernel."""
    at = segments + u64(s) * u64(16)
    slot, first, count, position = (
        fresh_i32(at),
        fresh_i32(at + u64(4)),
        fresh_i32(at + u64(8)),
        fresh_i32(at + u64(12)),
    )
    return u64(u32(slot)), u64(u32(first)), count, position


@inline
def place_of(state, place_bytes, slot, n):  # type: ignore[no-untyped-def]
    """The address of a slot's state of n tokens (`ggpy.cuda.slot_states`)."""
    return state + (slot * u64(2) + u64(u32(n) & u32(1))) * place_bytes


@inline
def lanes_sum(x):  # type: ignore[no-untyped-def]
    """The sum over LANES lanes, in each of them."""
    for mask in (4, 2, 1):
        x += swap_f32(x, u32(mask))
    return x


def dealt(n: int) -> tuple[int, Any, Any, Any]:
    """(count, `read(address, lane, numbers)`, `read_fresh`, the same before `wait_for_previous`, and
    `write(address, lane, numbers)`): n floats side by side, of which a lane has every LANES-th from its own on, `count`
    at most; zeros after the last."""
    count, whole = -(-n // LANES), n % LANES == 0

    def reader(load: Any) -> Any:
        @inline
        def read(address, lane, numbers):  # type: ignore[no-untyped-def]
            for r in range(count):
                numbers[r] = f32(0.0)
                if whole or lane + i32(LANES * r) < i32(n):
                    numbers[r] = load(at(address, (lane + i32(LANES * r)) * i32(4)))

        return read

    @inline
    def write(address, lane, numbers):  # type: ignore[no-untyped-def]
        for r in range(count):
            if whole or lane + i32(LANES * r) < i32(n):
                store_f32(at(address, (lane + i32(LANES * r)) * i32(4)), numbers[r])

    return count, reader(load_f32), reader(fresh_f32), write
