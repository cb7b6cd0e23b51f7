"""Small vocabularies for tests: trained on the spot by the libraries that define them, as GGUF metadata."""

from __future__ import annotations

import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
from tokenizers import Regex
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import BPE
from tokenizers.models import WordPiece as WordPieceModel
from tokenizers.normalizers import NFC, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Digits, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it? THEY'LL say we've 3.14!",
    "def f(x):\n\treturn x ** 2 + 3 * (y - 1)  # fine\n\nfor (int i = 0; i < n; ++i) { a[i] |= b << 3; }\r\n",
    "我们在这里学习中文，今天天气很好。你好，世界！他们说：“不要着急”。",
    "Добрый день, мир. مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก 안녕하세요 こんにちは",
    "😀👍🏽👨‍👩‍👧‍👦 naïve café — “quotes” … 50% of €100 ½ ²",
    "        deep    spaces\t\ttabs\n\n\nlines   ",
] * 3

# The patterns that the models' own tokenizer.json files hold.
_TAIL = r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
PRE_TOKENIZERS = {
    "gpt-2": lambda: ByteLevel(add_prefix_space=False, use_regex=True),
    "smollm": lambda: Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]),
    "qwen2": lambda: _split(_WORD + _TAIL % ""),
    "llama-bpe": lambda: _split(_WORD + _TAIL % "{1,3}"),
}


def _split(pattern: str) -> Sequence:
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


@cache
def hf_bpe(pre: str, size: int = 600) -> HFTokenizer:
    """A byte-level BPE tokenizer of the `tokenizers` package."""
    tokenizer = HFTokenizer(BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    if pre == "qwen2":
        tokenizer.normalizer = NFC()  # as in every Qwen's tokenizer.json
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def bpe_metadata(pre: str = "gpt-2", specials: dict[str, int] | None = None, **extra: Any) -> dict[str, Any]:
    """GGUF metadata of `hf_bpe(pre)` with special tokens (text → type) after it. extra: keys of tokenizer.ggml."""
    model = json.loads(hf_bpe(pre).to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    types = [NORMAL] * len(tokens)
    for text, kind in (specials or {"<|end|>": CONTROL}).items():
        tokens.append(text)
        types.append(kind)
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 1,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.add_bos_token": False,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


@cache
def sentencepiece_model(
    size: int = 700, rule: str = "identity", remove_extra_whitespaces: bool = False
) -> sentencepiece.SentencePieceProcessor:
    """A BPE model of the `sentencepiece` package with byte fallback; normalization is the space prefix and `rule`."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.splitlines()),
        model_writer=out,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name=rule,
        remove_extra_whitespaces=remove_extra_whitespaces,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def spm_metadata(specials: dict[str, int] | None = None, **extra: Any) -> dict[str, Any]:
    """GGUF metadata of `sentencepiece_model()` with special tokens (text → type) after it."""
    model = sentencepiece_model()
    tokens, scores, types = [], [], []
    for i in range(model.vocab_size()):
        tokens.append(model.id_to_piece(i))
        scores.append(model.get_score(i))
        kinds = ((model.is_unknown, UNKNOWN), (model.is_control, CONTROL), (model.is_byte, BYTE))
        types.append(next((kind for test, kind in kinds if test(i)), NORMAL))
    for text, kind in (specials or {}).items():
        tokens.append(text)
        scores.append(0.0)
        types.append(kind)
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@cache
def hf_wordpiece(size: int = 700, **normalizer: Any) -> HFTokenizer:
    """A WordPiece tokenizer of the `tokenizers` package; `normalizer` are options of its BertNormalizer."""
    tokenizer = HFTokenizer(WordPieceModel(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=size, special_tokens=list(BERT_SPECIALS), show_progress=False)
    # Other alphabets too, but not all of each, for words with unknown parts.
    letters = " ".join("".join(alphabet[::3]) for alphabet in _ALPHABETS)
    tokenizer.train_from_iterator([*CORPUS, letters], trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = WordPieceDecoder(prefix="##")
    return tokenizer


def wordpiece_metadata(specials: dict[str, int] | None = None, **extra: Any) -> dict[str, Any]:
    """GGUF metadata of `hf_wordpiece()` as llama.cpp's converter writes it, with special tokens (text → type) after it.
    extra: keys of tokenizer.ggml."""
    vocab = json.loads(hf_wordpiece().to_str())["model"]["vocab"]
    tokens, types = [], []
    for text in sorted(vocab, key=vocab.get):
        special = text in BERT_SPECIALS
        tokens.append(text if special else text[2:] if text.startswith("##") else f"\u2581{text}")
        types.append(CONTROL if special else NORMAL)
    for text, kind in (specials or {}).items():
        tokens.append(text if kind == CONTROL else f"\u2581{text}")
        types.append(kind)
    return {
        "general.architecture": "bert",
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


def write_gguf(path: Path, metadata: dict[str, Any]) -> Path:
    """A GGUF file with that metadata and no tensors."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABC'sStTreVEllmd ",
    "0123456789",
    " \t\n\r",
    "  \n\n\t \v\f",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "的一是不了人我在有他这中大来上国，。！？、：“”（）",
    "éèüñßøåΩαβγжзийعربيहिन्दीไทยகაʼ",
    "e\u0301a\u0308\u0327o\u200d\u200b\ufeff",
    "😀👍🏽👨‍👩‍👧🇩🇪☕️",
    "\u00a0\u3000\u2028\u0085\u1680",
    "½²Ⅷ٣४①",
    "\x01\x07\x1b\x7f\x1c",
)


def random_texts(count: int, seed: int) -> list[str]:
    """Texts of many scripts, sorts of space, marks and signs, and words of the corpus."""
    rng = random.Random(seed)
    words = " ".join(CORPUS[:6]).split(" ")
    texts = ["", " ", "\n", "  a", "a  ", "\r\n\r\n"]
    while len(texts) < count:
        parts = []
        for _ in range(rng.randrange(1, 12)):
            if rng.random() < 0.4:
                parts.append(rng.choice(words) + rng.choice(["", " ", "\n"]))
            else:
                alphabet = rng.choice(_ALPHABETS)
                parts.append("".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 8))))
        texts.append("".join(parts))
    return texts


def tiny_bpe(tokens: list[str], merges: list[str], **extra: Any) -> dict[str, Any]:
    """GGUF metadata of a byte-level vocabulary of just these tokens and merges. extra: keys of tokenizer.ggml."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        **{f"tokenizer.ggml.{key}": value for key, value in extra.items()},
    }


def without(metadata: dict[str, Any], key: str) -> dict[str, Any]:
    """`metadata` less a key of tokenizer.ggml."""
    return {k: v for k, v in metadata.items() if k != f"tokenizer.ggml.{key}"}
