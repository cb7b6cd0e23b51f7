"""A batch's two files: what is refused before anything runs, and what is left of results after a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ggpy.batch.files import Results, read_requests
from ggpy.errors import GGPYError


def result(name: str, text: str = "Hi") -> dict[str, Any]:
    response = {"status_code": 200, "request_id": "req_1", "body": {"text": text}}
    return {"id": "batch_req_1", "custom_id": name, "response": response, "error": None}


def encoded(*rows: Any) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(encoded({"custom_id": "a"}))
    return path


def test_requests_are_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    first = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "你好\u2028"}}
    path.write_bytes(b"\xef\xbb\xbf" + encoded(first) + b"\n  \r\n" + encoded({"custom_id": "b"}).rstrip())
    one, two = read_requests(path)
    assert (one.custom_id, one.method, one.url, one.body) == tuple(first.values())
    assert (two.custom_id, two.method, two.url, two.body) == ("b", None, None, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"custom_id": "a"}\n{"custom_id"', "line 2 is no JSON object"),
        (b"[1]\n", "line 1 is no JSON object"),
        (b'{"custom_id": "\xff"}\n', "line 1 is no JSON object"),
        (b"[" * 100_000, "line 1 is no JSON object"),
        (b"{}", "line 1 has no custom_id"),
        (b'{"custom_id": 3}', "line 1 has no custom_id"),
        (b'{"custom_id": "a"}\n\n{"custom_id": "a"}\n', "line 3 has the custom_id 'a' of line 1"),
    ],
)
def test_what_is_no_file_of_requests(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(GGPYError, match=words):
        list(read_requests(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(GGPYError, match="cannot be read: No such file"):
        list(read_requests(tmp_path / "none"))
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(GGPYError, match="no ordinary file"):
            list(read_requests(path))


def test_each_result_is_a_line(out: Path, asked: Path) -> None:
    rows = [result("a", "line\nend"), result("b", "你好"), result("c", "\ud800")]
    with Results(out, asked) as file:
        for i, row in enumerate(rows, 1):
            file.write(row)
            assert [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]] == rows[:i]
    assert "你好".encode() in out.read_bytes()
    with Results(out, asked) as file:
        assert file.done == {"a", "b", "c"}


def test_killed_at_any_byte(out: Path, asked: Path) -> None:
    first, second = encoded(result("a")), encoded(result("b", "你好"))
    for cut in range(len(second) + 1):
        out.write_bytes(first + second[:cut])
        whole = cut >= len(second) - 1  # the line end alone may be missing
        with Results(out, asked) as file:
            assert file.done == ({"a", "b"} if whole else {"a"})
            file.write(result("c"))
        assert out.read_bytes() == first + (second if whole else b"") + encoded(result("c"))


@pytest.mark.parametrize("content", [b"my thesis", b"my thesis\n", b'{"custom_id": "a"}\n', encoded({"a": 1})])
def test_other_files_are_left_alone(out: Path, asked: Path, content: bytes) -> None:
    for before in (b"", encoded(result("a"))):
        out.write_bytes(before + content)
        with pytest.raises(GGPYError, match="is no result of a batch"):
            Results(out, asked)
        assert out.read_bytes() == before + content


def test_places_that_are_none(out: Path, asked: Path, tmp_path: Path) -> None:
    for path, words in ((asked, "is the same file"), (tmp_path, "a folder"), (tmp_path / "x" / "y", "no folder")):
        with pytest.raises(GGPYError, match=words):
            Results(path, asked)


def test_one_process_writes(out: Path, asked: Path) -> None:
    with Results(out, asked) as file:
        with pytest.raises(GGPYError, match="being written by another process"):
            Results(out, asked)
        file.write(result("a"))
    with Results(out, asked) as file:
        assert file.done == {"a"}


def test_a_full_disk_leaves_whole_lines(out: Path, asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Results(out, asked) as file:
        file.write(result("a"))
        before, write = out.read_bytes(), os.write
        sizes = iter((20, None))

        def full(descriptor: int, data: Any) -> int:
            size = next(sizes)
            if size is None:
                raise OSError(28, "No space left on device")
            return write(descriptor, data[:size])

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(GGPYError, match="No space left on device; the results so far are in it"):
            file.write(result("b"))
        monkeypatch.undo()
        assert out.read_bytes() == before
        assert file.done == {"a"}
