"""PTX read into instructions, for `ptx_emulator`. Source: the PTX ISA manual."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Instruction:
    op: str
    parts: list[str]  # of the opcode, after its name
    args: list[Any]
    guard: tuple[str, bool] | None  # predicate, and whether it is negated
    text: str


@dataclass
class Entry:
    name: str
    params: list[tuple[str, int]]  # name, bytes
    code: list[Instruction]
    labels: dict[str, int]
    bits: dict[str, int]  # of each register; 1 for predicates
    shared: dict[str, int]  # offset of each shared array
    shared_bytes: int  # without dynamic memory
    constants: dict[str, np.ndarray]  # what the code carries along


def parse(text: str) -> Entry:
    text = re.sub(r"//.*|/\*.*?\*/", "", text)
    shared: dict[str, int] = {}
    at, dynamic = 0, []
    for extern, align, name, size in re.findall(r"(\.extern )?\.shared \.align (\d+) \.b8 (\w+)\[(\d*)\];", text):
        if extern or not size:
            dynamic.append(name)
        else:
            at = -(-at // int(align)) * int(align)
            shared[name] = at
            at += int(size)
    at = -(-at // 128) * 128
    shared.update(dict.fromkeys(dynamic, at))
    head = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{", text, re.S)
    assert head
    params = [(n, int(bits) // 8) for bits, n in re.findall(r"\.param \.[a-z](\d+) (\w+)", head[2])]
    constants = {
        name: _array(int(bits), int(n), words.split(","))
        for bits, name, n, words in re.findall(r"\.global \.align \d+ \.[bu](\d+) (\w+)\[(\d+)\] = \{([^}]*)\};", text)
    }
    entry = Entry(head[1], params, [], {}, {}, shared, at, constants)
    scopes: list[dict[str, str]] = [{}]
    body = text[head.end() :]
    # statements end at ';', labels at ':', and inline pieces stand in braces of their own
    position, n_scopes = 0, 0
    while position < len(body):
        rest = body[position:]
        if space := re.match(r"\s+", rest):
            position += space.end()
        elif rest[0] == "}":
            scopes.pop()
            position += 1
            if not scopes:
                break
        elif rest[0] == "{":
            scopes.append({})
            n_scopes += 1
            position += 1
        elif label := re.match(r"([$\w]+):", rest):
            entry.labels[label[1]] = len(entry.code)
            position += label.end()
        else:
            end = rest.index(";")
            _statement(entry, " ".join(rest[:end].split()), scopes, n_scopes)
            position += end + 1
    return entry


def _array(bits: int, n: int, words: list[str]) -> np.ndarray:
    """A constant array of n numbers, the last of which are 0 where they are not written."""
    array = np.zeros(n, np.dtype(f"u{bits // 8}"))
    array[: len(words)] = [int(word) for word in words]
    return array


def _statement(entry: Entry, text: str, scopes: list[dict[str, str]], scope: int) -> None:
    if text.startswith(".reg"):
        kind, names = re.match(r"\.reg \.(\w+) (.*)", text).groups()  # type: ignore[union-attr]
        bits = 1 if kind == "pred" else int(kind[1:])
        for name in names.split(","):
            name = name.strip()
            if many := re.match(r"(.*)<(\d+)>", name):
                entry.bits.update({f"{many[1]}{i}": bits for i in range(int(many[2]))})
            else:
                inner = name if len(scopes) == 1 else f"{name}@{scope}"
                scopes[-1][name] = inner
                entry.bits[inner] = bits
        return
    if text.startswith("."):
        if ".shared" in text or ".pragma" in text or ".loc" in text:
            return
        raise NotImplementedError(text)
    guard = None
    if text[0] == "@":
        mark, text = text.split(" ", 1)
        guard = (mark[1:].lstrip("!"), mark[1] == "!")
    op, _, rest = text.partition(" ")
    name, *parts = op.split(".")

    def one(word: str) -> Any:
        word = word.strip()
        if word.startswith("{"):
            return [one(w) for w in word[1:-1].split(",")]
        if word.startswith("["):
            inside = word[1:-1]
            base, plus, offset = inside.partition("+")
            return ("at", one(base), int(offset) if plus else 0)
        for names in reversed(scopes):
            if word in names:
                return names[word]
        return word

    if guard:
        guard = (one(guard[0]), guard[1])
    words = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s|][^,|]*", rest)
    entry.code.append(Instruction(name, parts, [one(w) for w in words], guard, text))
