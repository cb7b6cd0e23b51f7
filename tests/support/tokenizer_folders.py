"""Checkpoint folders for tests of the tokenizer's way into GGUF: changing their files, and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ggpy import Tokenizer
from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.tokenizer_export import export_tokenizer
from tests.support.tiny import byte_level_json, sentencepiece_pieces


def put(folder: Path, name: str, value: Any) -> None:
    """Write a file of JSON."""
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def update(folder: Path, name: str, **changes: Any) -> None:
    """Change entries of a file of JSON."""
    put(folder, name, {**json.loads((folder / name).read_text(encoding="utf-8")), **changes})


def remove(folder: Path, name: str, *keys: str) -> None:
    """Take entries out of a file of JSON."""
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    put(folder, name, {key: value for key, value in values.items() if key not in keys})


def exported(folder: Path, n_vocab: int = 512) -> tuple[dict[str, Any], list[str]]:
    """The keys of the GGUF file, and the notes."""
    with Checkpoint(folder) as checkpoint:
        return export_tokenizer(checkpoint, n_vocab)


def export(folder: Path, n_vocab: int = 512) -> dict[str, Any]:
    return exported(folder, n_vocab)[0]


def tokenizer_of(folder: Path, n_vocab: int = 512) -> Tokenizer:
    """The reader's tokenizer of what the converter wrote."""
    return Tokenizer(export(folder, n_vocab))


def spm_like_json() -> dict[str, Any]:
    """A tokenizer.json like the fast version of a SentencePiece tokenizer: merges in place of scores."""
    pieces = sentencepiece_pieces()
    vocab = {text: id for id, (text, _, _) in enumerate(pieces)}
    merges = [
        [text[:i], text[i:]]
        for text, _, kind in pieces
        if kind == 1
        for i in range(1, len(text))
        if text[:i] in vocab and text[i:] in vocab
    ]
    tokenizer = byte_level_json((), [])
    tokenizer.update(
        added_tokens=[
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for i, text in enumerate(("<unk>", "<s>", "</s>"))
        ],
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ]},
        pre_tokenizer=None,
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    )  # fmt: skip
    tokenizer["model"].update(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return tokenizer
