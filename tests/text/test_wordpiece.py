"""WordPiece against the `tokenizers` package, which defines it, and what GGUF files of it leave out."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.normalizers import NFD, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from ggpy.errors import GGPYError
from ggpy.text.tokenizer import StreamDecoder, Tokenizer
from ggpy.text.tokenizer.bert_text import bert_normalizer, words_of
from tests.support.hangs import ends
from tests.support.vocabularies import (
    CONTROL,
    CORPUS,
    USER_DEFINED,
    hf_wordpiece,
    random_texts,
    without,
    wordpiece_metadata,
    write_gguf,
)

TOKENIZER = Tokenizer(wordpiece_metadata())
UNK, CLS, SEP, MASK = 1, 2, 3, 4


LOWER = BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=True)


def known(char: str) -> bool:
    """False where the running Python and the package know a letter's lower case, or parts, from different Unicodes."""
    return LOWER.normalize_str(char) == char.lower() and NFD().normalize_str(char) == unicodedata.normalize("NFD", char)


def any_character(rng: random.Random) -> str:
    """A character of any plane, those that BERT treats in some way often among them."""
    ranges = (
        (0x20, 0x7F), (0, 0x20), (0x7F, 0x600), (0x300, 0x370), (0x600, 0x3000), (0x2000, 0x2070), (0x3000, 0xD800),
        (0xAC00, 0xD7A4), (0xE000, 0x10000), (0x10000, 0x20000), (0x1F300, 0x1FB00), (0x20000, 0x30000),
        (0x30000, 0x110000),
    )  # fmt: skip
    char = chr(rng.randrange(*rng.choice(ranges)))
    return char if known(char) else "x"


def odd_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = " ".join(CORPUS[:6]).split(" ")
    texts = []
    for _ in range(count):
        parts = [rng.choice(words) if rng.random() < 0.3 else any_character(rng) for _ in range(rng.randrange(1, 30))]
        if rng.random() < 0.2:
            parts.append(rng.choice("ae\u0416") * rng.randrange(97, 104))
        text = "".join(parts)
        texts.append(unicodedata.normalize(rng.choice(("NFC", "NFD", "NFKD")), text) if rng.random() < 0.3 else text)
    return texts


