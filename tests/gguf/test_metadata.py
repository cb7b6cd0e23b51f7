"""A file whose metadata are not what they should be loads, or is one sentence: every key that ggpy reads, with every
kind of value."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ggpy.cli.inspect import inspect
from ggpy.convert.pipeline import convert
from ggpy.convert.writer import encode_value
from ggpy.errors import GGPYError, quoted, shown
from ggpy.gguf.file import GGUFFile, Metadata
from ggpy.runtime.cache_types import cache_type
from ggpy.runtime.load import check_rows
from ggpy.runtime.placement import Placement
from ggpy.runtime.planned import planned
from ggpy.sampling.sampling_params import FILE_KEYS, SamplingParams, file_sampling_defaults
from ggpy.text.chat_template import ChatTemplate
from ggpy.text.tokenizer import Tokenizer
from tests.support.tiny import tiny_checkpoint


def encoded(value: Any) -> bytes:
    """A metadata value with its type; bytes are a string as it stands."""
    if isinstance(value, bytes):
        return struct.pack("<IQ", 8, len(value)) + value
    if isinstance(value, np.float64):
        return struct.pack("<Id", 12, value)
    return encode_value(value)


# One of every kind, and of every extreme of a kind.
VALUES: dict[str, Any] = {
    "0": 0,
    "7": 7,
    "2^32 - 1": 2**32 - 1,
    "2^64 - 1": np.uint64(2**64 - 1),
    "-1": np.int32(-1),
    "-2^63": np.int64(-(2**63)),
    "byte": np.uint8(1),
    "true": True,
    "false": False,
    "0.0": 0.0,
    "-0.5": -0.5,
    "1.5": 1.5,
    "1e308": np.float64(1e308),
    "nan": float("nan"),
    "inf": float("inf"),
    "empty text": "",
    "text": "text",
    "digits": "7",
    "escapes": "\x1b[2J\x00\x9b\n",
    "no UTF-8": b"\xff\xfe",
    "long text": "\x1b" + "{{" * 500_000,
    "no texts": [],
    "texts": ["a", "b", "a"],
    "long texts": ["x" * 500_000] * 2,
    "no numbers": np.zeros(0, np.int32),
    "numbers": np.array([1, 2, 3], np.int32),
    "large numbers": np.array([2**64 - 1] * 1000, np.uint64),
    "nans": np.full(1000, np.nan, np.float32),
    "trues": np.ones(1000, np.bool_),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models, one with byte-level BPE and one with SentencePiece."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    small = {
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    }
    for kind in ("qwen2", "mistral"):
        made[kind] = folder / f"{kind}.gguf"
        convert(tiny_checkpoint(folder, kind, **small, intermediate_size=64), "q8_0", made[kind])
    return made


def with_value(path: Path, key: str, value: Any, out: Path) -> Path:
    """A copy of the file in which that key has another value, or is there at all."""
    with GGUFFile(path) as file:
        values = {**file.metadata, key: value}
        entries = b"".join(_string(name) + encoded(value) for name, value in values.items())
        start = min(info.offset for info in file.tensors.values())
        infos = b"".join(
            _string(info.name)
            + struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *info.shape[::-1])
            + struct.pack("<IQ", info.type, info.offset - start)
            for info in file.tensors.values()
        )
        header = struct.pack("<4sIQQ", b"GGUF", 3, len(file.tensors), len(values)) + entries + infos
    out.write_bytes(header + bytes(-len(header) % 32) + path.read_bytes()[start:])
    return out


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def load(path: Path) -> None:
    """All that is read of a file before its weights."""
    with GGUFFile(path) as file:
        placement = Placement(file)
        placement.context(None, lambda note: None)
        cache_type(file, planned(file).states)
        tokenizer = Tokenizer.from_gguf(file)
        check_rows(file, tokenizer)
        ids = tokenizer.tokenize("Hello,  wörld</s> 你好\n<|im_end|>", parse_special=True)
        tokenizer.detokenize(ids, skip_special=True)
        template = ChatTemplate.from_gguf(file, tokenizer)
        if template is not None:
            tokenizer.tokenize_chat(template.render([{"role": "user", "content": "Hello"}]))
        SamplingParams().resolved(file_sampling_defaults(file.metadata))


def keys_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every key that loading asks for, there or not."""
    asked: set[str] = set()

    class Watched(Metadata):
        def __contains__(self, key: object) -> bool:
            asked.add(str(key))
            return super().__contains__(key)

        def __getitem__(self, key: str) -> Any:
            asked.add(key)
            return super().__getitem__(key)

    with monkeypatch.context() as patch:
        patch.setattr("ggpy.gguf.file.Metadata", Watched)
        load(path)
    return sorted(asked)


