"""Context shift: an answer that has filled its context goes on without the oldest half of what follows the first
message.

What is kept is evaluated again, as the model would read it now. That is right for every kind of state, and costs the
evaluation of half a context for as many tokens: each generated token is read a second time, as part of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggpy.engine.request import Request
    from ggpy.text.tokenizer import Tokenizer


@dataclass
class ContextShift:
    """n_keep: tokens at the beginning of a prompt that always stay, at most half the context; None: the first message,
    where that is so short, else the tokens with which every text begins. notify: called with a line, the first time."""

    n_keep: int | None = None
    notify: Callable[[str], None] = lambda text: None
    told: bool = False

    def shift(self, request: Request, tokenizer: Tokenizer, n_ctx: int) -> int:
        """Cut a request's tokens, which its context no longer holds. Returns how many stay at the beginning."""
        n_keep = self._kept(request, tokenizer, n_ctx // 2)
        n_dropped = max((len(request.tokens) - n_keep) // 2, len(request.tokens) - n_ctx)
        request.drop(n_keep, n_dropped)
        if not self.told:
            self.told = True
            self.notify(
                f"the context of {n_ctx} tokens is full: the answer goes on without the oldest {n_dropped} after the "
                f"first {n_keep}, and likewise whenever it is full again"
            )
        return n_keep

    def _kept(self, request: Request, tokenizer: Tokenizer, most: int) -> int:
        prompt = request.prompt
        if self.n_keep is not None:
            return min(self.n_keep, len(prompt), most)
        message = next((i + 1 for i, token in enumerate(prompt[:most]) if token in tokenizer.eog), 0)
        return message or next((i for i, token in enumerate(prompt[:most]) if not tokenizer.is_control(token)), 0)
