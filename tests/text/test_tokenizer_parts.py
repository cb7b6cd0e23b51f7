"""The parts of tokenization: cutting text, merging, when tiktoken may do it, and a real vocabulary's known answers."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken._tiktoken import CoreBPE

from ggpy.hub.default_model import DEFAULT
from ggpy.text.tokenizer import Tokenizer
from ggpy.text.tokenizer.exact_ranks import ranks_of_merges
from ggpy.text.tokenizer.merge import merge_pairs
from ggpy.text.tokenizer.pretokenize import PRE_TOKENIZERS
from ggpy.text.tokenizer.unicode_classes import (
    LETTER,
    LOWER,
    MARK,
    NUMBER,
    OTHER,
    PUNCTUATION,
    SPACE,
    SYMBOL,
    UPPER,
    collapse,
)

# Pre-tokenizers

_TEXT = "I'LL we're  1234 ½e\u0301 中，!!\n\n \u3000Ü/\r\n a_$5 日1 éa "
_PIECES = {  # as llama.cpp cuts it, but for the mark in the last two; · stands between pieces
    "default": "I·'·LL· we·'·re· · ·123·4· ·½·e·\u0301· 中·，!!·\n\n ·\u3000·Ü·/·\r\n· a·_$·5· 日·1· éa· ",
    "llama-bpe": "I·'LL· we·'re· · ·123·4· ·½·e·\u0301· 中·，!!\n\n· ·\u3000Ü·/\r\n· a·_$·5· 日·1· éa· ",
    "deepseek-llm": "I·'·LL· we·'·re·  ·1234· ·½·e·\u0301 ·中·，!!·\n·\n· ·\u3000Ü·/·\r·\n· a·_$·5· ·日·1· é·a· ",
    "deepseek-coder": "I·'·LL· we·'·re·  ·1·2·3·4· ·½·e·\u0301· ·中·，!!·\n·\n· ·\u3000Ü·/·\r·\n· a·_·$·5· ·日·1· éa· ",
    "falcon": "I·'·LL· we·'·re· · ·123·4· ½·e·\u0301· 中·，!!·\n\n ·\u3000·Ü·/·\r\n· a·_$·5· 日·1· éa· ",
    "gpt-2": "I·'·LL· we·'re· · 1234· ½·e·\u0301· 中·，!!·\n\n ·\u3000·Ü·/·\r\n· a·_$·5· 日·1· éa· ",
    "starcoder": "I·'·LL· we·'re·  ·1·2·3·4· ·½·e·\u0301· 中·，!!·\n\n ·\u3000·Ü·/·\r\n· a·_$·5· 日·1· éa· ",
    "qwen2": "I·'LL· we·'re· · ·1·2·3·4· ·½·e·\u0301· 中·，!!\n\n· ·\u3000Ü·/\r\n· a·_$·5· 日·1· éa· ",
    "qwen35": "I·'LL· we·'re· · ·1·2·3·4· ·½·e\u0301· 中·，!!\n\n· ·\u3000Ü·/\r\n· a·_$·5· 日·1· éa· ",
    "tekken": "I·'LL· we·'re· · ·1·2·3·4· ·½·e\u0301· 中·，!!\n\n· ·\u3000Ü·/\r\n· a·_$·5· 日·1· éa· ",
    "gpt-4o": "I'LL· we're· · ·123·4· ·½·e\u0301· 中·，!!\n\n· ·\u3000Ü·/\r\n· a·_$·5· 日·1· éa· ",
}
_SAME = {
    "refact": "starcoder", "command-r": "starcoder", "smollm": "starcoder", "mpt": "gpt-2", "phi-2": "gpt-2",
    "chatglm-bpe": "llama-bpe", "llama3": "llama-bpe", "llama-v3": "llama-bpe",
}  # fmt: skip


@pytest.mark.parametrize("name", [*_PIECES, *_SAME])
def test_pieces(name: str) -> None:
    assert "·".join(PRE_TOKENIZERS[name].splitter()(_TEXT)) == _PIECES[_SAME.get(name, name)]


@given(st.text(), st.sampled_from(sorted(PRE_TOKENIZERS)))
@settings(max_examples=300, deadline=None)
def test_pieces_are_the_text(text: str, name: str) -> None:
    pieces = PRE_TOKENIZERS[name].splitter()(text)
    assert "".join(pieces) == text
    assert all(pieces)


def test_character_classes() -> None:
    expected = {
        "中ªʰא": LETTER,
        "ÉǅЖ": UPPER,
        "éßж": LOWER,
        "½²٣Ⅷ": NUMBER,
        "\u0301\u094d": MARK,
        "，「—": PUNCTUATION,
        "€😀": SYMBOL,
        "\u200d\ufeff\U0010ffff": OTHER,
        "\u00a0\u0085\u3000\u2028": SPACE,
    }
    for text, letter in expected.items():
        assert collapse(text) == letter * len(text)
    assert collapse("a 1\x1c") == "a 1\x1c"


# Merging


def _naive_merge(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
        if not pairs:
            return symbols
        _, i = min(pairs)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


def _random_merges(rng: random.Random) -> list[tuple[str, str]]:
    """Merges over three letters: some in the order a trainer would find them, some in none."""
    tokens = list("abc")
    merges = []
    kind = rng.randrange(4)
    for _ in range(rng.randrange(1, 14)):
        left, right = rng.choice(tokens), rng.choice(tokens)
        if kind == 3 and len(left) > 1:  # another way to make a token
            cut = rng.randrange(1, len(left))
            left, right = left[:cut], left[cut:]
        if len(left + right) < 10:
            merges.append((left, right))
            tokens.append(left + right)
    if kind == 1:  # every way to make each token, as Llama 3's merges are
        made = dict.fromkeys(left + right for left, right in merges)
        merges = [(t[:i], t[i:]) for t in made for i in range(1, len(t)) if {t[:i], t[i:]} <= set(tokens)]
    if kind == 2:
        rng.shuffle(merges)
    return merges


def test_merging_equals_the_definition_and_tiktoken_where_exact() -> None:
    rng = random.Random(3)
    exact = 0
    for _ in range(600):
        merges = _random_merges(rng)
        ranks = {pair: i for i, pair in reversed(list(enumerate(merges)))}

        def priority(left: str, right: str, ranks: dict[tuple[str, str], int] = ranks) -> int | None:
            return ranks.get((left, right))

        symbols = ranks_of_merges([" ".join(pair) for pair in merges], lambda s, p=priority: merge_pairs(list(s), p))
        core = None
        if symbols is not None:
            exact += 1
            table = {s.encode() if i > 255 else bytes([i]): i for i, s in enumerate(symbols)}
            core = CoreBPE(table, {}, "x")
        for _ in range(8):
            text = "".join(rng.choice("abc") for _ in range(rng.randrange(1, 25)))
            expected = _naive_merge(list(text), ranks)
            assert merge_pairs(list(text), priority) == expected
            if core is not None:
                found = [core.decode_single_token_bytes(i).decode() for i in core.encode_single_piece(text.encode())]
                assert found == expected, (merges, text)
    assert exact > 400


# A real vocabulary

GOLD_EOG = [0, 2, 4]
GOLD = [  # from llama.cpp
    (
        "What is the capital of France?",
        [1780, 314, 260, 3575, 282, 4649, 47],
    ),
    (
        "<|im_start|>user\n你好，世界！<|im_end|>\n",
        [1, 4093, 198, 18645, 250, 48392, 138, 12831, 7906, 240, 178, 239, 230, 8083, 219, 2, 198],
    ),
    (
        "def f(x):\n\treturn x**2  # 12345\r\n",
        [1604, 275, 24, 104, 727, 198, 197, 5406, 1792, 828, 34, 216, 907, 216, 33, 34, 35, 36, 37, 2738],
    ),
    (
        "👨‍👩‍👧 naïve café",
        [10813, 235, 118, 321, 231, 10813, 235, 119, 321, 231, 10813, 235, 117, 15486, 46494, 37366],
    ),
]


@pytest.mark.skipif(not DEFAULT.here, reason="the default model has not been fetched")
def test_smollm2_known_answers() -> None:
    tokenizer = Tokenizer.from_gguf(DEFAULT.path)
    assert (tokenizer.n_vocab, tokenizer.bos, tokenizer.eos) == (49152, 1, 2)
    assert tokenizer.eog == frozenset(GOLD_EOG)
    for text, ids in GOLD:
        assert tokenizer.tokenize(text, parse_special=True) == ids
        assert tokenizer.detokenize(ids) == text
