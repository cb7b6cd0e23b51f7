"""Thoughts before an answer, seen token by token: how many there were, that a grammar waits for their end, and that
they end when their budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

#: Tokens that may come after the budget's last to complete a character.
_MOST_TO_COMPLETE = 3


class ThoughtWatch:
    """begin, end: what stands around thoughts, as bytes. closing: tokens that end them and lead over to the answer.
    inside: the prompt ends within thoughts. anywhere: they may begin after other text. budget: the tokens of thoughts
    after which the closing ones follow; None: never. text_of: a token's bytes, those of control tokens too. ends:
    tokens that end a reply, in whose place thoughts are closed where a grammar waits for what follows."""

    def __init__(
        self,
        begin: bytes,
        end: bytes,
        closing: Sequence[int],
        text_of: Callable[[int], bytes],
        inside: bool,
        anywhere: bool = False,
        budget: int | None = None,
        ends: Collection[int] = (),
    ) -> None:
        self._begin, self._end, self._closing = begin, end, list(closing)
        self._text_of = text_of
        self._anywhere = anywhere
        self._budget = budget
        self._ends = ends
        self._tail = b""  # as much of the text as a marker may have begun in
        self._to_force: list[int] = []
        self._n_over = 0
        self._over = not (inside or begin)  # no thoughts can follow
        self.inside = inside
        self.n_tokens = 0
        self.cut = False  # the budget ended them
        self._close_if_spent()

    @property
    def chooses(self) -> bool:
        """True while it may have a token forced, so that the next one is not a device's to choose."""
        return self._budget is not None and not self._over

    def forced(self) -> int | None:
        """The token that has to come next."""
        return self._to_force[0] if self._to_force else None

    def instead_of(self, token: int) -> int:
        """The token that comes in the place of a chosen one, where a grammar waits for the end of thoughts."""
        if not self.inside or token not in self._ends or not self._closing:
            return token
        self._to_force = list(self._closing)
        return self._to_force[0]

    def accept(self, token: int) -> None:
        """Go on after a token that was chosen or forced."""
        if self._over:
            return
        if self._to_force:
            self._to_force = self._to_force[1:] if self._to_force[0] == token else []
            if not self._to_force:
                self._leave()
            return
        self._tail = (self._tail if self.inside or self._anywhere else self._tail.lstrip()) + self._text_of(token)
        if self.inside:
            self.n_tokens += 1
            at = self._tail.find(self._end)
            if at >= 0:
                self._tail = self._tail[at + len(self._end) :]
                self._leave()
            else:
                self._tail = self._tail[-len(self._end) - 3 :]
                self._close_if_spent()
            return
        at = self._tail.find(self._begin)
        if at >= 0 and (self._anywhere or not self._tail[:at].strip()):
            self.inside, self._tail = True, b""
            self._close_if_spent()
        elif self._anywhere:
            self._tail = self._tail[-len(self._begin) :]
        elif not self._begin.startswith(self._tail.strip()):
            self._over = True

    def _leave(self) -> None:
        self.inside = False
        self._over = not self._anywhere
        self._tail = b""

    def _close_if_spent(self) -> None:
        if not self.inside or self._budget is None or self.n_tokens < self._budget:
            return
        if _incomplete(self._tail) and self._n_over < _MOST_TO_COMPLETE:
            self._n_over += 1
        else:
            self._to_force, self.cut = list(self._closing), True


def _incomplete(text: bytes) -> bool:
    """True where a text ends within a character."""
    for back, byte in enumerate(reversed(text[-4:])):
        if byte >= 0xC0:
            return (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) > back + 1
        if byte < 0x80:
            return False
    return False
