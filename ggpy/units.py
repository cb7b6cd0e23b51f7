"""Sizes in words: one way to write a number of bytes."""

from __future__ import annotations


def size_text(n_bytes: int) -> str:
    """A number of bytes in the largest unit that fits it: "1.91 GiB", "512 B"."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.2f} {unit}"
    return f"{n_bytes} B"
