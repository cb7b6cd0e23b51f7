"""Vocabularies of tiktoken: lines of a base64 token and its rank. The first Qwen has them in qwen.tiktoken, before 208
special tokens that its code names; GLM-4 of 2024 in tokenizer.model, beside special tokens in tokenizer_config.json."""

from __future__ import annotations

import base64
import binascii

from ggpy.convert.bpe_merges import rebuild_merges
from ggpy.convert.vocabulary import CONTROL, NORMAL, Vocabulary, byte_level_text
from ggpy.errors import GGPYError

#: The special tokens that follow the ranks, in the order of their ids.
QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))

_LONGEST_TOKEN = 1024  # bytes; the longest of Qwen and GLM-4 has 128


#: The class of GLM-4's tokenizer, and the tokens that it puts before a text.
GLM4, GLM4_BEFORE = "ChatGLM4Tokenizer", ("[gMASK]", "<sop>")


def read_tiktoken(data: bytes, where: str, pre: str = "qwen2", specials: tuple[str, ...] = QWEN_SPECIALS) -> Vocabulary:
    """The vocabulary of such a file, its merges rebuilt from the ranks, and of the special tokens behind it, the first
    of which begins and ends texts. `pre`: how text is cut, by GGUF's name. GGPYError names a bad line."""
    ranks: dict[bytes, int] = {}
    for n, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            encoded, number = line.split()
            token = base64.b64decode(encoded, validate=True)
            ranks[token] = int(number)
        except (ValueError, binascii.Error) as error:
            raise GGPYError(f"{where} has no token and rank on line {n}: {line!r:.60}.") from error
        if not 0 < len(token) <= _LONGEST_TOKEN or not 0 <= ranks[token] < 1 << 24:
            raise GGPYError(f"{where} has an impossible token or rank on line {n}: {line!r:.60}.")
    if len(set(ranks.values())) != len(ranks):
        raise GGPYError(f"{where} gives two tokens the same rank.")
    if any(bytes([b]) not in ranks for b in range(256)):
        raise GGPYError(f"{where} lacks some of the 256 single bytes, so not every text could be written with it.")

    vocabulary = Vocabulary("gpt2", pre, add_bos=False, add_eos=False)
    for token, rank in ranks.items():
        vocabulary.put(rank, byte_level_text(token), NORMAL)
    vocabulary.merges = [f"{byte_level_text(a)} {byte_level_text(b)}" for a, b in rebuild_merges(ranks)]
    first = max(ranks.values()) + 1
    for i, text in enumerate(specials):
        vocabulary.put(first + i, text, CONTROL)
    if specials:
        vocabulary.special_ids = {"bos": first, "eos": first}
    return vocabulary
