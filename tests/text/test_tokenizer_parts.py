"""The parts of tokenization: cutting text, merging, when tiktoken may do it, and a real vocabulary's known answers."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken._tiktoken import CoreBPE
from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split

from ggpy.hub.default_model import DEFAULT
from ggpy.text.tokenizer import Tokenizer
from ggpy.text.tokenizer.exact_ranks import ranks_of_merges
from ggpy.text.tokenizer.merge import merge_pairs
from ggpy.text.tokenizer.pretokenize import PRE_TOKENIZERS, TEXT_MERGES
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
from tests.support.vocabularies import random_texts

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


_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}%s]*[\p{Ll}\p{Lm}\p{Lo}\p{M}%s]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}%s]+[\p{Ll}\p{Lm}\p{Lo}\p{M}%s]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
)
_GPT4O = _CASED.replace("%s", "") + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL
_MARKED = r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
#: The patterns of tokenizer.json, or of the code that comes with the models, as the `tokenizers` package reads them;
#: those of llama.cpp where the files are not public.
_ORIGINALS = {
    "jais-2": [_QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|").removesuffix(r"\s+(?!\S)|\s+")
               + "|".join([rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)]) + r"|\s{1,2}(?!\S)|\s{1}"],
    "spark2_5": [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
                 _MARKED.replace(r"[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+", r"[\p{P}\p{S}]+|[\r\n]"), r"\p{N}"],
    "youtu": ["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", _GPT4O.replace("{1,3}", "")],
    "chameleon": ["<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", r"\p{N}",
                  r"[\p{P}!-/:-@\[-`{-~]", _GPT2],
    "granite-embed-multi-97m": [_GPT4O],
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O],
    "kimi-k2": [r"[\p{Han}]+|" + _CASED.replace("%s", r"&&[^\p{Han}]")
                + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL],
    "superbpe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
    "ufakzeka": [_QWEN2.removeprefix(_CONTRACTIONS + "|")],
    "afmoe": [r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
              "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+", _MARKED],
    "laguna": ["[^\\n]+|[\\n]+", _QWEN2],
    "exaone-moe": [_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
                   r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"],
    "minicpm5": [r"\p{N}{1,3}", _QWEN2.replace(r"\p{N}|", r"\p{N}+|")],
}  # fmt: skip
_TRICKY = [
    _TEXT, "1234567 12 abc1234x 00१२३४५ 1,234,567", "  中文 12〇三 ⺀a々b 漢字kana、か Ａb!⺀",
    "<sentinel:12> IMGIMGABZ\t  x    y",
    "a b  c\n\n\nd/\n e!/\r\nI'LL don't Don'T", " " * 37 + "x" + " " * 5, "สวัสดี ຂໍ້ ကခ 안녕 ㄅㄆ “x”—…",
]  # fmt: skip


@pytest.mark.parametrize("name", _ORIGINALS)
def test_pieces_are_those_of_the_original_patterns(name: str) -> None:
    steps = [Split(Regex(pattern), "isolated") for pattern in _ORIGINALS[name]]
    original, split = Sequence(steps), PRE_TOKENIZERS[name].splitter()
    for text in (*_TRICKY, *random_texts(150, seed=3)):
        if name == "tiny_aya":  # its library takes these of Latin-1 for letters of words
            text = text.translate(dict.fromkeys(map(ord, "½²")))
        assert split(text) == [piece for piece, _ in original.pre_tokenize_str(text)], repr(text)


def test_every_pre_tokenizer_of_llama_cpp_is_known() -> None:
    """The names in src/llama-vocab.cpp of November 2026 (after llama-cpp-python 0.3.36)."""
    names = """default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano
        deepseek-llm deepseek-coder deepseek-v3 spark2_5 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat
        jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jais-2 gemma4 granite-embed-multi-311m sarvam-moe jina-v1-en
        jina-v2-code roberta-bpe whitespace refact command-r qwen2 deepseek-r1-qwen kormo f2llmv2 qwen35 stablelm2 olmo
        dbrx smaug-bpe poro-chat chatglm-bpe glm4 glm5 viking jais tekken smollm codeshell bloom gpt3-finnish exaone
        exaone4 exaone-moe chameleon minerva-7b megrez gpt-4o llama4 kanana2 talkie granite-embed-multi-97m tiny_aya
        cohere2moe superbpe trillion granite-docling bailingmoe bailingmoe2 llada-moe seed-coder hunyuan hunyuan-dense
        hy_v4 joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna minimax-m2 solar-open mellum2"""
    assert [name for name in names.split() if name not in PRE_TOKENIZERS and name not in TEXT_MERGES] == []


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
