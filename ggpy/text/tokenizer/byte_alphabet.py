"""The 256 printable characters that stand for bytes in byte-level vocabularies, as GPT-2 has them."""

from __future__ import annotations


def _byte_characters() -> list[str]:
    """The character that stands for each byte: itself where it prints, else the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


CHARACTER_OF_BYTE = _byte_characters()
BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(CHARACTER_OF_BYTE)}


def token_text_to_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; a token with characters of its own stands for their UTF-8."""
    try:
        return bytes([BYTE_OF_CHARACTER[c] for c in token])
    except KeyError:
        return token.encode("utf-8", "surrogateescape")
