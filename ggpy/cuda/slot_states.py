"""The state of every slot on a GPU: keys and values, and what convolutions and recurrent layers carry on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ggpy.graph.state import ConvState, KVState, RecurrentState, State

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device
    from ggpy.cuda.weights.cache_layout import CacheLayout
    from ggpy.graph.program import Program

CarriedState = ConvState | RecurrentState
Part = tuple[int, int]  # an address, and bytes
LENGTHS = 2  # of a sequence, of which a slot has what is carried on


def carried_states(states: Sequence[State]) -> list[CarriedState]:
    """The states that stand for one length of a sequence."""
    return [state for state in states if not isinstance(state, KVState)]


def carried_bytes(state: CarriedState) -> int:
    """Bytes of one slot's state of that kind, of one length."""
    return 4 * state.n_floats


class SlotStates:
    """Memory of the slots' states.

    keys, values: addresses by layer, laid out as `caches` say, the whole context of each slot, or of the sequences of a
    step where tokens see later ones. Of what is carried on, a slot has two places: the state of n tokens is in the
    first where n is even, else in the second. So a step of one token leaves the state that it began with: where it was
    started ahead, in vain, the slot stands as it stood.
    """

    def __init__(self, device: Device, program: Program, caches: Mapping[int, CacheLayout], n_slots: int) -> None:
        self._device = device
        self.keys: dict[int, int] = {}
        self.values: dict[int, int] = {}
        shared: dict[CacheLayout, int] = {}  # by layouts of what a step alone needs, which layers share, one of these
        for a in program.attentions:
            cache = caches[a.layer]
            if not a.causal and cache in shared:
                self.keys[a.layer], self.values[a.layer] = self.keys[shared[cache]], self.values[shared[cache]]
            elif a.state:
                self.keys[a.layer] = device.allocate(cache.key_bytes, zero=True)
                self.values[a.layer] = device.allocate(cache.value_bytes, zero=True)
                shared[cache] = a.layer
        self._caches = {a.layer: caches[a.layer] for a in program.attentions if a.state and a.causal}
        self._carried = {
            state: device.allocate(n_slots * LENGTHS * carried_bytes(state), zero=True)
            for state in carried_states(program.states)
        }

    @property
    def carries(self) -> bool:
        """True where some state stands for one length alone."""
        return bool(self._carried)

    def carried(self, state: State) -> tuple[int, int]:
        """The address of the first slot's state of that kind, and bytes from place to place."""
        assert not isinstance(state, KVState)
        return self._carried[state], carried_bytes(state)

    def _caches_of(self, slot: int) -> Iterator[Part]:
        """Each part of a slot's keys and values."""
        for layer, cache in self._caches.items():
            yield self.keys[layer] + slot * cache.slot_key_bytes, cache.slot_key_bytes
            if not cache.latent:
                yield self.values[layer] + slot * cache.slot_value_bytes, cache.slot_value_bytes

    def _carried_of(self, slot: int, n: int) -> Iterator[Part]:
        """Each part of what a slot of n tokens carries on."""
        for state, address in self._carried.items():
            n_bytes = carried_bytes(state)
            yield address + (slot * LENGTHS + n % LENGTHS) * n_bytes, n_bytes

    def copy(self, source: int, target: int) -> None:
        """Make a slot's state that of another one, whatever its length."""
        to_parts, of_parts = (
            [*self._caches_of(slot), *(part for n in range(LENGTHS) for part in self._carried_of(slot, n))]
            for slot in (target, source)
        )
        for (to, n_bytes), (of, _) in zip(to_parts, of_parts, strict=True):
            self._device.copy(to, of, n_bytes)

    def save(self, slot: int, n: int) -> list[np.ndarray]:
        """A copy of a slot's state of n tokens on the host, keys and values of its whole context: uint8 arrays."""
        return self._download([*self._caches_of(slot), *self._carried_of(slot, n)])

    def load(self, slot: int, kept: Iterator[np.ndarray], n: int) -> None:
        """Put back what `save` gave of n tokens, into any slot. Raises ValueError where an array is of another size."""
        self._upload([*self._caches_of(slot), *self._carried_of(slot, n)], kept)

    def checkpoint(self, slot: int, n: int) -> list[np.ndarray]:
        """A copy of what a slot of n tokens cannot be cut back from: convolutions' inputs and matrices. Keys and values
        can be cut back anywhere."""
        return self._download([*self._carried_of(slot, n)])

    def restore(self, slot: int, kept: Iterator[np.ndarray], n: int) -> None:
        """Put back what `checkpoint` gave of n tokens."""
        self._upload([*self._carried_of(slot, n)], kept)

    def _download(self, parts: list[Part]) -> list[np.ndarray]:
        kept = []
        for address, n_bytes in parts:
            kept.append(np.empty(n_bytes, np.uint8))
            self._device.download(kept[-1].ctypes.data, address, n_bytes)
        self._device.synchronize()
        return kept

    def _upload(self, parts: list[Part], kept: Iterator[np.ndarray]) -> None:
        arrays = [(next(kept), *part) for part in parts]
        if any(array.nbytes != n_bytes for array, _, n_bytes in arrays):
            raise ValueError("keys and values of another context")
        for array, address, n_bytes in arrays:
            self._device.upload(address, array.ctypes.data, n_bytes)
        self._device.synchronize()
