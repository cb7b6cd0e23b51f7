"""The published tests of llama-server and vLLM, where they expect of a server something else than was here."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette")

import ggpy.llm
from ggpy import LLM, SamplingParams
from ggpy.runtime.load import Model
from ggpy.server.models import ModelSpec
from ggpy.text.chat_template import ChatTemplate
from tests.support.doubles import ByteTokenizer, FakeFile, FakeRuntime
from tests.support.serving import Running

GREEDY: dict[str, Any] = {"n_predict": 8, "temperature": 0}
SAY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}


def post(server: Running, path: str, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def pieces_of(server: Running, path: str, **body: Any) -> Iterator[Any]:
    with httpx.stream("POST", f"{server.url}{path}", json={**body, "stream": True}, timeout=60) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line and line != "data: [DONE]":
                yield json.loads(line[6:])


def streamed(server: Running, path: str, **body: Any) -> list[Any]:
    return list(pieces_of(server, path, **body))


def test_several_prompts_make_a_list_of_completions(server: Running, llm: LLM) -> None:
    """test_completion_with_tokens_input"""
    ids, text = llm.tokenize("The capital"), "The capital"
    alone = post(server, "/completion", prompt=text, **GREEDY)
    several = post(server, "/completion", prompt=[ids, text], **GREEDY)
    assert [one["content"] for one in several] == [alone["content"]] * 2
    assert [one["index"] for one in several] == [0, 1]
    pieces = streamed(server, "/completion", prompt=[ids, text], **GREEDY)
    for index in (0, 1):
        assert "".join(p["content"] for p in pieces if p["index"] == index) == alone["content"]
    mixed = post(server, "/completion", prompt=[1, 2, "The", 3, " capital"], **GREEDY)
    spelt = [1, 2, *llm.tokenizer.tokenize("The", add_special=False), 3]
    spelt += llm.tokenizer.tokenize(" capital", add_special=False, continues=True)
    assert mixed["content"] == post(server, "/completion", prompt=spelt, **GREEDY)["content"]
    assert len(post(server, "/completion", prompt=text, n=2, **GREEDY)) == 2


def test_tokens_and_settings_are_told(server: Running, llm: LLM) -> None:
    """test_completion, test_completion_stream, test_completion_response_fields"""
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    (expected,) = llm.generate("Hello", params)
    asked = {"prompt": "Hello", "ignore_eos": True, "return_tokens": True, "seed": 7, **GREEDY}
    whole = post(server, "/completion", **asked)
    assert whole["tokens"] == expected.outputs[0].token_ids
    assert whole["prompt"] == "Hello"
    settings = whole["generation_settings"]
    assert (settings["n_predict"], settings["seed"], settings["temperature"], settings["top_k"]) == (8, 7, 0, 40)
    pieces = streamed(server, "/completion", **asked)
    assert [token for piece in pieces for token in piece["tokens"]] == expected.outputs[0].token_ids
    assert pieces[-1]["generation_settings"] == {**settings, "stream": True}
    fields = ["content", "generation_settings/n_predict", "nothing/there"]
    found = post(server, "/completion", **asked, response_fields=fields)
    assert found == {"content": whole["content"], "generation_settings/n_predict": 8}


def test_probabilities_have_token_ids(server: Running) -> None:
    """test_n_probs"""
    for one in post(server, "/completion", prompt="Hello", n_probs=4, **GREEDY)["completion_probabilities"]:
        ids = [top["id"] for top in one["top_logprobs"]]
        assert len(set(ids)) == 4
        assert ids[0] == one["id"]  # the likeliest, as it is greedy


def test_biases_of_texts(server: Running, llm: LLM) -> None:
    """test_logit_bias"""
    whole = post(server, "/completion", prompt="Hello", return_tokens=True, **GREEDY)
    text = llm.detokenize(whole["tokens"][:1])
    for bias in ([[text, False]], {text: -100}, [[whole["tokens"][0], -100]], {str(whole["tokens"][0]): -100}):
        found = post(server, "/completion", prompt="Hello", logit_bias=bias, return_tokens=True, **GREEDY)
        assert found["tokens"][0] != whole["tokens"][0]
    for wrong in ([["a", "b"]], {"a": 1000}, [["a"]], "a", [[1.5, 1]]):
        error = post(server, "/completion", status=400, prompt="Hello", logit_bias=wrong)["error"]
        assert "logit_bias" in error["message"]


def test_the_cache_may_be_left_aside(server: Running) -> None:
    """test_consistent_result_same_seed, with cache_prompt: false"""
    prompt = "a prompt that the cache holds from its first answer on"
    first = post(server, "/completion", prompt=prompt, **GREEDY)
    again = post(server, "/completion", prompt=prompt, cache_prompt=False, **GREEDY)
    cached = post(server, "/completion", prompt=prompt, **GREEDY)
    assert first["content"] == again["content"] == cached["content"]
    assert again["timings"]["cache_n"] == 0
    assert cached["timings"]["cache_n"] == first["tokens_evaluated"] - 1


def test_a_prompt_is_read_and_nothing_written(server: Running) -> None:
    warm = post(server, "/completion", prompt="something to be kept warm", n_predict=0)
    assert (warm["content"], warm["tokens_predicted"], warm["stop_type"]) == ("", 0, "limit")
    assert post(server, "/completion", prompt="something to be kept warm", **GREEDY)["timings"]["prompt_n"] == 1


def test_how_much_of_a_prompt_is_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """test_return_progress, over a stand-in that reads 16 tokens a step, and waits for its client before the next."""
    runtime = FakeRuntime(n_ctx=512, n_batch=16, script=lambda prefix: ord("a"))
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    model = Model(FakeFile(), ByteTokenizer(), template, runtime)  # type: ignore[arg-type]
    monkeypatch.setattr(ggpy.llm, "load_model", lambda *args, **placing: model)
    step, steps = runtime.step, threading.Semaphore(0)
    monkeypatch.setattr(runtime, "step", lambda *given: (steps.acquire(timeout=20), step(*given))[1])
    with Running([ModelSpec("fake", "fake.gguf", {})], open_model=lambda spec: LLM("fake.gguf")) as server:
        for path, body, n in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "b" * 60}]}, 61),
            ("/v1/completions", {"prompt": [98] * 40}, 40),
            ("/completion", {"prompt": [98] * 50}, 50),
        ):
            asked = {**body, "max_tokens": 5, "return_progress": True, "cache_prompt": False}
            steps.release()
            told, said = [], ""
            for piece in pieces_of(server, path, **asked):
                choice = piece["choices"][0] if "choices" in piece else piece
                said += choice["delta"].get("content", "") if "delta" in choice else choice.get("text", "")
                said += choice.get("content", "")
                told += [piece["prompt_progress"]] if "prompt_progress" in piece else []
                steps.release()
            assert [one["processed"] for one in told] == [*range(16, n, 16), n]
            assert {(one["total"], one["cache"]) for one in told} == {(n, 0)}
            assert said == "aaaaa"
            steps.release(100)
            cached = streamed(server, path, **{**asked, "cache_prompt": True})
            (last,) = [piece["prompt_progress"] for piece in cached if "prompt_progress" in piece]
            assert (last["processed"], last["cache"]) == (n, n - 1)
            while steps.acquire(blocking=False):
                pass
        steps.release(1000)


def test_rates_are_told_with_each_piece(server: Running) -> None:
    """test_chat_completion_with_timings_per_token"""
    pieces = streamed(server, "/v1/chat/completions", **SAY, timings_per_token=True)
    assert all(p["timings"]["predicted_n"] <= 8 for p in pieces)
    assert all("timings" not in p for p in streamed(server, "/v1/chat/completions", **SAY)[:-1])


def test_paths_without_v1(server: Running) -> None:
    """test_server_models, test_openai_library_correct_api_key"""
    expected = post(server, "/v1/chat/completions", **SAY)["choices"]
    assert post(server, "/chat/completions", **SAY)["choices"] == expected
    (model,) = httpx.get(f"{server.url}/models").json()["data"]
    assert (model["id"], model["capabilities"], model["aliases"]) == ("tiny", ["completion"], [])
    assert post(server, "/responses", input="Hello", max_output_tokens=8)["object"] == "response"
    assert httpx.get(f"{server.url}/v1/health").json() == {"status": "ok"}


def test_llama_servers_fields_in_openais_bodies(server: Running) -> None:
    """test_completion_with_json_schema, test_ctx_shift_disabled_stream, test_chat_template_assistant_prefill"""
    pytest.importorskip("llguidance")
    found = post(server, "/v1/chat/completions", **SAY, json_schema={"const": "42"}, id_slot=0)
    assert found["choices"][0]["message"]["content"] == '"42"'
    body = {"prompt": "Hello", "temperature": 0, "ignore_eos": True}
    assert post(server, "/v1/completions", **body, n_predict=5)["usage"]["completion_tokens"] == 5
    assert post(server, "/v1/completions", **body, n_predict=-1)["usage"]["total_tokens"] == 257
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "ill"}]
    begun = []
    for content in ("Whill", parts):
        messages = [*SAY["messages"], {"role": "assistant", "content": content}]
        begun.append(post(server, "/apply-template", messages=messages)["prompt"])
    assert begun[0] == begun[1]
    assert begun[0].endswith("Whill")


@pytest.mark.parametrize(
    "form",
    [{"type": "sound"}, {"type": "json_object", "schema": 123}, {"type": "json_object", "schema": {"type": 123}},
     {"type": "json_object", "schema": {"type": "hiccup"}}, {"type": "json_schema"}, "json_object", 3],
)  # fmt: skip
def test_forms_that_are_none(server: Running, form: Any) -> None:
    """test_completion_with_response_format"""
    error = post(server, "/v1/chat/completions", status=400, **SAY, response_format=form)["error"]
    assert error["param"].startswith("response_format")


def test_vectors_in_llama_servers_shape(server: Running) -> None:
    """test_embedding_error: a model that writes has none"""
    assert post(server, "/embedding", status=400, content="a")["error"]["type"] == "invalid_request_error"


def test_nobody_loads_a_model_by_looking_at_it(serve: Callable[..., Running], model_path: Any) -> None:
    """test_server_sleep, test_router_unload_model"""
    options = {"n_ctx": 256, "n_threads": 2, "n_parallel": 2}
    server = serve([ModelSpec("tiny", str(model_path), options)])
    props = httpx.get(f"{server.url}/props").json()
    assert (props["is_sleeping"], props["total_slots"]) == (True, 2)
    assert httpx.get(f"{server.url}/slots").json() == []
    assert not server.service.models.loaded
    assert post(server, "/models/load", model="tiny") == {"success": True}
    props = httpx.get(f"{server.url}/props").json()
    assert (props["is_sleeping"], props["default_generation_settings"]["params"]["seed"]) == (False, -1)
    assert props["model_path"].endswith(".gguf")
    assert len(httpx.get(f"{server.url}/slots?fail_on_no_slot=1").json()) == 2
    assert post(server, "/models/unload", model="tiny") == {"success": True}
    assert not server.service.models.loaded


def test_slots_are_not_saved(server: Running) -> None:
    """test_slots_post_disabled_without_slot_save_path"""
    error = post(server, "/slots/0?action=save", status=501, filename="../evil.bin")["error"]
    assert error["type"] == "not_supported_error"


def test_busy_slots_are_told_where_that_is_asked_for(serve: Callable[..., Running]) -> None:
    """test_slots_fail_on_no_slot"""
    server = serve()
    server.check()
    step, go_on = server.engine.step, threading.Event()
    server.engine.step = lambda: (go_on.wait(0.05), step())[1]  # type: ignore[assignment]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(post, server, "/completion", prompt="a", n_predict=100, ignore_eos=True)
        server.wait_for(lambda: len(server.engine.scheduler.running) == 2)
        busy = httpx.get(f"{server.url}/slots?fail_on_no_slot=0")
        all_slots = httpx.get(f"{server.url}/slots")
        go_on.set()
    assert (busy.status_code, all_slots.status_code) == (503, 200)


def test_who_waits_no_longer_costs_no_model_its_place(serve: Callable[..., Running], model_path: Any) -> None:
    """test_router_queue_client_disconnect_keeps_model"""
    options = {"n_ctx": 256, "n_threads": 2, "n_parallel": 2}
    specs = [ModelSpec(name, str(model_path), options) for name in "ab"]
    server = serve(specs, models={"max_models": 1})
    post(server, "/completion", model="a", prompt="a", n_predict=1)
    step, go_on = server.engine.step, threading.Event()
    server.engine.step = lambda: (go_on.wait(60), step())[1]  # type: ignore[assignment]
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(post, server, "/completion", model="a", prompt="a", n_predict=20, ignore_eos=True)
        server.wait_for(lambda: server.engine.has_work)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/completion", json={"model": "b", "prompt": "a"}, timeout=0.3)
        server.wait_for(lambda: not server.service.models._wanted["b"])
        go_on.set()
        assert long.result()["tokens_predicted"] == 20
    server.wait_for(lambda: not server.service.models._changing.locked())
    assert set(server.service.models.loaded) == {"a"}


def test_a_prompts_log_probabilities(server: Running, llm: LLM) -> None:
    """vLLM's test_echo_logprob_completion, and what lm-evaluation-harness asks for."""
    ids = llm.tokenize("The capital of France")
    (expected,) = llm.generate(ids, SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=1, ignore_eos=True))
    rows = expected.prompt_logprobs
    assert rows is not None
    known = [None if row is None else row[token].logprob for row, token in zip(rows, ids, strict=True)]
    asked: dict[str, Any] = {"prompt": ids, "temperature": 0, "logprobs": 1, "echo": True, "ignore_eos": True}
    (alone,) = post(server, "/v1/completions", **asked, max_tokens=0)["choices"]
    assert alone["text"] == llm.detokenize(ids)
    assert alone["finish_reason"] == "length"
    (choice,) = post(server, "/v1/completions", **asked, max_tokens=2)["choices"]
    assert choice["text"] == llm.detokenize([*ids, *expected.outputs[0].token_ids])
    for found, n in ((alone["logprobs"], len(ids)), (choice["logprobs"], len(ids) + 2)):
        assert [len(column) for column in found.values()] == [n] * 4
        assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
        assert found["token_logprobs"][1 : len(ids)] == pytest.approx(known[1:])
        assert all(math.exp(logprob) <= 1 for logprob in found["token_logprobs"][1:])
        assert "".join(found["tokens"]) == (alone if n == len(ids) else choice)["text"]
        assert found["text_offset"][1] == len(found["tokens"][0])
    pieces = streamed(server, "/v1/completions", **asked, max_tokens=2)
    tokens = [token for p in pieces for token in (p["choices"][0]["logprobs"] or {"tokens": []})["tokens"]]
    assert tokens == choice["logprobs"]["tokens"]
    assert "".join(p["choices"][0]["text"] for p in pieces) == choice["text"]


