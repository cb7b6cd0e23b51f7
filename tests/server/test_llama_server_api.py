"""llama-server's own API, asked as its clients ask it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import httpx
import pytest

from ggpy import LLM, SamplingParams
from tests.support.serving import Running

GREEDY = {"n_predict": 10, "temperature": 0}


def post(server: Running, path: str, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_completion_whole_and_streamed(server: Running, llm: LLM) -> None:
    (expected,) = llm.generate("Hello", SamplingParams(max_tokens=10, temperature=0))
    whole = post(server, "/completion", prompt="Hello", **GREEDY)
    assert whole["content"] == expected.outputs[0].text
    assert (whole["stop"], whole["stop_type"], whole["tokens_predicted"]) == (True, "limit", 10)
    assert whole["timings"]["predicted_n"] == 10
    ids = llm.tokenizer.tokenize("Hello")
    assert post(server, "/completions", prompt=ids, **GREEDY)["content"] == whole["content"]
    with httpx.stream(
        "POST", f"{server.url}/completion", json={"prompt": "Hello", "stream": True, **GREEDY}, timeout=60
    ) as answer:
        lines = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    assert "".join(line["content"] for line in lines) == whole["content"]
    assert [line["stop"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["stop_type"] == "limit"


def test_probabilities_biases_and_stop_words(server: Running) -> None:
    whole = post(server, "/completion", prompt="Hello", n_probs=3, **GREEDY)
    first = whole["completion_probabilities"][0]
    assert len(first["top_logprobs"]) == 3
    assert first["logprob"] <= 0
    banned = post(server, "/completion", prompt="Hello", logit_bias=[[first["id"], False]], n_probs=1, **GREEDY)
    assert banned["completion_probabilities"][0]["id"] != first["id"]
    word = whole["content"][1:3]
    found = post(server, "/completion", prompt="Hello", stop=[word], **GREEDY)
    assert (found["stop_type"], found["stopping_word"]) == ("word", word)


def test_a_grammar_is_followed(server: Running) -> None:
    pytest.importorskip("llguidance")
    found = post(server, "/completion", prompt="Hello", grammar='root ::= "yes" | "no"', **GREEDY)
    assert found["content"] in ("yes", "no")


def test_texts_and_tokens(server: Running, llm: LLM) -> None:
    text = "Hello 東京<|im_end|>"
    ids = post(server, "/tokenize", content=text)["tokens"]
    assert ids == llm.tokenizer.tokenize(text, add_special=False, parse_special=True)
    assert post(server, "/detokenize", tokens=ids)["content"] == text
    pieces = post(server, "/tokenize", content=text, with_pieces=True)["tokens"]
    spelt = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert spelt.decode() == text
    assert "ids are 0 to" in post(server, "/detokenize", status=400, tokens=[10**6])["error"]["message"]


def test_the_template_and_the_server_are_shown(server: Running, llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    assert post(server, "/apply-template", messages=messages)["prompt"] == llm.render_chat(messages)
    props = httpx.get(f"{server.url}/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 256
    assert props["chat_template"] == llm.template.source
    slots = httpx.get(f"{server.url}/slots").json()
    assert len(slots) == props["total_slots"]
    assert not any(slot["is_processing"] for slot in slots)


def test_infill_needs_its_tokens(server: Running) -> None:
    error = post(server, "/infill", status=501, input_prefix="a", input_suffix="b")["error"]
    assert error["type"] == "not_supported_error"


def test_a_server_listens_before_it_imports_the_engine() -> None:
    code = "import sys, ggpy.server.app; print({'ggpy.llm', 'ggpy.engine.engine', 'numba'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_errors_have_llama_servers_shape(server: Running) -> None:
    for path, wrong, said in (
        ("/completion", {"prompt": 5}, "prompt"),
        ("/completion", {"prompt": "x", "n_predict": "many"}, "n_predict"),
        ("/completion", {"prompt": "x", "temperature": -1}, "temperature"),
        ("/completion", {"prompt": "x", "logit_bias": [[1]]}, "logit_bias"),
        ("/completion", {"prompt": "x", "lora": [{"id": 0}]}, "lora"),
        ("/tokenize", {}, "content"),
        ("/apply-template", {"messages": []}, "messages"),
    ):
        error = post(server, path, status=400, **wrong)["error"]
        assert (error["code"], error["type"]) == (400, "invalid_request_error")
        assert said in error["message"]
