"""A tokenizer's vocabulary on its way into GGUF: texts, types, scores or merges, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from ggpy.errors import GGPYError

# GGUF's token types, which are SentencePiece's own.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

#: Score of tokens that were added to a SentencePiece vocabulary: below every piece.
ADDED_SCORE = -1000.0


@cache
def byte_alphabet() -> tuple[str, ...]:
    """The printable character that byte-level vocabularies write for each of the 256 bytes (GPT-2's table)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [b for b in range(256) if b not in shown]
    return tuple(chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256))


def byte_level_text(token: bytes) -> str:
    """A token's bytes in the byte-level alphabet."""
    alphabet = byte_alphabet()
    return "".join([alphabet[b] for b in token])


@dataclass(frozen=True)
class AddedToken:
    """A token that stands beside the trained vocabulary and is never split. `special`: kept out of plain text."""

    id: int
    content: str
    special: bool


@dataclass
class Vocabulary:
    """Tokens by id. `model` is GGUF's word for the kind: "gpt2" (byte-level BPE) or "llama" (SentencePiece)."""

    model: str
    pre: str
    texts: dict[int, str] = field(default_factory=dict)
    types: dict[int, int] = field(default_factory=dict)
    scores: dict[int, float] | None = None
    merges: list[str] | None = None
    add_bos: bool | None = None  # what the tokenizer's own file says, where it does
    add_eos: bool | None = None
    add_space_prefix: bool | None = None
    special_names: dict[str, str] = field(default_factory=dict)  # role → text, as the tokenizer's own file has them
    special_ids: dict[str, int] = field(default_factory=dict)  # role → id, likewise
    fallback_template: str | None = None  # of a model whose chat format is known and whose folder ships none
    notes: list[str] = field(default_factory=list)

    def put(self, id: int, text: str, type: int, score: float = 0.0) -> None:
        self.texts[id] = text
        self.types[id] = type
        if self.scores is not None:
            self.scores[id] = score

    def put_added(self, token: AddedToken) -> None:
        """An added token: control if special or written like one, else user-defined with its spaces as spaces."""
        if self.types.get(token.id) == UNKNOWN:
            return
        if token.special or looks_special(token.content):
            self.put(token.id, token.content, CONTROL, ADDED_SCORE)
        else:
            self.put(token.id, token.content.replace("\u2581", " "), USER_DEFINED, ADDED_SCORE)

    def find(self, text: str) -> int | None:
        """The id of a token by its text."""
        return next((id for id, other in self.texts.items() if other == text), None)

    def fit(self, n_vocab: int) -> None:
        """Bring the vocabulary to the rows of the embedding: padding for ids without a token; every text once."""
        beyond = sorted(id for id in self.texts if id >= n_vocab)
        if any(self.types[id] in (NORMAL, BYTE) for id in beyond):
            raise GGPYError(
                f"The tokenizer has tokens up to id {beyond[-1]}, but the model's vocab_size is {n_vocab}"
                "; the tokenizer belongs to another model."
            )
        for id in beyond:
            self.notes.append(f"the token {self.texts[id]!r} has the id {id}, beyond the model's {n_vocab}; left out.")
            del self.texts[id], self.types[id]
        used: dict[str, int] = {}
        for id in range(n_vocab):
            text = self.texts.get(id, "")
            if not text or text in used:
                if text:
                    self.notes.append(
                        f"the token {text!r} stands under the ids {used[text]} and {id}; only the first counts."
                    )
                self.put(id, f"[PAD{id}]", UNUSED, -10000.0)
                text = self.texts[id]
                while text in used:
                    text = self.texts[id] = f"[{text}]"
            used[text] = id

    def metadata(self) -> dict[str, Any]:
        """The `tokenizer.ggml.*` keys of the vocabulary itself, in the order of ids. Call `fit` before."""
        ids = range(len(self.texts))
        result: dict[str, Any] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": [self.texts[id] for id in ids],
        }
        if self.scores is not None:
            result["tokenizer.ggml.scores"] = np.array([self.scores.get(id, 0.0) for id in ids], np.float32)
        result["tokenizer.ggml.token_type"] = np.array([self.types[id] for id in ids], np.int32)
        if self.merges is not None:
            result["tokenizer.ggml.merges"] = self.merges
        if self.add_space_prefix is not None:
            result["tokenizer.ggml.add_space_prefix"] = self.add_space_prefix
        return result


def looks_special(text: str) -> bool:
    """Whether an added token is written like a control token, though its file does not call it special."""
    if text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]"):
        return True
    return any(
        len(text) > len(a + z) and text.startswith(a) and text.endswith(z)
        for a, z in (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    )


def added_tokens(entries: Any, where: str) -> list[AddedToken]:
    """Added tokens from tokenizer.json's list or tokenizer_config.json's object by id. GGPYError names a bad one."""
    if isinstance(entries, Mapping):
        entries = [{**entry, "id": id} if isinstance(entry, Mapping) else entry for id, entry in entries.items()]
    if not isinstance(entries, list):
        raise GGPYError(f"{where} must be a list of tokens or an object of them; it is {type(entries).__name__}.")
    result = []
    for entry in entries:
        id, content = (entry.get("id"), entry.get("content")) if isinstance(entry, Mapping) else (None, None)
        if isinstance(id, str) and id.isdecimal():
            id = int(id)
        if isinstance(id, bool) or not isinstance(id, int) or id < 0 or not isinstance(content, str):
            raise GGPYError(f"{where} holds {entry!r:.80}, which is not a token with an id and a content.")
        result.append(AddedToken(id, content, entry.get("special") is True))
    return result
