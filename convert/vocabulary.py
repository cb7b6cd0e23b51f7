"""A tokenizer's vocabulary on its way into GGUF: texts, types, scores or merges, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ggpy.errors import GGPYError, quoted
from ggpy.text.tokenizer.byte_alphabet import CHARACTER_OF_BYTE
from ggpy.text.tokenizer.normalize import sentencepiece_rules
from ggpy.text.tokenizer.vocabulary import FLAGS, OWN

# GGUF's token types, which are SentencePiece's own.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

#: Score of tokens that were added to a SentencePiece vocabulary: below every piece.
ADDED_SCORE = -1000.0


def byte_level_text(token: bytes) -> str:
    """A token's bytes in the byte-level alphabet."""
    return "".join([CHARACTER_OF_BYTE[b] for b in token])


@dataclass(frozen=True)
class AddedToken:
    """A token that stands beside the trained vocabulary and is never split. `special`: kept out of plain text."""

    id: int
    content: str
    special: bool
    flags: frozenset[str]  # of FLAGS


@dataclass
class Vocabulary:
    """Tokens by id. `model` is GGUF's word for the kind: "gpt2" (byte-level BPE), "llama" (SentencePiece), "t5"
    (Unigram) or "bert" (WordPiece)."""

    model: str
    pre: str
    texts: dict[int, str] = field(default_factory=dict)
    types: dict[int, int] = field(default_factory=dict)
    scores: dict[int, float] | None = None
    merges: list[str] | None = None
    continuing_prefix: str | None = None  # of WordPiece's pieces that continue a word
    add_bos: bool | None = None  # what the tokenizer's own file says, where it does
    add_eos: bool | None = None
    add_space_prefix: bool | None = None
    special_ids: dict[str, int] = field(default_factory=dict)  # role → id, as the tokenizer's own file has them
    before: tuple[int, ...] = ()  # tokens that the tokenizer's own file puts around a text
    after: tuple[int, ...] = ()
    flags: dict[int, frozenset[str]] = field(default_factory=dict)  # of the added tokens
    extra: dict[str, Any] = field(default_factory=dict)  # more keys, GGUF's and our own
    fallback_template: str | None = None  # of a model whose chat format is known and whose folder ships none
    notes: list[str] = field(default_factory=list)

    @property
    def in_pieces(self) -> bool:
        """True for SentencePiece's kinds, which write spaces as \u2581."""
        return self.model in ("llama", "t5")

    def put(self, id: int, text: str, type: int, score: float = 0.0) -> None:
        self.texts[id] = text
        self.types[id] = type
        if self.scores is not None:
            self.scores[id] = score

    def put_added(self, token: AddedToken) -> None:
        """An added token: control if special, which hides it in text, else user-defined with its spaces as spaces."""
        if self.types.get(token.id) == UNKNOWN and self.model != "bert":  # there it is a control token to all
            return
        self.flags[token.id] = token.flags
        if token.special:
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
            self.notes.append(
                f"the token {quoted(self.texts[id])} has the id {id}, beyond the model's {n_vocab}; left out."
            )
            del self.texts[id], self.types[id]
        used: dict[str, int] = {}
        for id in range(n_vocab):
            text = self.texts.get(id, "")
            if not text or text in used:
                if text:
                    self.notes.append(
                        f"the token {quoted(text)} stands under the ids {used[text]} and {id}; only the first counts."
                    )
                self.put(id, f"[PAD{id}]", UNUSED, -10000.0)
                text = self.texts[id]
                while text in used:
                    text = self.texts[id] = f"[{text}]"
            used[text] = id

    def metadata(self) -> dict[str, Any]:
        """The `tokenizer.ggml.*` keys of the vocabulary itself, in the order of ids. Call `fit` before."""
        ids = range(len(self.texts))
        texts = self._word_starts() if self.continuing_prefix else self.texts
        result: dict[str, Any] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": [texts[id] for id in ids],
        }
        if self.scores is not None:
            result["tokenizer.ggml.scores"] = np.array([self.scores.get(id, 0.0) for id in ids], np.float32)
        result["tokenizer.ggml.token_type"] = np.array([self.types[id] for id in ids], np.int32)
        if self.merges is not None:
            result["tokenizer.ggml.merges"] = self.merges
        if self.add_space_prefix is not None:
            result["tokenizer.ggml.add_space_prefix"] = self.add_space_prefix
        return {**result, **self.extra, **self._matching()}

    def _word_starts(self) -> dict[int, str]:
        """WordPiece's texts as GGUF has them: ▁ before what begins a word, no prefix before what continues one."""
        prefix = self.continuing_prefix or ""
        plain = (CONTROL, UNKNOWN, UNUSED)
        continuing = {id for id, text in self.texts.items() if text.startswith(prefix) and self.types[id] == NORMAL}
        result = {
            id: text if self.types[id] in plain else f"\u2581{text}"
            for id, text in self.texts.items()
            if id not in continuing
        }
        used = set(result.values())
        for id in sorted(continuing):
            text = self.texts[id][len(prefix) :]
            if not text or text in used or text.startswith("\u2581"):
                self.note(f"GGUF has no way to write the piece {quoted(self.texts[id])}; it is never used.")
                text, self.types[id] = f"[PAD{id}]", UNUSED
            result[id] = text
        return result

    def _matching(self) -> dict[str, Any]:
        """How added tokens are matched, where that is not on the text as it is; a note says so."""
        flags = {id: flags for id, flags in self.flags.items() if self.types.get(id) in (CONTROL, USER_DEFINED)}
        unlike = {"normalized" in of for of in flags.values()} == {True, False}
        if not unlike and f"{OWN}normalizer" not in self.extra:
            flags = {id: of - {"normalized"} for id, of in flags.items()}
        lists = {flag: sorted(id for id, of in flags.items() if flag in of) for flag in FLAGS}
        for flag in ("lstrip", "rstrip", "single_word"):
            if lists[flag]:
                self.note(f"the tokenizer finds {self.some(lists[flag])} with {flag!r}", own=True)
        return {f"{OWN}{flag}_token_ids": np.array(ids, np.int32) for flag, ids in lists.items() if ids}

    def some(self, ids: Sequence[int]) -> str:
        """The first of these tokens, for a note."""
        more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
        return ", ".join(quoted(self.texts[id], 40) for id in ids[:3]) + more

    def set_space_prefix(self, scheme: str | None) -> None:
        """Where a space is put if there is none: "first", before a text, or "always", after special tokens too; None
        puts it there in any case, as SentencePiece and other readers of GGUF do."""
        self.extra.pop(f"{OWN}space_prefix", None)
        if scheme in ("first", "always") and self.add_space_prefix:
            self.extra[f"{OWN}space_prefix"] = scheme

    def note(self, text: str, own: bool = False) -> None:
        """A note for the user, once. `own`: a key of our own follows what the text says."""
        text += ", which ggpy follows and other readers of GGUF do not." if own else ""
        if text not in self.notes:
            self.notes.append(text)


