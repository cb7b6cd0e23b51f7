"""Batches: many requests over one runtime.

`Engine.step` shows the data's way: schedule a batch (the next token of every sequence that is generating, then pieces
of prompts, up to `n_batch`), run it, choose tokens. A device that chooses tokens by itself is kept a step ahead: it
needs no word from here to go on. Knows nothing of files, templates or terminals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ggpy.choice import CHOICE, Choices, Chosen, chosen_by_last_step
from ggpy.errors import GGPYError
from ggpy.sampler import Chain
from ggpy.sampling_params import SamplingParams
from ggpy.sequence import Sequence, Slot

if TYPE_CHECKING:
    from ggpy.runtime import Integers
    from ggpy.tokenizer import Tokenizer


class RuntimeLike(Protocol):
    """What the engine asks of a runtime."""

    n_ctx: int
    n_slots: int
    n_batch: int
    n_vocab: int
    most_chosen: int  # tokens of a step that `choose` takes; 0 where there is no such way
    most_candidates: int  # that it can draw one token from
    by_kind: bool  # whether it evaluates generated tokens and prompts' in ways of their own

    def step(
        self, tokens: Integers, slots: Integers, positions: Integers, outputs: Integers, n_generated: int = 0
    ) -> NDArray[np.float32]: ...

    def choose(self, tokens: Integers, slots: Integers, positions: Integers, choices: Choices) -> Chosen: ...


@dataclass
class Batch:
    """One step's tokens: those of `pieces[i]` are the next of `sequences[i]`."""

    sequences: list[Sequence] = field(default_factory=list)
    pieces: list[list[int]] = field(default_factory=list)
    ahead: int = 0  # tokens of each sequence that the batch before is yet to choose: one, which its piece is, or none
    choices: Choices | None = None  # how the device is to choose every sequence's next token; None: here, from logits
    # logits [m, n_vocab], a row for each sequence that has no token pending any more; or every sequence's token
    result: NDArray[np.float32] | Chosen | None = None

    def __iter__(self) -> Iterator[tuple[Sequence, list[int]]]:
        return zip(self.sequences, self.pieces, strict=True)


