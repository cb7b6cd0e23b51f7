"""The vocabulary in a tokenizer.model: SentencePiece's protobuf, of which a few fields are read.

The `sentencepiece` package exposes neither user-defined pieces nor the kind of model and its space prefix, so the wire
format is walked here: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ggpy.convert.vocabulary import NORMAL, USER_DEFINED, Vocabulary, set_charsmap
from ggpy.errors import GGPYError
from ggpy.text.tokenizer.vocabulary import OWN

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_KINDS = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
_ROLE_FIELDS = {40: ("unk", 0), 41: ("bos", 1), 42: ("eos", 2), 43: ("pad", -1)}


def read_sentencepiece_model(data: bytes, where: str) -> Vocabulary:
    """The vocabulary of a serialized SentencePiece model. GGPYError where it is none, or GGUF has no place for it."""
    vocabulary = Vocabulary("llama", "default", scores={}, add_bos=True, add_eos=False, add_space_prefix=True)
    kind, byte_fallback, charsmap, remove_extra_whitespaces = 1, False, b"", True  # the fields' defaults
    roles = dict(_ROLE_FIELDS.values())
    try:
        for number, value in _fields(data):
            if number == _PIECES and isinstance(value, bytes):
                _read_piece(vocabulary, value)
            elif number == _TRAINER and isinstance(value, bytes):
                for inner, setting in _fields(value):
                    if inner == 3 and isinstance(setting, int):
                        kind = setting
                    elif inner == 24 and setting:
                        raise GGPYError(f"{where} puts spaces after words, which GGUF's tokenizers do not do.")
                    elif inner == 35:
                        byte_fallback = bool(setting)
                    elif inner in _ROLE_FIELDS and isinstance(setting, int):
                        roles[_ROLE_FIELDS[inner][0]] = setting - (1 << 64) if setting >> 63 else setting
            elif number == _NORMALIZER and isinstance(value, bytes):
                for inner, setting in _fields(value):
                    if inner == 2 and isinstance(setting, bytes):
                        charsmap = setting
                    elif inner == 3:
                        vocabulary.add_space_prefix = bool(setting)
                    elif inner == 4:
                        remove_extra_whitespaces = bool(setting)
                    elif inner == 5 and not setting:
                        raise GGPYError(f"{where} does not write spaces as \u2581, which GGUF's tokenizers do.")
    except (ValueError, IndexError, struct.error) as error:
        raise GGPYError(f"{where} is not a SentencePiece model: {error}.") from error
    if not vocabulary.texts:
        raise GGPYError(f"{where} is not a SentencePiece model: it holds no pieces.")
    if kind not in (1, 2):
        raise GGPYError(f"{where} is a {_MODEL_KINDS.get(kind, kind)} model; GGUF has a place for BPE and Unigram.")
    if kind == 1:
        vocabulary.model = "t5"
    if not byte_fallback and kind == 2:
        vocabulary.extra[f"{OWN}fuse_unk"] = True  # of unknown characters side by side it makes one token
    set_charsmap(vocabulary, charsmap)
    if remove_extra_whitespaces:
        vocabulary.extra["tokenizer.ggml.remove_extra_whitespaces"] = True
        vocabulary.note("the tokenizer makes one space of several and drops those at the ends of a text", own=True)
    vocabulary.special_ids = {role: id for role, id in roles.items() if 0 <= id < len(vocabulary.texts)}
    return vocabulary


def _read_piece(vocabulary: Vocabulary, message: bytes) -> None:
    text, score, type = "", 0.0, NORMAL
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int) and 1 <= value <= 6:
            type = value
    if type == USER_DEFINED:
        text = text.replace("\u2581", " ")
    vocabulary.put(len(vocabulary.texts), text, type, score)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: varints as int, everything else as its bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if size > len(data) - at:
            raise ValueError(f"a field at byte {at} reaches beyond the end")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(f"a number at byte {at} does not end")
