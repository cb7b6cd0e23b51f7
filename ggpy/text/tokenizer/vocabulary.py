"""A GGUF file's vocabulary: its tokens, their kinds, and the ids and flags that steer tokenization.

The recognition of tokens by their text is llama.cpp's (src/llama-vocab.cpp), because files leave out what llama.cpp
fills in. Where it goes against what the file says, the file is right: a token that it calls normal is text, and a role
whose token it does not name has none.

Keys `ggpy.tokenizer.*` hold what GGUF has no keys for: `ggpy convert` writes them, other readers ignore them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ggpy.errors import GGPYError, quoted, shown
from ggpy.gguf.metadata import TypedMetadata
from ggpy.text.tokenizer.normalize import Normalizer, in_turn, normalizer, sentencepiece_rules
from ggpy.text.tokenizer.pretokenize import TEXT_MERGES, PreTokenizer, pre_tokenizer

# What a token is; a set of bits, as recognising a control token by its text keeps what the file called it.
UNKNOWN, UNUSED, NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 2, 4, 8, 16, 32

# `tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; others mean nothing.
_KIND_OF_TYPE = np.array([0, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE], np.uint8)

_MODELS = {
    "gpt2": "byte-level BPE", "llama": "SentencePiece", "bert": "WordPiece", "t5": "Unigram", "gemma4": "BPE of text",
    "whitespace": "BPE of words", "rwkv": "RWKV's", "plamo2": "PLaMo 2's",
}  # fmt: skip

SPACE = "▁"  # U+2581: a space in SentencePiece's tokens, the beginning of a word in WordPiece's

_END_OF_GENERATION = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip

_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # gpt-oss: its channel markers

# The tokens of each kind's usual roles, where they are of one of these kinds.
_ROLES = {
    "llama": (("bos", "<s>", CONTROL), ("eos", "</s>", CONTROL), ("unk", "<unk>", UNKNOWN)),
    "t5": (("eos", "</s>", CONTROL), ("unk", "<unk>", UNKNOWN)),
    "bert": (("bos", "[CLS]", CONTROL), ("sep", "[SEP]", CONTROL), ("unk", "[UNK]", CONTROL | UNKNOWN)),
}

# Fill-in-the-middle tokens, by the key that may name one and the texts that give one away.
_FILL_IN = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
                "<|code_prefix|>", "<|prefix|>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
                "<|code_suffix|>", "<|suffix|>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
                "<|code_middle|>", "<|middle|>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}  # fmt: skip
_OLD_FILL_IN_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
_RECOGNISED = (*_END_OF_GENERATION, *_ALWAYS_SHOWN, *(text for texts in _FILL_IN.values() for text in texts))

#: Keys that GGUF has none for: our converter writes them and our reader follows them, others pass them over.
OWN = "ggpy.tokenizer."

#: Of merges of the text itself, those whose texts begin with BOS whatever the file says.
ALWAYS_BOS = ("gemma4", "granite-embed-multi-311m")

#: How a special token is found in a text, as tokenizer.json names it: with the white space before or after it, only
#: where no letter stands beside it, in the normalized text. `ggpy.tokenizer.NAME_token_ids` lists those that are.
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


class Vocabulary:
    """Tokens and what is known of them. Raises GGPYError, naming `where`, for a vocabulary that cannot be used."""

    model: str  # the way that text is cut: a key of _ENCODERS
    kind: str | None  # of merges of the text itself: one of TEXT_MERGES
    tokens: list[str]  # as written in the file: byte-level text for BPE, with ▁ as SPACE says for the others
    ids: dict[str, int]  # token → its id
    kinds: bytearray  # one set of bits a token
    typed: bool  # whether the file knows kinds of tokens
    pre: PreTokenizer | None  # byte-level BPE's
    note: str | None  # for users: what may make the tokens others than the model's own
    bos: int | None
    eos: int | None
    unk: int | None
    sep: int | None
    eog: frozenset[int]
    fill_in: dict[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    space_prefix: str | None  # where the space is put and not where one is: "first", in a text, or "always"
    flagged: dict[str, frozenset[int]]  # special tokens by how they are matched: see FLAGS
    before: tuple[int, ...]  # what a text gets around it beside BOS and EOS
    after: tuple[int, ...]

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.metadata, self.where = TypedMetadata(metadata, where), where
        model = self.metadata.find("tokenizer.ggml.model", str)
        if model is None:
            raise GGPYError(f"{where}: there is no tokenizer in this file (no key tokenizer.ggml.model).")
        if model not in _MODELS:
            known = ", ".join(f"{name} ({what})" for name, what in _MODELS.items())
            model = quoted(model, 80)
            raise GGPYError(f"{where}: the tokenizer model {model} is not one that ggpy knows; it knows {known}.")
        name = self.metadata.find("tokenizer.ggml.pre", str) or ""
        self.kind = model if model in TEXT_MERGES else name if model == "gpt2" and name in TEXT_MERGES else None
        self.model = "llama" if self.kind else model
        self.pre, self.note = pre_tokenizer(name, where) if self.model == "gpt2" else (None, None)
        self._read_tokens()
        self._read_special_ids()
        self._read_flags()
        self._recognise()
        self._read_matching(name)

    def __len__(self) -> int:
        return len(self.tokens)

    def array(self, key: str, length: int | None = None) -> Any:
        """The array of numbers under `key`, or None; with `length`, an error where it is shorter."""
        value = self.metadata.find(key, list)
        if value is None:
            return None
        if np.asarray(value[:1]).dtype.kind not in "iuf":
            raise self.metadata.wrong(key, "a list of numbers")
        if length is not None and len(value) < length:
            raise GGPYError(f"{self.where}: {key} has {len(value)} entries for {length} tokens.")
        return value

    def _read_tokens(self) -> None:
        tokens = self.metadata.strings("tokenizer.ggml.tokens")
        if not tokens:
            raise GGPYError(f"{self.where}: the vocabulary is empty (key tokenizer.ggml.tokens).")
        if "" in tokens:
            tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
        self.tokens = tokens
        self.ids = dict(zip(tokens, range(len(tokens)), strict=True))
        if len(self.ids) != len(tokens):
            first, second = next((i, self.ids[t]) for i, t in enumerate(tokens) if self.ids[t] != i)
            raise GGPYError(
                f"{self.where}: tokens {first} and {second} in tokenizer.ggml.tokens are both "
                f"{quoted(tokens[first], 60)}; every token must be there once."
            )
        types = self.array("tokenizer.ggml.token_type", len(tokens))
        if types is None:
            self.kinds = bytearray([NORMAL]) * len(tokens)
        else:
            numbers = np.asarray(types)[: len(tokens)]
            if numbers.dtype.kind not in "iu":
                raise GGPYError(f"{self.where}: tokenizer.ggml.token_type does not hold whole numbers.")
            known = (numbers > 0) & (numbers < len(_KIND_OF_TYPE))
            self.kinds = bytearray(_KIND_OF_TYPE[np.where(known, numbers, 0)].tobytes())
        # Files of the first converters have types that say nothing.
        self.typed = any(kind in self.kinds for kind in (CONTROL, USER_DEFINED))

    def _id(self, name: str) -> int | None:
        """The id under the key of that name, None where there is none or it is outside the vocabulary."""
        value = self.metadata.find(f"tokenizer.ggml.{name}_token_id", int)
        return int(value) if value is not None and 0 <= value < len(self) else None

    def _ids(self, key: str) -> tuple[int, ...]:
        """The token ids listed under a key; empty where it is absent."""
        listed = self.array(key)
        found = [] if listed is None else list(listed)
        if not all(isinstance(i, (int, np.integer)) and 0 <= i < len(self.tokens) for i in found):
            raise GGPYError(f"{self.where}: {key} must list token ids of this vocabulary.")
        return tuple(int(i) for i in found)

    def _read_special_ids(self) -> None:
        self.bos, self.eos, self.unk = self._id("bos"), self._id("eos"), self._id("unknown")
        self.sep = self._id("seperator")  # spelt so in GGUF
        if self.model == "bert" and self.bos is None:
            self.bos = self._id("cls")  # older files name it so
        # The kinds' own names: older files leave out what they took for granted.
        for role, text, kinds in _ROLES.get(self.model, ()):
            token = self.ids.get(text)
            if token is not None and getattr(self, role) is None and (self.kinds[token] & kinds or not self.typed):
                setattr(self, role, token)
        if self.metadata.find(f"{OWN}no_eos", bool):  # the id is for readers that take another one for the end
            self.eos = None

    def _read_flags(self) -> None:
        def flag(name: str, default: bool) -> bool:
            value = self.metadata.find(f"tokenizer.ggml.{name}", bool)
            return default if value is None else value

        # What is not named is not added, as in transformers, whatever the flags say.
        usual = self.pre.add_bos if self.pre else self.model in ("llama", "bert") and self.kind is None
        told = flag("add_bos_token", usual) or self.kind in ALWAYS_BOS  # some converters denied it
        self.add_bos = told and self.bos is not None
        self.add_eos = flag("add_eos_token", self.model == "t5") and self.eos is not None
        self.add_space_prefix = flag("add_space_prefix", self.model == "llama" and self.kind is None)
        self.space_prefix = self.metadata.find(f"{OWN}space_prefix", str)
        ignore = self.metadata.find(f"{OWN}ignore_merges", bool)
        self.ignore_merges: bool = ignore if ignore is not None else self.pre is not None and self.pre.ignore_merges
        self.fuse_unk: bool = self.metadata.find(f"{OWN}fuse_unk", bool) or False
        self.before, self.after = self._ids(f"{OWN}before_token_ids"), self._ids(f"{OWN}after_token_ids")
        ended = self.add_eos and self.eos == self.sep  # one token in both roles is there once
        if self.model == "bert" and not ended and flag("add_sep_token", True) and self.sep is not None:
            self.after += (self.sep,)

    def merges(self) -> list[str] | None:
        """Pairs of characters and what they become, where a piece's score does not say which pairs make it."""
        return self.metadata.strings("tokenizer.ggml.merges" if self.kind else f"{OWN}merges")

    def normalizer(self) -> Normalizer | None:
        """The normalizer of a text between special tokens, applied before it is cut."""
        text = self.metadata.find(f"{OWN}normalizer", str)
        charsmap = self.array("tokenizer.ggml.precompiled_charsmap")
        try:
            if charsmap is not None and np.asarray(charsmap).dtype.kind not in "iu":
                raise GGPYError("its characters map does not hold bytes.")
            data = b"" if charsmap is None else np.asarray(charsmap).astype(np.uint8).tobytes()
            own = sentencepiece_rules(data, bool(self.metadata.find("tokenizer.ggml.remove_extra_whitespaces", bool)))
            named: dict[str, Any] | None = {"type": "NFC"} if self.pre is not None and self.pre.composes else None
            if self.model == "bert":
                lowercase = self.metadata.find("tokenizer.ggml.normalizer.lowercase", bool)
                strip = self.metadata.find("tokenizer.ggml.normalizer.strip_accents", bool)
                named = {"type": "BertNormalizer", "lowercase": lowercase is not False, "strip_accents": strip}
            told = normalizer(named if text is None else json.loads(text))
        except (GGPYError, ValueError, TypeError, RecursionError) as error:
            why = shown(error).rstrip(".")
            raise GGPYError(f"{self.where}: text cannot be normalized as the file wants it: {why}.") from None
        return in_turn([step for step in (own, told) if step is not None])

    def _recognise(self) -> None:
        """Find the tokens that end generation, and correct the kinds of tokens that are recognised by their text."""
        kinds = self.kinds
        # Vocabularies hold </s> and the like as words of HTML, made by merges; a file that knows types calls them so.
        # In Gemma's, whose end is <eos>, it is a user-defined token.
        ids = {
            t: i
            for t in _RECOGNISED
            if (i := self.ids.get(t)) is not None
            and not (self.typed and kinds[i] & NORMAL)
            and not (t == "</s>" and kinds[i] & USER_DEFINED and "<eos>" in self.ids)
        }
        ends: set[int] = set()
        self.fill_in = {}
        for name, texts in _FILL_IN.items():
            token = self._id(_OLD_FILL_IN_KEYS[name]) if name in _OLD_FILL_IN_KEYS else None
            if token is None:
                token = self._id(name)
            if token is None:
                token = next((ids[text] for text in texts if text in ids), None)
                if token is not None:
                    kinds[token] |= CONTROL
            if token is not None:
                self.fill_in[name] = token
                if name in ("fim_pad", "fim_rep", "fim_sep"):
                    ends.add(token)
        for text in _END_OF_GENERATION:
            if text in ids:
                ends.add(ids[text])
                kinds[ids[text]] |= CONTROL
        for text in _ALWAYS_SHOWN:
            if text in ids:
                kinds[ids[text]] = USER_DEFINED
        ends.update(i for i in (self.eos, self._id("eot"), self._id("eom")) if i is not None)
        ends.update(self._ids("tokenizer.ggml.eog_token_ids"))  # where `ggpy convert` lists what no other key can name

        has = {text for text in ("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<|end|>", "</s>",
                                 "<|tool_response>") if ids.get(text) in ends}  # fmt: skip
        # In the harmony and solar-open formats <|end|> ends a message, not the answer.
        if "<|end|>" in has and has & {"<|call|>", "<|calls|>"} and has & {"<|return|>", "<|flush|>"}:
            ends.discard(ids["<|end|>"])
            kinds[ids["<|end|>"]] = USER_DEFINED
        # Gemma 4 has an ordinary token </s>.
        if {"</s>", "<|tool_response>"} <= has:
            ends.discard(ids["</s>"])
            kinds[ids["</s>"]] = NORMAL
        self.eog = frozenset(ends)

    def _read_matching(self, pre: str) -> None:
        """Read how special tokens are matched: from ggpy's own keys or, in files without them, by the model's name."""
        self.flagged = {name: frozenset(self._ids(f"{OWN}{name}_token_ids")) for name in FLAGS}
        if any(self.flagged.values()):
            return
        model_name = (self.metadata.find("general.name", str) or "").lower()
        if any(name in pre for name in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
            self.flagged["lstrip"] = frozenset({self.ids["<mask>"]} if "<mask>" in self.ids else ())
        elif "phi-3" in model_name or "phi3" in model_name:
            kept = {self.ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
            self.flagged["rstrip"] = frozenset({*self.special_ids(), self.ids.get("</s>", -1)} - kept)
        elif "modern-bert" in model_name:
            self.flagged["lstrip"] = frozenset({self.ids["[MASK]"]} if "[MASK]" in self.ids else ())

    def difference(self, other: Vocabulary) -> str | None:
        """The first token that another vocabulary has not alike, in words for an error; None where there is none.
        Unused tokens, which stand for rows that a matrix has too many, count as none."""
        for i, (mine, others) in enumerate(zip(self.tokens, other.tokens, strict=False)):
            if mine != others and not (self.kinds[i] | other.kinds[i]) & UNUSED:
                return f"token {i} is {quoted(mine, 40)} in one, and {quoted(others, 40)} in the other"
        longer, n = max(self, other, key=len), min(len(self), len(other))
        more = next((i for i in range(n, len(longer)) if not longer.kinds[i] & UNUSED), None)
        return None if more is None else f"token {more}, {quoted(longer.tokens[more], 40)}, is in one of them alone"

    def special_ids(self) -> list[int]:
        """Tokens that are found in a text before anything else cuts it."""
        kinds = np.frombuffer(bytes(self.kinds), np.uint8)
        found: list[int] = np.flatnonzero(kinds & (CONTROL | USER_DEFINED | UNKNOWN)).tolist()
        return found

    def special_text(self, token: int) -> str:
        """The text of such a token. WordPiece's user-defined tokens are words, written as words are."""
        text = self.tokens[token]
        return text[1:] if self.model == "bert" and self.kinds[token] & USER_DEFINED and text[:1] == SPACE else text
