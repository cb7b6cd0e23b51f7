"""`ggpy tokenize` on a file that holds nothing but a vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ggpy.text.tokenizer import Tokenizer
from tests.support.vocabularies import CONTROL, bpe_metadata, write_gguf


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = bpe_metadata("qwen2", {"<|im_end|>": CONTROL}, add_bos_token=True)
    return write_gguf(tmp_path_factory.mktemp("词") / "vocab only.gguf", metadata)


def _ggpy(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "ggpy", "tokenize", *arguments], input=stdin, capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_ids_table_and_json(vocabulary: Path) -> None:
    tokenizer = Tokenizer.from_gguf(vocabulary)
    text = "The 龘\n<|im_end|>"
    end = tokenizer.token_id("<|im_end|>")
    ids = tokenizer.tokenize(text, parse_special=True)
    assert ids[0] == ids[-1] == end  # it is BOS too
    assert _ggpy("-m", str(vocabulary), "-p", text, "--ids") == (0, f"{ids}\n", "")

    status, table, _ = _ggpy("-m", str(vocabulary), "-f", "-", stdin=text.encode())
    lines = table.splitlines()
    assert status == 0
    assert [int(line.split()[0]) for line in lines] == ids
    assert lines[0].endswith("  '<|im_end|>'")
    assert any(r"  b'\x" in line for line in lines)  # part of a character
    assert any(r"\n'" in line for line in lines)

    _, listed, _ = _ggpy("-m", str(vocabulary), "-p", text, "--json", "--no-special", "--no-parse-special")
    records = json.loads(listed)
    assert [record["id"] for record in records] == tokenizer.tokenize(text, add_special=False)
    assert b"".join(bytes(record["bytes"]) for record in records).decode() == text


def test_an_unknown_pre_tokenizer_is_noted(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "v.gguf", {**bpe_metadata("qwen2"), "tokenizer.ggml.pre": "mine"})
    status, out, err = _ggpy("-m", str(path), "-p", "Hi", "--ids")
    assert (status, out) == (0, f"{Tokenizer.from_gguf(path).tokenize('Hi')}\n")
    assert "the pre-tokenizer 'mine' is none that ggpy knows" in err


def test_what_a_terminal_would_obey_is_spelt_out(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "v.gguf", bpe_metadata("qwen2", {"\x9b2J\x1b\x7f": CONTROL}))
    for option in ("--json", "--no-special"):
        status, out, _ = _ggpy("-m", str(path), "-p", "\x9b2J\x1b\x7f", option)
        assert status == 0
        assert not {"\x9b", "\x1b", "\x7f"} & set(out)
    _, out, _ = _ggpy("-m", str(path), "-p", "\x9b2J\x1b\x7f", "--json")
    assert json.loads(out)[0]["piece"] == "\x9b2J\x1b\x7f"


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["-f", "-"], b"a\xff", "Standard input is not valid UTF-8: byte 0xFF at offset 1"),
        ([], b"", "There is no text"),
        (["-p", "a", "-f", "-"], b"", "both give the text"),
        (["-p", "a", "--ids", "--json"], b"", "leave one of them out"),
    ],
)
def test_errors_are_one_sentence(vocabulary: Path, arguments: list[str], stdin: bytes, said: str) -> None:
    status, out, err = _ggpy("-m", str(vocabulary), *arguments, stdin=stdin)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
