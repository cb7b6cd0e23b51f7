"""Tokenizers read from GGUF files: text to token ids and back, as the models' own tokenizers do it.

`Tokenizer.from_gguf` takes any GGUF file with a byte-level BPE, SentencePiece, Unigram, WordPiece, RWKV or PLaMo 2
vocabulary, with or without tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from ggpy import arguments
from ggpy.errors import GGPYError, quoted
from ggpy.text.tokenizer.byte_alphabet import token_text_to_bytes
from ggpy.text.tokenizer.special import SpecialTokens
from ggpy.text.tokenizer.stream import StreamDecoder
from ggpy.text.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, Vocabulary

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile

__all__ = ["StreamDecoder", "Tokenizer"]

#: The file and the class of each way to cut text.
_ENCODERS = {
    "gpt2": "bpe.BytePairEncoding",
    "llama": "sentencepiece.ScoredPieces",
    "bert": "wordpiece.WordPiece",
    "t5": "unigram.Unigram",
    "rwkv": "rwkv.LongestTokens",
    "plamo2": "plamo2.ScoredCuts",
}


class _Encoder(Protocol):
    def encode(self, text: str) -> list[int]: ...


def _encoder(vocabulary: Vocabulary) -> _Encoder:
    module, _, kind = _ENCODERS[vocabulary.model].partition(".")
    found: _Encoder = getattr(import_module(f"{__name__}.{module}"), kind)(vocabulary)
    return found


class Tokenizer:
    """A vocabulary and the way its model cuts text. Raises GGPYError for a vocabulary that cannot be used."""

    def __init__(self, metadata: Mapping[str, Any], where: str = "the vocabulary") -> None:
        """Read a tokenizer from GGUF metadata. `where` names the file in errors."""
        if not isinstance(metadata, Mapping):
            raise arguments.wrong("metadata", metadata, "the keys and values of a GGUF file")
        self._vocabulary = vocabulary = Vocabulary(metadata, where)
        self._special = SpecialTokens(vocabulary, vocabulary.normalizer())
        self._encoder = _encoder(vocabulary)
        self._pieces: dict[int, bytes] = {}
        self.n_vocab = len(vocabulary)
        self.note = vocabulary.note  # for users: what may make its tokens others than the model's own
        self.bos, self.eos, self.unk = vocabulary.bos, vocabulary.eos, vocabulary.unk
        self.eog = vocabulary.eog  # every token that ends generation
        self.fill_in = vocabulary.fill_in  # those of infill, by the ends of their keys: fim_pre, fim_suf, fim_mid …
        self.add_bos, self.add_eos = vocabulary.add_bos, vocabulary.add_eos
        self.add_space_prefix = vocabulary.add_space_prefix  # text begins with a space it was not given
        self.spells_first_space = vocabulary.add_space_prefix or vocabulary.model == "bert"  # and so do its tokens

    @classmethod
    def from_gguf(cls, source: str | os.PathLike[str] | GGUFFile) -> Tokenizer:
        """The tokenizer of a GGUF file, by path or already open. The file need hold no tensors."""
        from ggpy.gguf.file import GGUFFile

        if isinstance(source, GGUFFile):
            return cls(source.metadata, str(source.path))
        with GGUFFile(source) as file:  # what is decoded later, as merges are, was read with the header
            return cls(file.metadata, str(file.path))

    def difference(self, other: Tokenizer) -> str | None:
        """In words for an error, where another vocabulary differs, padding aside; None where ids mean the same."""
        return self._vocabulary.difference(other._vocabulary)

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = False, *, continues: bool = False
    ) -> list[int]:
        """The token ids of `text`.

        `add_special` puts BOS before and EOS after where the vocabulary wants them. `parse_special` takes special
        tokens written in the text for the tokens they name; without it they are text like any other, except tokens
        that the vocabulary calls user-defined. `continues`: the text goes on after other text, so no space is put
        before it.
        """
        text = _without_surrogates(arguments.text("text", text))
        for name, value in (("add_special", add_special), ("parse_special", parse_special), ("continues", continues)):
            arguments.flag(name, value)
        ids: list[int] = []
        if add_special:
            ids += self._vocabulary.before
            ids += [self.bos] if self.add_bos and self.bos is not None else []
        scheme = self._vocabulary.space_prefix
        begins = self.add_space_prefix and not continues
        for piece in self._special.partition(text, parse_special):
            if isinstance(piece, int):
                ids.append(piece)
                begins = self.add_space_prefix and scheme != "first"
                continue
            if begins and not (piece.startswith((" ", SPACE)) and (scheme or self._vocabulary.model == "gpt2")):
                piece = " " + piece
            ids += self._encoder.encode(piece)
            begins = False
        if add_special:
            ids += self._ends()
        return ids

    def tokenize_pair(self, first: str, second: str) -> tuple[list[int], int]:
        """The token ids of two texts as cross-encoders read them together, and the index from which on they belong to
        the second: BERT puts [SEP] between them, RoBERTa and its kind </s> twice."""
        begin, end = self.tokenize(first, parse_special=True), [*self._ends()]
        if end and self.token_text(end[-1]) == "</s>":
            begin += end
        second_ids = self.tokenize(second, add_special=False, parse_special=True)
        return begin + second_ids + end, len(begin)

    def _ends(self) -> tuple[int, ...]:
        """The tokens that are put after a text."""
        ends = (self.eos,) if self.add_eos and self.eos is not None else ()
        return ends + self._vocabulary.after

    def tokenize_chat(self, rendered: str) -> list[int]:
        """The token ids of a conversation that a chat template wrote, special tokens parsed.

        Begins with BOS once where the vocabulary wants one, whether or not the template wrote it.
        """
        ids = self.tokenize(arguments.text("rendered", rendered), add_special=False, parse_special=True)
        if self.add_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def detokenize(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of a whole sequence of tokens: the inverse of `tokenize`.

        Invalid UTF-8 appears as U+FFFD. `skip_special` leaves out control and unknown tokens. Spaces before
        punctuation stay as they are.
        """
        decoder = StreamDecoder(self, skip_special=arguments.flag("skip_special", skip_special), start=True)
        return "".join([decoder.push(token) for token in arguments.token_ids("ids", ids)]) + decoder.flush()

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        """The bytes that a token stands for; with `special` false, control and unknown tokens have none."""
        token, kind = self._known(token)
        if not special and kind & (CONTROL | UNKNOWN):
            return b""
        piece = self._pieces.get(token)
        if piece is None:
            self._pieces[token] = piece = self._piece(token, kind)
        return piece

    def token_text(self, token: int) -> str:
        """The token as the vocabulary writes it."""
        return self._vocabulary.tokens[self._known(token)[0]]

    def token_id(self, text: str) -> int | None:
        """The id of the token that the vocabulary writes as `text`, or None."""
        return self._vocabulary.ids.get(arguments.text("text", text))

    def is_control(self, token: int) -> bool:
        """True where the token steers the model and is not part of any text."""
        return bool(self._known(token)[1] & CONTROL)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, as the vocabulary writes it: no token stands for more."""
        return max(map(len, self._vocabulary.tokens))

    def _known(self, token: int) -> tuple[int, int]:
        """A token of the vocabulary, and its kinds."""
        if type(token) is not int:
            token = arguments.token_id("token", token)
        if not 0 <= token < self.n_vocab:
            raise GGPYError(
                f"{self._vocabulary.where}: token id {quoted(token)} is outside the vocabulary, whose ids are 0 to "
                f"{self.n_vocab - 1}."
            )
        return token, self._vocabulary.kinds[token]

    def _piece(self, token: int, kind: int) -> bytes:
        text = self._vocabulary.tokens[token]
        if self._vocabulary.model == "bert":
            return (" " + text[1:] if text.startswith(SPACE) else text).encode("utf-8", "surrogateescape")
        if kind & (CONTROL | UNKNOWN | USER_DEFINED):
            return text.encode("utf-8", "surrogateescape")
        if kind & NORMAL:
            if self._vocabulary.model == "gpt2":
                return token_text_to_bytes(text)
            if self._vocabulary.model == "rwkv":
                from ggpy.text.tokenizer.rwkv import token_bytes

                return token_bytes(text)
            return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")
        if kind & BYTE:
            try:
                return bytes([int(text[3:5], 16)])  # <0x0A>
            except ValueError:
                raise GGPYError(
                    f"{self._vocabulary.where}: token {token} is a byte token but is written {quoted(text)}, "
                    "not <0x0A>."
                ) from None
        return b""


def _without_surrogates(text: str) -> str:
    """Text that UTF-8 can hold: halves of surrogate pairs are joined, and single ones become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