def test_any_value_of_any_key_loads_or_is_one_sentence(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: set[str] = set()
    wrong, loaded = [], 0
    for kind, path in files.items():
        keys = {key for key in keys_read(path, monkeypatch) if key.replace("llama.", "qwen2.") not in done}
        done |= keys
        for key in sorted(keys):
            for name, value in VALUES.items():
                try:
                    load(with_value(path, key, value, tmp_path / "m"))
                    loaded += 1
                except GGPYError as error:
                    text = str(error)
                    if len(text) > 400 or not text.endswith(".") or not text.isprintable():
                        wrong.append((kind, key, name, text[:500]))
                except BaseException as error:
                    wrong.append((kind, key, name, repr(error)[:500]))
    assert not wrong, wrong[:5]
    assert loaded > 200  # most keys may have most values: what matters not is not refused
    assert {"general.name", "tokenizer.chat_template", "qwen2.rope.freq_base", "tokenizer.ggml.scores"} <= done
    assert set(FILE_KEYS.values()) <= done


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", 7, "'general.architecture' must be a text; found 7."),
        ("general.name", np.zeros(10**6, np.int32), "'general.name' must be a text; found an array of 1000000 int32"),
        ("tokenizer.chat_template", ["{{ 1 }}"], "'tokenizer.chat_template' must be a text; found an array of 1"),
        ("tokenizer.ggml.bos_token_id", True, "'tokenizer.ggml.bos_token_id' must be one whole number; found True"),
        ("tokenizer.ggml.bos_token_id", "7", "'tokenizer.ggml.bos_token_id' must be one whole number; found '7'"),
        ("tokenizer.ggml.add_bos_token", 1, "'tokenizer.ggml.add_bos_token' must be true or false; found 1"),
        ("general.sampling.temp", "hot", "'general.sampling.temp' must be a finite number; found 'hot'"),
        ("general.sampling.temp", float("nan"), "'general.sampling.temp' must be a finite number; found nan"),
        ("qwen2.rope.freq_base", 0.0, "with base 0.0, which is impossible"),
        ("qwen2.rope.freq_base", -1.0, "with base -1.0, which is impossible"),
        ("qwen2.attention.layer_norm_rms_epsilon", float("nan"), "must be a finite number; found nan"),
        ("qwen2.attention.layer_norm_rms_epsilon", -1e-6, "must lie between 0 and 1"),
        ("qwen2.block_count", np.uint64(2**64 - 1), "n_layer = 18446744073709551615, which no model can have"),
        ("qwen2.block_count", np.int32(-1), "n_layer = -1, which no model can have"),
    ],
)  # fmt: skip
def test_sentences(files: dict[str, Path], tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(GGPYError) as caught:
        load(with_value(files["qwen2"], key, value, tmp_path / "m.gguf"))
    assert message in str(caught.value)


def test_inspect_shows_any_value(files: dict[str, Path], tmp_path: Path) -> None:
    """Any value shown without the control characters in it."""
    for name, value in VALUES.items():
        path = with_value(files["mistral"], "general.name", value, tmp_path / "m.gguf")
        for options in ((), ("--json",)):
            result = CliRunner().invoke(inspect, [str(path), *options])
            assert result.exit_code == 0, (name, result.exception)
            assert not {"\x1b", "\x00", "\x9b"} & set(result.stdout), name


def long_name(kind: str) -> bytes:
    """A file with a name of 60 kB in a place where an error quotes it."""
    name = _string("\x1b[2J" + "x" * 60_000)
    entry, info = name + encoded(1), name + struct.pack("<IQIQ", 1, 32, 0, 0)
    entries = {
        "twice": [entry, entry],
        "type": [name + struct.pack("<I", 99)],
        "cut": [name + struct.pack("<IQ", 8, 9**9)],
    }
    infos = {"tensor twice": [info, info], "tensor type": [name + struct.pack("<IQIQ", 1, 32, 999, 0)],
             "tensor cut": [info], "tensor shape": [name + struct.pack("<IQIQ", 1, 0, 0, 0)]}  # fmt: skip
    some, others = entries.get(kind, []), infos.get(kind, [])
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(others), len(some)) + b"".join(some + others)
    return header + bytes(-len(header) % 32 + (256 if kind == "tensor twice" else 0))


@pytest.mark.parametrize("kind", ["twice", "type", "cut", "tensor twice", "tensor type", "tensor cut", "tensor shape"])
def test_long_names_are_cut(tmp_path: Path, kind: str) -> None:
    (tmp_path / "m.gguf").write_bytes(long_name(kind))
    with pytest.raises(GGPYError) as caught:
        GGUFFile(tmp_path / "m.gguf")
    assert "xxx…" in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_quoting() -> None:
    assert quoted("a\x1b'\u202e") == repr("a\x1b'\u202e")
    assert shown("a\nb\x9b") == r"a\nb\x9b"
    for value in (
        "x" * 10**6,
        b"x" * 10**6,
        ["x" * 10**6],
        list(range(10**6)),
        10**10000,
        "\x1b" * 10**6,
        {1: "x" * 999},
    ):
        assert len(quoted(value)) <= 200
        assert len(quoted(value, 60)) <= 60
        assert not isinstance(value, str) or shown(value).endswith("…")
    assert len(shown("\x1b" * 1000)) <= 200
    sentence = str(GGPYError("The file " + "x" * 10**6 + " is bad; mend it."))
    assert len(sentence) <= 1000
    assert sentence.startswith("The file x")
    assert sentence.endswith("is bad; mend it.")
