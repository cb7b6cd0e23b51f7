"""The penalty on repetitions, on texts whose repetitions can be counted by eye, and against a slow search."""

from __future__ import annotations

import numpy as np
import pytest

from ggpy.sampling.dry import Breakers, Dry, breakers
from tests.support.doubles import ByteTokenizer

A, B, C, Y = 0, 1, 2, 3
TEXT = [A, B, C, C, B, C, Y, A, B, C]


def penalties(
    tokens: list[int],
    multiplier: float = 1.0,
    base: float = 2.0,
    allowed: int = 1,
    last_n: int = 100,
    at: Breakers | None = None,
    one_by_one: bool = True,
) -> dict[int, float]:
    dry = Dry(multiplier, base, allowed, last_n, at or {})
    for chunk in [[token] for token in tokens] if one_by_one else [tokens]:
        dry.accept(chunk)
    ids, off = dry.penalties()
    return dict(zip(ids.tolist(), off.tolist(), strict=True))


def test_what_would_prolong_a_repetition() -> None:
    # "a b c" stood at the beginning, and c followed; "b c" also before y, and a lone "c" before b.
    assert penalties(TEXT) == {C: 2.0 ** (3 - 1), B: 2.0 ** (1 - 1), Y: 2.0 ** (2 - 1)}
    assert penalties(TEXT, allowed=2, multiplier=0.5) == {C: 0.5 * 2.0, Y: 0.5}
    assert penalties(TEXT, allowed=4) == {}
    assert penalties(TEXT, last_n=7) == {B: 1.0, Y: 2.0}  # c b c y a b c
    assert penalties(TEXT, last_n=6) == {Y: 2.0}
    assert penalties(TEXT, last_n=3) == {}
    assert penalties([A], allowed=1) == penalties([], allowed=0) == {}
    assert penalties([A, B, A, B], allowed=0) == {A: 2.0**2, B: 2.0**0}


def test_the_longest_repetition_counts() -> None:
    assert penalties([A, B, A, Y, B, A, B, A]) == {Y: 2.0 ** (3 - 1), B: 2.0 ** (2 - 1)}  # B after two places


def test_a_breaker_limits_the_repetition() -> None:
    at: Breakers = {B: [(B,)]}
    # After the last b stands c alone: every repetition counts one at most, and b itself is not penalized.
    assert penalties(TEXT, at=at) == {C: 1.0, Y: 1.0}
    assert penalties(TEXT, at=at, allowed=2) == {}
    # Of a breaker of two tokens, both.
    assert penalties(TEXT, at={C: [(B, C)]}, allowed=0) == {C: 1.0, B: 1.0, Y: 1.0, A: 1.0}
    assert penalties(TEXT, at={C: [(B, C)]}) == {}
    assert penalties(TEXT, at={A: [(Y, A)]}) == {C: 2.0, B: 1.0, Y: 2.0}
    assert penalties(TEXT, at={C: [(C, C)]}, allowed=1) == penalties(TEXT)  # too far back to limit three


def test_huge_penalties_stay_finite() -> None:
    off = penalties([A] * 300, base=10.0, allowed=1)
    assert np.isfinite(off[A])
    assert off[A] > 1e37


@pytest.mark.parametrize("seed", range(30))
def test_against_a_slow_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3, int(rng.integers(1, 60))).tolist()
    allowed, last_n = int(rng.integers(0, 3)), int(rng.integers(1, 70))
    window = tokens[-last_n:]
    n, expected = len(window), {}
    if n > allowed:
        for place in range(n - 1):
            length = 0
            while length <= place and window[place - length] == window[n - 1 - length]:
                length += 1
            if length >= allowed:
                token = window[place + 1]
                expected[token] = max(expected.get(token, 0.0), 2.0 ** (length - allowed))
    assert penalties(tokens, allowed=allowed, last_n=last_n) == expected
    assert penalties(tokens, allowed=allowed, last_n=last_n, one_by_one=False) == expected


class Words(ByteTokenizer):
    """Bytes, and tokens of several of them."""

    words = (b"\n\n", b"a:", b":b", b"<th", b"<")
    n_vocab = 260 + len(words)

    def token_bytes(self, id: int, special: bool = True) -> bytes:
        return self.words[id - 260] if id >= 260 else super().token_bytes(id, special)


def test_tokens_that_spell_a_breaker() -> None:
    tokenizer: object = Words()
    newline = breakers(tokenizer, ["\n"])  # type: ignore[arg-type]
    assert sorted(newline) == [10, 260]
    assert breakers(tokenizer, ["\n"]) is newline  # type: ignore[arg-type]
    both = breakers(tokenizer, (":", "\n"))  # type: ignore[arg-type]
    assert sorted(both) == [10, ord(":"), 260, 261, 262]
    think = breakers(tokenizer, ["<think>"])  # type: ignore[arg-type]
    assert list(think) == [ord(">")]
    assert set(think[ord(">")]) == {(ord("<"), *b"think>"), (264, *b"think>"), (263, *b"ink>")}
