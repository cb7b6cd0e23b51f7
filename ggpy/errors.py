"""The one exception that reaches a user, whose text is a whole sentence that says what is wrong, where, and what to do;
and how such a sentence quotes what came from a file or a caller."""

from __future__ import annotations

_LONGEST = 200  # characters of a name or a value in a sentence
_LONGEST_SENTENCE = 1000  # more is no sentence any more: somebody's text came in uncut


class GGPYError(Exception):
    """A condition the user can act on. `str(error)` is printed as it stands, without a traceback."""

    def __init__(self, sentence: str = "") -> None:
        super().__init__(shortened(sentence))


class OutOfMemory(GGPYError):
    """A device has no room for what is to be loaded."""


def shortened(sentence: str, most: int = _LONGEST_SENTENCE) -> str:
    """A sentence cut in its middle: what is wrong stands in front, what to do at the end."""
    end = most * 3 // 10
    return sentence if len(sentence) <= most else f"{sentence[: most - end - 3]} … {sentence[-end:]}"


def shown(value: object, most: int = _LONGEST) -> str:
    """A name or a message that is not ours, for a sentence: on one line, control characters spelt out, cut."""
    text = str(value)
    cut = text[:most]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)
    return cut if len(cut) <= most and len(text) <= most else f"{cut[: most - 1]}…"


def quoted(value: object, most: int = _LONGEST) -> str:
    """A value as Python writes it, cut: a text in quotes, and nothing that a terminal would obey."""
    try:
        if isinstance(value, (str, bytes, bytearray)):
            text = repr(value[:most])
            return text if len(value) <= most and len(text) <= most else f"{text[: most - 1]}…"
        if isinstance(value, (list, tuple)) and len(value) > most:
            value = value[:most]
        return shown(repr(value), most)
    except Exception:  # a number of too many digits, or somebody's own class
        return f"a value of the type {type(value).__name__}"