class Engine:
    """Runs sequences over a runtime's slots. Not for several threads at once.

    chain_for: what samples faster than numpy with given parameters (resolved), or None; see `Sampler`.
    """

    def __init__(
        self,
        runtime: RuntimeLike,
        tokenizer: Tokenizer,
        chain_for: Callable[[SamplingParams], Chain | None] = lambda params: None,
    ) -> None:
        self.runtime, self._chain_for = runtime, chain_for
        self.tokenizer = tokenizer
        self.slots = [Slot(i) for i in range(runtime.n_slots)]
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.n_evaluated = 0  # tokens that went through the runtime so far
        self._clock = 0
        self._ahead: Batch | None = None  # under way already

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def sequence(self, prompt: SequenceOf[int], params: SamplingParams) -> Sequence:
        """A request for `add`: token ids and resolved parameters. Raises GGPYError where it could not run."""
        self._check(prompt, "The prompt")
        wrong = next((token for token in params.logit_bias or () if not 0 <= token < self.runtime.n_vocab), None)
        if wrong is not None:
            raise GGPYError(f"logit_bias names the token id {wrong}, but ids are 0 to {self.runtime.n_vocab - 1}.")
        return Sequence(prompt, params, self.tokenizer, self.runtime.n_ctx, self._chain_for(params))

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """End a sequence early; what its slot holds stays of use."""
        if not sequence.finished:
            sequence.finish("abort")
        self._retire(sequence)

    def step(self) -> list[Sequence]:
        """Evaluate one batch. Returns the sequences that gained a token."""
        batch, self._ahead = self._ahead or self.run(self.schedule()), None
        following = self.schedule_after(batch)
        if following is not None:
            self.run(following)
        advanced = self.postprocess(batch)
        if following is not None and not all(sequence.finished for sequence in following.sequences):
            self._ahead = following
        return advanced

    def schedule(self) -> Batch:
        """Who takes part in the next step: generating sequences first, then prompts in order of arrival."""
        while self.waiting and (slot := self._slot_for(self.waiting[0])):
            sequence = self.waiting.popleft()
            sequence.begin(slot, self._n_reusable(slot, sequence))
            self.running.append(sequence)
        batch, room, by_kind = Batch(), self.runtime.n_batch, self.runtime.by_kind
        for sequence in self.running:
            if not sequence.n_pending:  # interrupted between evaluation and choice: evaluate the last token once more
                sequence.n_computed -= 1
        for sequence in sorted(self.running, key=lambda s: not s.generating if by_kind else s.n_pending > 1):
            count = min(sequence.n_pending_of_kind if by_kind else sequence.n_pending, room)
            if count:
                batch.sequences.append(sequence)
                batch.pieces.append(sequence.tokens[sequence.n_computed : sequence.n_computed + count])
                room -= count
        if self.runtime.most_chosen:
            batch.choices = self._choices(batch)
        return batch

    def schedule_after(self, batch: Batch) -> Batch | None:
        """What follows a batch whose tokens the device chooses, if its sequences simply go on. A sequence that turns
        out to have ended has a token evaluated in vain, in a cell that its slot never claims."""
        if batch.choices is None or (self.waiting and any(slot.sequence is None for slot in self.slots)):
            return None
        going = [sequence for sequence in batch.sequences if not sequence.finished]
        if going != self.running or not all(sequence.goes_on for sequence in going):
            return None
        pieces = [[chosen_by_last_step(sequence.slot.index)] for sequence in going if sequence.slot is not None]
        following = Batch(going, pieces, ahead=1)
        following.choices = self._choices(following)
        return following if following.choices is not None else None

    def _choices(self, batch: Batch) -> Choices | None:
        """How the device is to choose the batch's tokens; None where it cannot, for one of them at least."""
        if not 0 < len(batch.sequences) <= self.runtime.most_chosen:
            return None
        rows = []
        for sequence in batch.sequences:
            if not batch.ahead and (sequence.n_pending > 1 or (self.runtime.by_kind and not sequence.generating)):
                return None
            row = sequence.sampler.choice(self.runtime.n_vocab, self.runtime.most_candidates, batch.ahead)
            if row is None:
                return None
            rows.append(row)
        return np.array(rows, CHOICE)

    def run(self, batch: Batch) -> Batch:
        """Have the batch evaluated: its `result` is there, or on its way."""
        if not batch.sequences:
            return batch
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        outputs: list[int] = []
        for sequence, piece in batch:
            slot, start = sequence.slot, sequence.n_computed + batch.ahead
            assert slot is not None, "a scheduled sequence has a slot"
            # From here the cells are rewritten: should the step be interrupted, the slot must not claim them.
            slot.truncate(start)
            tokens += piece
            slots += [slot.index] * len(piece)
            positions += range(start, start + len(piece))
            if len(piece) == sequence.n_pending:
                outputs.append(len(tokens) - 1)
        if batch.choices is None:
            n_generated = sum(sequence.generating for sequence in batch.sequences) if self.runtime.by_kind else 0
            batch.result = self.runtime.step(tokens, slots, positions, outputs, n_generated)
        else:
            batch.result = self.runtime.choose(tokens, slots, positions, batch.choices)
        self.n_evaluated += len(tokens)
        return batch

    def postprocess(self, batch: Batch) -> list[Sequence]:
        """Note what the cache now holds, and give every sequence whose last token was evaluated its next one. Those
        that ended while the batch was under way get nothing."""
        result = batch.result
        chosen = () if result is None else result if isinstance(result, np.ndarray) else result.tokens()
        complete = []
        for sequence, piece in batch:
            start, end = sequence.n_computed, sequence.n_computed + len(piece)
            if end == len(sequence.tokens):
                complete.append(sequence)
            if not sequence.finished:
                assert sequence.slot is not None
                sequence.slot.extend(sequence.tokens[start:end], of_prompt=not sequence.generating)
                sequence.n_computed = end
        advanced = []
        for sequence, one in zip(complete, chosen, strict=True):
            if sequence.finished:
                continue
            try:
                sequence.advance(one)
            except GGPYError:
                assert sequence.slot is not None
                sequence.slot.truncate(0)  # whatever gave such logits is not to be built upon
                sequence.finish("error")
                self._retire(sequence)
                raise
            advanced.append(sequence)
            if sequence.finished:
                self._retire(sequence)
        return advanced

    def logits(self, tokens: SequenceOf[int]) -> NDArray[np.float32]:
        """The logits after every token, float32 [n_tokens, n_vocab].

        Borrows a slot: a free one, else that of the newest running sequence, which then evaluates its tokens again.
        """
        self._check(tokens, "The sequence of tokens")
        self._ahead = None  # its sequences may lose their slots; those tokens will be chosen again
        free = [slot for slot in self.slots if slot.sequence is None]
        if free:
            slot = min(free, key=lambda s: s.last_used)
            self._touch(slot)
        else:
            displaced = self.running.pop()
            assert displaced.slot is not None
            slot, displaced.slot = displaced.slot, None
            slot.sequence, displaced.n_computed = None, 0
            self.waiting.appendleft(displaced)
        n, n_batch = len(tokens), self.runtime.n_batch
        ids = [int(token) for token in tokens]
        result = np.empty((n, self.runtime.n_vocab), np.float32)
        slot.truncate(0)
        for start in range(0, n, n_batch):
            end = min(start + n_batch, n)
            piece, count = ids[start:end], end - start
            result[start:end] = self.runtime.step(piece, [slot.index] * count, range(start, end), range(count))
            slot.extend(piece, of_prompt=True)
            self.n_evaluated += count
        return result

    def _slot_for(self, sequence: Sequence) -> Slot | None:
        """The free slot that shares the longest prefix; of equal ones the longest unused."""
        free = [slot for slot in self.slots if slot.sequence is None]
        return max(free, key=lambda s: (self._n_reusable(s, sequence), -s.last_used), default=None)

    def _n_reusable(self, slot: Slot, sequence: Sequence) -> int:
        """How many of a slot's cells hold what the sequence begins with, as it would be evaluated."""
        n = slot.common_prefix(sequence.tokens)
        return min(n, slot.n_prompt, len(sequence.prompt)) if self.runtime.by_kind else n

    def _retire(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self._touch(sequence.slot)
            sequence.slot.sequence = None
            sequence.slot = None
        if sequence in self.running:
            self.running.remove(sequence)
        if sequence in self.waiting:
            self.waiting.remove(sequence)

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.last_used = self._clock

    def _check(self, tokens: SequenceOf[int], what: str) -> None:
        n_vocab, n_ctx = self.runtime.n_vocab, self.runtime.n_ctx
        if not len(tokens):
            raise GGPYError(f"{what} is empty; give at least one token.")
        if len(tokens) > n_ctx:
            raise GGPYError(
                f"{what} has {len(tokens)} tokens, but the context holds {n_ctx}; "
                "shorten it or ask for a larger context."
            )
        wrong = next((token for token in tokens if not 0 <= token < n_vocab), None)
        if wrong is not None:
            raise GGPYError(
                f"{what} holds the token id {wrong}, but the model's vocabulary has ids 0 to {n_vocab - 1}."
            )
