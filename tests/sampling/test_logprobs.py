"""Log-probabilities by the model's own logits, in vLLM's shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ggpy.sampling.logprobs import logprobs_of
from tests.support.doubles import EOS, N_VOCAB, ByteTokenizer

TOKENIZER: Any = ByteTokenizer()


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("n", [N_VOCAB, 152064])
def test_they_sum_to_one_over_the_vocabulary(n: int, scale: float) -> None:
    logits = (np.random.default_rng(n).standard_normal(n) * scale - 400).astype(np.float32)
    logits[5] = -np.inf
    found = logprobs_of(logits, 3, -1, TOKENIZER)
    assert len(found) == n
    assert sum(math.exp(one.logprob) for one in found.values()) == pytest.approx(1.0, abs=1e-5)
    assert found[5].logprob == -math.inf
    falling = [one.logprob for token, one in found.items() if token != 3]
    assert falling == sorted(falling, reverse=True)


def test_the_token_comes_first_and_then_the_likeliest() -> None:
    probs = np.full(N_VOCAB, 1e-4)
    probs[[ord("a"), ord("b"), ord("c"), EOS]] = 0.5, 0.2, 0.15, 0.1
    logits = np.log(probs / probs.sum()).astype(np.float32) + np.float32(7)
    found = logprobs_of(logits, EOS, 2, TOKENIZER)
    assert list(found) == [EOS, ord("a"), ord("b")]
    assert [one.rank for one in found.values()] == [4, 1, 2]
    assert [one.decoded_token for one in found.values()] == ["<|end|>", "a", "b"]
    assert [one.logprob for one in found.values()] == pytest.approx(np.log([0.1, 0.5, 0.2] / probs.sum()), abs=1e-5)
    assert list(logprobs_of(logits, ord("b"), 2, TOKENIZER)) == [ord("b"), ord("a")]
    assert list(logprobs_of(logits, ord("b"), 0, TOKENIZER)) == [ord("b")]
    assert logprobs_of(logits, 7, 0, TOKENIZER)[7].rank == N_VOCAB  # as likely as many others: it may come last


def test_padding_of_the_vocabulary_has_no_text() -> None:
    logits = np.zeros(N_VOCAB + 4, np.float32)
    assert logprobs_of(logits, N_VOCAB + 1, 0, TOKENIZER)[N_VOCAB + 1].decoded_token == ""
