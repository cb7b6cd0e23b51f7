"""The choice of tokens after a step's logits: its launches, and the memory it needs between steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ggpy.cuda.ops.sample_layout import MAX_TOP_K, PEAK_BLOCKS, PICK_SHARED, SEGMENTS
from ggpy.cuda.working_memory import Place

if TYPE_CHECKING:
    from ggpy.cuda.driver import Device, Event

IN_FLIGHT = 2  # steps under way whose tokens nobody has looked at


class TokensInFlight:
    """Tokens of a step in flight (`ggpy.sampling.sample_spec.SampledTokens`), to be read before the step after the next
    is queued."""

    def __init__(self, device: Device, done: Event, answers: np.ndarray) -> None:
        self._device, self._done, self._answers = device, done, answers

    def tokens(self) -> list[int]:
        self._device.use()  # whoever asks may be in another thread than whoever queued the step
        self._done.wait()
        found: list[int] = self._answers.tolist()
        return found


class DeviceSampler:
    """Sampler on the GPU, of up to `most` rows at a time, with tokens of up to `n_slots` slots."""

    max_top_k = MAX_TOP_K

    def __init__(self, device: Device, n_vocab: int, n_slots: int, most: int) -> None:
        self._device, self.n_vocab = device, n_vocab
        self.chosen = device.allocate(4 * n_slots, zero=True)  # int32 [slot]: the last token chosen for each
        self._peaks = device.allocate(4 * SEGMENTS * most)
        self._answers_at, buffer = device.page_locked(4 * IN_FLIGHT * most)
        self._answers = np.frombuffer(buffer, np.int32).reshape(IN_FLIGHT, most)
        self._stride = 4 * most

    @staticmethod
    def kernel_names(n_vocab: int) -> list[str]:
        return [f"sample.peaks.{n_vocab}", f"sample.pick.{n_vocab}"]

    def queue(self, rows: int, logits: Place, inputs: Callable[[str], int], header: int) -> None:
        """Queue the choice of one token a row; `header`[0] says how many of the rows there are, [1] is `place`."""
        peaks, pick = (self._device.kernel(name) for name in self.kernel_names(self.n_vocab))
        peaks.launch((PEAK_BLOCKS, rows), header, inputs("specs"), *logits, self._peaks, dependent=True)
        pick.launch(
            rows, header, inputs("specs"), inputs("slots"), *logits, self._peaks, self.chosen, self._answers_at,
            shared=PICK_SHARED, dependent=True,
        )  # fmt: skip

    def place(self, turn: int) -> int:
        """Offset in bytes at which the kernel writes in `answers`."""
        return turn * self._stride

    def answers(self, turn: int, n: int, done: Event) -> TokensInFlight:
        return TokensInFlight(self._device, done, self._answers[turn, :n])