@pytest.mark.parametrize(
    "fields",
    [{"tool_choice": "required"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}},
     {"logprobs": True, "top_logprobs": 21}, {"top_logprobs": 1}, {"logit_bias": {"1000000": 1}},
     {"logit_bias": {"a": 1}}, {"temperature": -1}, {"top_p": 2}, {"n": 0}, {"stop": [3]}, {"max_tokens": 0},
     {"stream_options": {"include_usage": True}}, {"messages": "string"}, {"messages": [123]}, {"messages": [{}]},
     {"messages": [{"role": 123}]}, {"messages": [{"role": "system", "content": 123}]}, {"messages": None}],
)  # fmt: skip
def test_fields_that_are_wrong(server: Running, fields: dict[str, Any]) -> None:
    """test_invalid_chat_completion_req; vLLM's test_chat_error, test_chat_logit_bias_validation, and others"""
    error = post(server, "/v1/chat/completions", status=400, **{**SAY, **fields})["error"]
    assert error["param"].startswith(next(reversed(fields))[:6])


@pytest.mark.parametrize("name", ["reasoning_budget", "thinking_budget_tokens", "thinking_token_budget"])
def test_a_budget_by_any_servers_name(server: Running, name: str) -> None:
    """test_reasoning_custom_budget, and vLLM's test_thinking_token_budget"""
    for wrong in (-2, "many", 1.5):
        assert post(server, "/v1/chat/completions", status=400, **SAY, **{name: wrong})
    assert post(server, "/v1/chat/completions", **SAY, **{name: -1})["choices"]
