"""A GGUF file's vocabulary: its tokens, their kinds, and the ids and flags that steer tokenization.

Defaults and the recognition of tokens by their text are llama.cpp's (src/llama-vocab.cpp), because files leave out what
llama.cpp fills in: a file must stop, start and split at the same tokens in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ggpy.errors import GGPYError
from ggpy.tokenizer.pretokenize import PreTokenizer, pre_tokenizer

# What a token is; a set of bits, as recognising a control token by its text keeps what the file called it.
UNKNOWN, UNUSED, NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 2, 4, 8, 16, 32

# `tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; others mean nothing.
_KIND_OF_TYPE = np.array([0, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE], np.uint8)

_NAMES = {str: "a text", int: "a token id", bool: "true or false"}
_MODELS = {"gpt2": "byte-level BPE", "llama": "SentencePiece"}

_END_OF_GENERATION = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip

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


class Vocabulary:
    """Tokens and what is known of them. Raises GGPYError, naming `where`, for a vocabulary that cannot be used."""

    tokens: list[str]  # as written in the file: byte-level text for BPE, with ▁ for spaces for SentencePiece
    ids: dict[str, int]  # token → its id
    kinds: bytearray  # one set of bits a token
    is_bpe: bool
    pre: PreTokenizer | None  # BPE's
    bos: int | None
    eos: int | None
    unk: int | None
    eog: frozenset[int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    clean_spaces: bool

    def __init__(self, metadata: Mapping[str, Any], where: str, reopen: Callable[[], Mapping[str, Any]]) -> None:
        """`reopen` gives the metadata again when the file they are read from was closed."""
        self.metadata, self.where, self._reopen = metadata, where, reopen
        model = self._value("tokenizer.ggml.model", str)
        if model is None:
            raise GGPYError(f"{where}: there is no tokenizer in this file (no key tokenizer.ggml.model).")
        if model not in _MODELS:
            known = ", ".join(f"{name} ({what})" for name, what in _MODELS.items())
            raise GGPYError(f"{where}: the tokenizer model {model!r} is not one that ggpy knows; it knows {known}.")
        self.is_bpe = model == "gpt2"
        name = self._value("tokenizer.ggml.pre", str) or ""
        self.pre = pre_tokenizer(name, where) if self.is_bpe else None
        self._read_tokens()
        self._read_special_ids()
        self._read_flags()
        self._recognise()
        self._read_strips(name)

    def __len__(self) -> int:
        return len(self.tokens)

    def array(self, key: str, length: int | None = None) -> Any:
        """The array under `key`, or None; with `length`, an error where it is shorter."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
            raise GGPYError(f"{self.where}: the key {key} holds {value!r} where an array belongs.")
        if length is not None and len(value) < length:
            raise GGPYError(f"{self.where}: {key} has {len(value)} entries for {length} tokens.")
        return value

    def strings(self, key: str) -> list[str] | None:
        """The array of strings under `key`, or None."""
        try:
            value = self.array(key)
        except ValueError:  # an array is decoded when it is first wanted, and the file has been closed since
            self.metadata = self._reopen()
            value = self.array(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value[:1])):
            raise GGPYError(f"{self.where}: the array {key} does not hold strings.")
        return value

    def _value(self, key: str, kind: type) -> Any:
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, kind):
            raise GGPYError(f"{self.where}: the key {key} holds {_short(value)} where {_NAMES[kind]} belongs.")
        return value

    def _read_tokens(self) -> None:
        tokens = self.strings("tokenizer.ggml.tokens")
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
                f"{_short(tokens[first])}; every token must be there once."
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

    def _id(self, name: str, default: int | None = None) -> int | None:
        """The id under the key of that name; `default` where there is none or it is outside the vocabulary."""
        value = self._value(f"tokenizer.ggml.{name}_token_id", int)
        if value is not None and 0 <= value < len(self):
            return int(value)
        return default if default is not None and default < len(self) else None

    def _read_special_ids(self) -> None:
        if self.pre is not None:
            self.bos, self.eos = self._id("bos", 11 if self.pre.default_bos else None), self._id("eos", 11)
            self.unk = self._id("unknown")
        else:
            self.bos, self.eos, self.unk = self._id("bos", 1), self._id("eos", 2), self._id("unknown", 0)

    def _read_flags(self) -> None:
        def flag(name: str, default: bool) -> bool:
            value = self._value(f"tokenizer.ggml.{name}", bool)
            return default if value is None else value

        self.add_bos = flag("add_bos_token", self.pre.add_bos if self.pre else True)
        self.add_eos = flag("add_eos_token", False)
        self.add_space_prefix = flag("add_space_prefix", self.pre is None)
        self.clean_spaces = self.pre is not None and self.pre.clean_spaces
        for wanted, token, name in ((self.add_bos, self.bos, "bos"), (self.add_eos, self.eos, "eos")):
            if wanted and token is None:
                raise GGPYError(
                    f"{self.where}: tokenizer.ggml.add_{name}_token asks for a token that "
                    f"tokenizer.ggml.{name}_token_id does not name."
                )

    def _listed_ends(self) -> list[int]:
        """The ends of generation that `ggpy convert` lists where no other key can name them all."""
        listed = self.array("tokenizer.ggml.eog_token_ids")
        found = [] if listed is None else list(listed)
        if not all(isinstance(i, (int, np.integer)) and 0 <= i < len(self.tokens) for i in found):
            raise GGPYError(f"{self.where}: tokenizer.ggml.eog_token_ids must list token ids of this vocabulary.")
        return [int(i) for i in found]

    def _recognise(self) -> None:
        """Find the tokens that end generation, and correct the kinds of tokens whose text says what they are."""
        ids, kinds = self.ids, self.kinds
        ends: set[int] = set()
        for name, texts in _FILL_IN.items():
            token = self._id(_OLD_FILL_IN_KEYS[name]) if name in _OLD_FILL_IN_KEYS else None
            if token is None:
                token = self._id(name)
            if token is None:
                token = next((ids[text] for text in texts if text in ids), None)
                if token is not None:
                    kinds[token] |= CONTROL
            if token is not None and name in ("fim_pad", "fim_rep", "fim_sep"):
                ends.add(token)
        for text in _END_OF_GENERATION:
            if text in ids:
                ends.add(ids[text])
                kinds[ids[text]] |= CONTROL
        # gpt-oss: its channel markers are always shown
        for text in ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"):
            if text in ids:
                kinds[ids[text]] = USER_DEFINED
        ends.update(i for i in (self.eos, self._id("eot"), self._id("eom")) if i is not None)
        ends.update(self._listed_ends())

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

    def _read_strips(self, pre: str) -> None:
        """Tokens that swallow the white space before or after them: GGUF does not say, so model names do."""
        self.strip_before: frozenset[int] = frozenset()
        self.strip_after: frozenset[int] = frozenset()
        model_name = str(self.metadata.get("general.name") or "").lower()
        if any(name in pre for name in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
            self.strip_before = frozenset({self.ids["<mask>"]} if "<mask>" in self.ids else ())
        elif "phi-3" in model_name or "phi3" in model_name:
            kept = {self.ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
            self.strip_after = frozenset({*self.special_ids(), self.ids.get("</s>", -1)} - kept)
        elif "modern-bert" in model_name:
            self.strip_before = frozenset({self.ids["[MASK]"]} if "[MASK]" in self.ids else ())

    def special_ids(self) -> list[int]:
        """Tokens that are found in a text before anything else cuts it, longest text first."""
        kinds = np.frombuffer(bytes(self.kinds), np.uint8)
        found: list[int] = np.flatnonzero(kinds & (CONTROL | USER_DEFINED | UNKNOWN)).tolist()
        return sorted(found, key=lambda i: -len(self.tokens[i].encode("utf-8", "surrogateescape")))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
