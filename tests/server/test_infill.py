"""/infill by a tiny model with Qwen2.5-Coder's tokens: its prompt is llama-server's, and its limits hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette")

from ggpy import LLM, SamplingParams
from ggpy.convert.pipeline import convert
from ggpy.server.models import ModelSpec
from ggpy.text.line_limits import LineLimits, LineWatch
from tests.support.serving import Running
from tests.support.tiny import tiny_checkpoint

CODER = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
GREEDY: dict[str, Any] = {"n_predict": 6, "temperature": 0, "ignore_eos": True}


def with_tokens(folder: Path, texts: tuple[str, ...]) -> Path:
    """A tiny model whose vocabulary has these control tokens after its own."""
    folder = tiny_checkpoint(folder, "qwen2", dtype="f32")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    n = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {"id": n + i, "content": text, "special": True, **plain} for i, text in enumerate(texts)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    convert(folder, "f32", folder / "coder.gguf")
    return folder / "coder.gguf"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokens(tmp_path_factory.mktemp("infill"), CODER)


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, n_ctx=256, n_threads=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Running]:
    with Running([ModelSpec("coder", str(path), {"n_ctx": 256, "n_threads": 2})]) as running:
        yield running


def post(server: Running, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}/infill", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def in_order(llm: LLM, *parts: str) -> list[int]:
    """Token ids of texts, each cut into tokens by itself, and of control tokens by their names."""
    ids: list[int] = []
    for part in parts:
        token = llm.tokenizer.token_id(part)
        ids += [token] if part in CODER and token is not None else llm.tokenizer.tokenize(part, add_special=False)
    return ids


REPOSITORY = ("<|repo_name|>", "myproject\n")
NAME = ("<|file_sep|>", "filename\n")


def test_the_prompt_has_llama_servers_order(server: Running, llm: LLM) -> None:
    gap = ("<|fim_prefix|>", "def f():\n", "  re", "<|fim_suffix|>", "\nf()", "<|fim_middle|>")
    asked = {"input_prefix": "def f():\n", "prompt": "  re", "input_suffix": "\nf()"}
    files = [{"filename": "a.py", "text": "x = 1\n"}, {"text": "y = 2\n"}]
    named = ("<|file_sep|>", "a.py\n", "x = 1\n", "<|file_sep|>", "tmp\n", "y = 2\n")
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    for extra, prompt in (
        ([], in_order(llm, *REPOSITORY, *NAME, *gap)),
        (files, in_order(llm, *REPOSITORY, *named, *NAME, *gap)),
    ):
        found = post(server, **asked, input_extra=extra, **GREEDY)
        (expected,) = llm.generate(prompt, params)
        assert found["content"] == expected.outputs[0].text
        assert (found["tokens_evaluated"], found["truncated"]) == (len(prompt), False)


def test_of_other_files_the_first_are_left_out_where_there_is_no_room(server: Running, llm: LLM) -> None:
    gap = in_order(llm, *REPOSITORY, *NAME, "<|fim_prefix|>", "a", "<|fim_suffix|>", "<|fim_middle|>")
    last = in_order(llm, "<|file_sep|>", "b.py\n", "y = 2\n")
    files = [{"filename": "a.py", "text": "x = 1\n" * 200}, {"filename": "b.py", "text": "y = 2\n"}]
    found = post(server, input_prefix="a", input_extra=files, **GREEDY)
    assert (found["tokens_evaluated"], found["truncated"]) == (len(gap) + len(last), True)
    assert post(server, status=400, input_prefix="a " * 400)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("extra", [{}, {"filename": "ok"}, {"filename": 123, "text": "abc"}, {"text": 456}, "a"])
def test_files_that_are_none(server: Running, extra: Any) -> None:
    assert "input_extra" in post(server, status=400, input_prefix="a", input_extra=[extra])["error"]["message"]


def test_what_editors_send(server: Running) -> None:
    """llama.vim asks to warm the cache up, then with its limits, for some fields of the answer."""
    code = {"id_slot": 0, "input_prefix": "a = 1\n", "input_suffix": "\n", "input_extra": [], "prompt": "b"}
    warm = post(server, **code, n_predict=0, samplers=[], t_max_prompt_ms=1, t_max_predict_ms=1, response_fields=[""])
    assert warm == {}
    fields = ["content", "timings/prompt_n", "timings/predicted_n", "truncated", "tokens_cached"]
    limits = {"samplers": ["top_k", "top_p", "infill"], "top_k": 40, "top_p": 0.9, "seed": 1}
    assert post(server, **code, **limits, n_predict=6)["tokens_predicted"] <= 6
    found = post(server, **code, **GREEDY, t_max_prompt_ms=500, t_max_predict_ms=60_000, response_fields=fields)
    assert set(found) == set(fields)
    assert found["timings/prompt_n"] == 1  # the rest was in the cache
    assert found["timings/predicted_n"] == 6


def test_where_lines_end_a_completion() -> None:
    def ended(text: str, limits: LineLimits, size: int) -> str:
        watch, kept = LineWatch(limits), ""
        for at in range(0, len(text), size):
            piece = text[at : at + size]
            if (end := watch.end_in(piece)) is not None:
                return kept + piece[:end]
            kept += piece
        return kept

    for text, n_indent, kept in (
        ("x\n  y\n  z\n", 2, "x\n  y\n  z\n"),
        ("x\n  y\n z\n", 2, "x\n  y\n "),
        ("x\n  y\n\n  z", 2, "x\n  y\n"),
        ("x\n\t\ty\nz", 2, "x\n\t\ty\n"),
        ("x\ny", 0, "x\ny"),
    ):
        for size in (1, 2, 3, len(text)):
            assert ended(text, LineLimits(n_indent), size) == kept
    assert ended("ab\ncd", LineLimits(seconds=0), 1) == "ab\n"
    assert ended("ab\ncd", LineLimits(seconds=1e9), 1) == "ab\ncd"


def test_a_line_with_too_few_blanks_ends_the_answer(server: Running) -> None:
    fields: dict[str, Any] = {"input_prefix": "def f():\n", "seed": 1, "temperature": 1.5, "n_predict": 60}
    whole = post(server, **fields, grammar='root ::= "  a\\n  b\\nc"')
    assert whole["content"] == "  a\n  b\nc"
    cut = post(server, **fields, grammar='root ::= "  a\\n  b\\nc"', n_indent=2)
    assert (cut["content"], cut["stop_type"]) == ("  a\n  b\n", "limit")
