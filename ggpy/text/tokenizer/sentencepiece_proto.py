"""Models for the sentencepiece package, written as the protocol buffers that it reads.

Source: sentencepiece_model.proto in https://github.com/google/sentencepiece.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray


def model_proto(tokens: list[str], scores: NDArray[np.float32]) -> bytes:
    """A sentencepiece ModelProto with these pieces, one after another, and no normalization.

    Every piece but the byte pieces is of type NORMAL, as llama.cpp merges into any token; special tokens are cut out of
    the text before. An unknown piece, which sentencepiece insists on, follows the others and never appears in text.
    """
    pack_float = struct.Struct("<f").pack
    byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
    proto = bytearray()
    for token, score in zip(tokens, scores.tolist(), strict=True):
        kind = 6 if token in byte_tokens else 1  # BYTE, NORMAL
        proto += _field(1, _field(1, token.encode()) + b"\x15" + pack_float(score) + _number(3, kind))
    proto += _field(1, _field(1, "\U0010ffff unknown".encode()) + _number(3, 2))  # UNKNOWN
    # TrainerSpec: model_type BPE, byte_fallback, unk_id; no begin, end and padding pieces; unk_piece
    trainer = _number(3, 2) + _number(35, 1) + _number(40, len(tokens))
    trainer += _number(41, -1) + _number(42, -1) + _number(43, -1) + _field(45, "\U0010ffff unknown".encode())
    # NormalizerSpec: none of adding a prefix, removing extra white space, escaping white space
    normalizer = _field(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 0)
    return bytes(proto + _field(2, trainer) + _field(3, normalizer))


def normalizer_proto(charsmap: bytes) -> bytes:
    """A sentencepiece ModelProto that holds nothing but a compiled map of characters."""
    return _field(3, _field(1, b"custom") + _field(2, charsmap))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)