def set_charsmap(vocabulary: Vocabulary, charsmap: bytes) -> None:
    """SentencePiece's compiled map of characters, under GGUF's key for it."""
    if charsmap:
        sentencepiece_rules(charsmap, False)
        vocabulary.extra["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(charsmap, np.uint8)
        vocabulary.note("the tokenizer normalizes text by SentencePiece's map of characters", own=True)


def token_ids(vocab: Any, where: str) -> dict[str, int]:
    """The `vocab` of a tokenizer.json, checked: tokens and their ids, each there once."""
    if not isinstance(vocab, dict) or not vocab:
        raise GGPYError(f"{where} has no vocabulary.")
    if not all(type(id) is int and 0 <= id < 1 << 31 for id in vocab.values()):
        raise GGPYError(f"{where} gives a token an id that is not a whole number.")
    if len(set(vocab.values())) != len(vocab):
        raise GGPYError(f"{where} gives two tokens the same id.")
    return vocab


def text_of(entry: Any) -> str | None:
    """The text of a token that is given by its text, or as an object that holds it; None for anything else."""
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    return text if isinstance(text, str) and text else None


def looks_special(text: str) -> bool:
    """True where an added token is written like a control token, for files that do not say what it is."""
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
        if isinstance(id, str) and id.isdecimal() and len(id) < 10:  # longer ones are no ids
            id = int(id)
        if isinstance(id, bool) or not isinstance(id, int) or id < 0 or not isinstance(content, str):
            raise GGPYError(f"{where} holds {entry!r:.80}, which is not a token with an id and a content.")
        special = entry.get("special") is True
        flags = frozenset(f for f in FLAGS if entry.get(f, f == "normalized" and not special) is True)
        result.append(AddedToken(id, content, special, flags))
    return result
