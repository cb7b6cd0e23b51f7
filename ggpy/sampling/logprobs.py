"""Log-probabilities of tokens by a model's own logits, in the shape in which vLLM gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ggpy.sampling.stages import Floats, largest

if TYPE_CHECKING:
    from ggpy.text.tokenizer import Tokenizer


class Logprob(NamedTuple):
    """A token's log-probability: the natural logarithm, its rank (1: no token is likelier) and the token's text."""

    logprob: float
    rank: int
    decoded_token: str


def logprobs_of(logits: Floats, token: int, k: int, tokenizer: Tokenizer) -> dict[int, Logprob]:
    """The log-probability of a token, first, and those of the k likeliest; of all for k -1.

    logits: float32 [n_vocab], as the model gave them. A token's rank counts those that are at least as likely, itself
    included; of equally likely ones among the k, the lower id comes first.
    """
    total = log_total(logits)
    rank = int(np.count_nonzero(logits >= logits[token]))
    best = largest(logits, logits.size if k < 0 else min(k, logits.size)).tolist() if k else []
    rows = [(token, rank), *zip(best, range(1, len(best) + 1), strict=True)]
    return {id: Logprob(float(logits[id]) - total, place, token_text(tokenizer, id)) for id, place in rows}


def log_total(logits: Floats) -> float:
    """The logarithm of the sum of the exponentials of logits [n]: what they lose to become log-probabilities."""
    peak = logits.max()
    return float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token's text by itself; empty for an id that only pads the model's vocabulary."""
    return tokenizer.token_bytes(token).decode("utf-8", "replace") if token < tokenizer.n_vocab else ""