def test_wordpiece_equals_tokenizers() -> None:
    theirs = hf_wordpiece()
    unknown = 0
    for text in (*random_texts(400, seed=1), *odd_texts(600, seed=2)):
        ids = TOKENIZER.tokenize(text, parse_special=True)
        assert ids == theirs.encode(text).ids, repr(text)
        unknown += UNK in ids
    assert 100 < unknown < 900


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_has_the_original_tokens(text: str) -> None:
    text = "".join(filter(known, text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")))
    assert TOKENIZER.tokenize(text, parse_special=True) == hf_wordpiece().encode(text).ids


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.parametrize("strip", [None, True, False])
@pytest.mark.parametrize("lower", [True, False])
def test_text_is_prepared_as_by_tokenizers(clean: bool, chinese: bool, strip: bool | None, lower: bool) -> None:
    theirs, cut = BertNormalizer(clean, chinese, strip, lower), BertPreTokenizer()
    ours = bert_normalizer(clean, chinese, strip, lower)
    for text in (*odd_texts(100, seed=3), "İstanbul ΣΊΣΥΦΟΣ ẞ Ǆ ﬀ", "a\x1cb\u2028c\x85d"):
        prepared = theirs.normalize_str(text)
        assert ours(text) == prepared, repr(text)
        if clean:  # only then is all white space a space
            words = [word for stretch in prepared.split(" ") for word in words_of(stretch)]
            assert words == [word for word, _ in cut.pre_tokenize_str(prepared)], repr(text)


def test_every_character_is_of_the_class_that_the_original_has() -> None:
    theirs, ours, cut = BertNormalizer(), bert_normalizer(), BertPreTokenizer()
    codes = [*range(0x1100), *range(0x1100, 0xD800, 3), *range(0xE000, 0x32000, 7), *range(0xE0000, 0x110000, 997)]
    for char in filter(known, map(chr, codes)):
        prepared = theirs.normalize_str(f"x{char}y")
        assert ours(f"x{char}y") == prepared, ascii(char)
        words = [word for stretch in prepared.split(" ") for word in words_of(stretch)]
        assert words == [word for word, _ in cut.pre_tokenize_str(prepared)], ascii(char)


def test_case_and_accents_are_kept_where_the_file_says_so() -> None:
    for lower, strip in ((True, False), (False, False), (False, True)):
        keys = {"normalizer.lowercase": lower, "normalizer.strip_accents": strip}
        ours = Tokenizer(wordpiece_metadata(**keys))
        theirs = HFTokenizer.from_str(hf_wordpiece().to_str())
        theirs.normalizer = BertNormalizer(lowercase=lower, strip_accents=strip)
        for text in ("The naïve café FOX", *random_texts(100, seed=4)):
            assert ours.tokenize(text, parse_special=True) == theirs.encode(text).ids, repr(text)
    one_key = Tokenizer(wordpiece_metadata(**{"normalizer.lowercase": False}))
    assert one_key.tokenize("café") != one_key.tokenize("cafe")  # accents stay with the case


def test_a_word_of_more_than_a_hundred_characters_is_unknown() -> None:
    assert UNK not in TOKENIZER.tokenize("a" * 100)
    assert TOKENIZER.tokenize("a" * 101) == [CLS, UNK, SEP]
    assert UNK not in TOKENIZER.tokenize("a" * 100 + "." + "a" * 100)
    shorter = Tokenizer({**wordpiece_metadata(), "ggpy.tokenizer.longest_word": 5})
    assert shorter.tokenize("aaaaa aaaaaa", add_special=False)[-1] == UNK


def test_what_stands_around_a_text() -> None:
    the = TOKENIZER.tokenize("the", add_special=False)
    assert TOKENIZER.tokenize("the") == [CLS, *the, SEP]
    assert TOKENIZER.tokenize("") == [CLS, SEP]
    named = wordpiece_metadata(eos_token_id=SEP, add_bos_token=True, add_eos_token=True, add_sep_token=False)
    assert Tokenizer(named).tokenize("the") == [CLS, *the, SEP]  # one separator, in two roles
    assert Tokenizer(without(named, "add_sep_token")).tokenize("the") == [CLS, *the, SEP]
    bare = wordpiece_metadata(add_bos_token=False, add_sep_token=False)
    assert Tokenizer(bare).tokenize("the") == the
    older = {**without(wordpiece_metadata(), "bos_token_id"), "tokenizer.ggml.cls_token_id": CLS}
    assert Tokenizer(older).tokenize("the") == [CLS, *the, SEP]
    oldest = wordpiece_metadata()
    for key in ("bos", "seperator", "unknown"):
        oldest = without(oldest, f"{key}_token_id")
    assert Tokenizer(oldest).tokenize("the 龘") == [CLS, *the, UNK, SEP]


def test_special_tokens_in_text() -> None:
    metadata = wordpiece_metadata({"[NEW]": CONTROL, "New York": USER_DEFINED})
    ours, count = Tokenizer(metadata), len(metadata["tokenizer.ggml.tokens"])
    theirs = HFTokenizer.from_str(hf_wordpiece().to_str())
    theirs.add_special_tokens([AddedToken("[NEW]", special=True)])
    theirs.add_tokens([AddedToken("New York", normalized=False)])
    for text in ("a [MASK] b[NEW]c", "in New York", "inNew Yorks", "new york [NEW]", "[mask] ▁New York"):
        assert ours.tokenize(text, parse_special=True) == theirs.encode(text).ids, text
    assert MASK not in ours.tokenize("a [MASK] b")
    assert ours.tokenize("New York", add_special=False) == [count - 1]
    assert ours.detokenize(ours.tokenize("the New York")) == "[CLS] the New York[SEP]"
    # What marks the beginning of a word is no part of a token that is looked for in the text.
    assert count - 1 not in ours.tokenize("▁new york", add_special=False)


def test_tokens_come_back_as_words() -> None:
    ids = TOKENIZER.tokenize("The quick brown fox, isn't it?")
    assert TOKENIZER.detokenize(ids, skip_special=True) == "the quick brown fox , isn ' t it ?"
    whole = hf_wordpiece().decode(ids)
    decoder = StreamDecoder(TOKENIZER, start=True)
    text = "".join(decoder.push(token) for token in ids) + decoder.flush()
    assert text.replace(" ,", ",").replace(" ' t", "'t").replace(" ?", "?") == whole.replace(" ' t", "'t")
    assert "".join(StreamDecoder(TOKENIZER).push(token) for token in ids).startswith(" the")


def test_from_gguf(tmp_path: Path) -> None:
    metadata = wordpiece_metadata(**{"normalizer.lowercase": True})
    path = write_gguf(tmp_path / "words.gguf", metadata)
    tokenizer = Tokenizer.from_gguf(path)
    for text in random_texts(30, seed=5):
        assert tokenizer.tokenize(text) == TOKENIZER.tokenize(text)


@pytest.mark.parametrize("unit", ["the quick brown fox ", "a", "龘", "\u0301", "zq", " "])
def test_long_texts_take_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    with ends():
        TOKENIZER.tokenize(text)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (without(wordpiece_metadata(), "tokens"), "empty"),
        ({**wordpiece_metadata(), "tokenizer.ggml.token_type": [CONTROL] * 700}, "no token begins a word"),
        (
            {**without(wordpiece_metadata(), "unknown_token_id"), "tokenizer.ggml.tokens": ["▁a", "b"],
             "tokenizer.ggml.token_type": [1, 1]},
            "needs its unknown token",
        ),
        (wordpiece_metadata(**{"normalizer.lowercase": "yes"}), "lowercase"),
        ({**wordpiece_metadata(), "ggpy.tokenizer.normalizer": '{"type": "BertNormalizer", "lowercase": 5}'},
         "neither true nor false"),
        ({**wordpiece_metadata(), "ggpy.tokenizer.longest_word": "x"}, "longest_word"),
    ],
)  # fmt: skip
def test_bad_vocabularies_are_one_sentence(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(GGPYError, match=f"(?s)some.gguf.*{said}"):
        Tokenizer(metadata, "some.gguf")
