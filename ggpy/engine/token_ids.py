"""A check of token ids that callers give."""

from __future__ import annotations

from collections.abc import Sequence

from ggpy.errors import GGPYError


def check_token_ids(ids: Sequence[int], n_ctx: int, n_vocab: int, what: str) -> None:
    """Raise GGPYError for a text that a model cannot take. what: its name, the first words of the sentence."""
    if not len(ids):
        raise GGPYError(f"{what} is empty; give at least one token.")
    if len(ids) > n_ctx:
        raise GGPYError(
            f"{what} has {len(ids)} tokens, but the context holds {n_ctx}; shorten it or ask for a larger context."
        )
    if min(ids) < 0 or max(ids) >= n_vocab:
        wrong = next(token for token in ids if not 0 <= token < n_vocab)
        raise GGPYError(f"{what} holds the token id {wrong}, but the model's vocabulary has ids 0 to {n_vocab - 1}.")
