"""Models that come and go, and who is let in: each limit is a status with a sentence, and nothing else stops."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ggpy.server.models import ModelSpec
from tests.support.serving import Running

LONG = {"prompt": "a", "max_tokens": 200, "ignore_eos": True}
SHORT = {"prompt": "a", "max_tokens": 2}


@pytest.fixture
def spec(model_path: Path) -> Callable[..., ModelSpec]:
    def spec(name: str, **given: Any) -> ModelSpec:
        options = {"n_ctx": 256, "n_threads": 2, "n_parallel": 2, **given.pop("options", {})}
        return ModelSpec(name, str(given.pop("source", model_path)), options, **given)

    return spec


def post(server: Running, path: str = "/v1/completions", headers: Any = None, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json={**SHORT, **body}, headers=headers, timeout=60)


def states(server: Running) -> dict[str, str]:
    data = httpx.get(f"{server.url}/v1/models").json()["data"]
    return {model["id"]: model["status"]["value"] for model in data}


def test_models_are_loaded_when_asked_for(serve: Any, spec: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF, but no more")
    specs = [spec("a"), spec("b", aliases=("gpt-4o",)), ModelSpec("bad", str(bad))]
    server = serve(specs)
    assert states(server) == {"a": "unloaded", "b": "unloaded", "bad": "unloaded"}
    assert post(server, model="gpt-4o").json()["model"] == "b"
    assert states(server) == {"a": "unloaded", "b": "loaded", "bad": "unloaded"}
    failed = post(server, model="bad")
    assert failed.status_code == 503
    assert "bad.gguf" in failed.json()["error"]["message"]
    assert failed.headers["retry-after"]
    assert post(server).json()["model"] == "a"  # the first where none is named
    unknown = post(server, model="c")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert "there are a, b, bad" in unknown.json()["error"]["message"]


def test_names_that_are_not_ascii(serve: Any, spec: Any, model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "模型　目录"
    folder.mkdir()
    path = folder / "小 модель.gguf"
    path.write_bytes(model_path.read_bytes())
    server = serve([spec("小模型", source=path), spec("other")])
    assert post(server, model="小模型").json()["model"] == "小模型"
    assert httpx.get(f"{server.url}/v1/models/小模型").json()["id"] == "小模型"
    assert httpx.get(f"{server.url}/props", params={"model": "小模型"}).json()["model_path"] == str(path)


def test_requests_wait_for_one_load(serve: Any, spec: Any) -> None:
    opened = []
    server = serve([spec("a")])
    before = server.service.models._open

    def counted(spec: ModelSpec) -> Any:
        opened.append(spec.name)
        return before(spec)

    server.service.models._open = counted
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: post(server).status_code, range(8)))
    assert (found, opened) == ([200] * 8, ["a"])


def test_a_client_that_goes_stops_no_load(serve: Any, spec: Any) -> None:
    server = serve([spec("a")])
    begun, go_on = threading.Event(), threading.Event()
    before = server.service.models._open

    def slow(spec: ModelSpec) -> Any:
        begun.set()
        assert go_on.wait(60)
        return before(spec)

    server.service.models._open = slow
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=SHORT, timeout=0.2)
    assert begun.wait(60)
    go_on.set()
    server.wait_for(lambda: server.service.models.loaded)
    server.service.models._open = None  # it is not loaded again
    assert post(server).status_code == 200


def test_the_model_that_was_idle_longest_leaves_for_another(serve: Any, spec: Any) -> None:
    server = serve([spec("a"), spec("b"), spec("c")], models={"max_models": 2})
    for name in "aba":
        assert post(server, model=name).status_code == 200
    assert post(server, model="c").status_code == 200
    assert states(server) == {"a": "loaded", "b": "unloaded", "c": "loaded"}


def test_a_busy_model_is_waited_for(serve: Any, spec: Any) -> None:
    server = serve([spec("a"), spec("b")], models={"max_models": 1})
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(post, server, model="a", **{k: v for k, v in LONG.items() if k != "prompt"})
        server.wait_for(lambda: "a" in server.service.models.loaded and server.service.models.loaded["a"].n_users)
        short = pool.submit(post, server, model="b")
        assert (long.result().status_code, short.result().status_code) == (200, 200)
    assert states(server) == {"a": "unloaded", "b": "loaded"}


def test_memory_that_is_missing_is_made(serve: Any, spec: Any) -> None:
    server = serve([spec("a"), spec("b")], models={"fits": lambda spec: "a" not in server.service.models.loaded})
    assert post(server, model="a").status_code == 200
    assert post(server, model="b").status_code == 200
    assert states(server) == {"a": "unloaded", "b": "loaded"}


def test_idle_models_leave(serve: Any, spec: Any) -> None:
    server = serve([spec("a")], models={"keep_alive": 0.1})
    assert post(server).status_code == 200
    server.wait_for(lambda: not server.service.models.loaded)
    assert post(server).status_code == 200


def test_presets_are_defaults(serve: Any, spec: Any) -> None:
    server = serve([spec("plain"), spec("greedy", sampling={"temperature": 0.0})])
    first, second = (post(server, model="greedy", max_tokens=9).json()["choices"][0]["text"] for _ in range(2))
    assert first == second == post(server, model="plain", max_tokens=9, temperature=0).json()["choices"][0]["text"]


def test_a_queue_that_is_full(serve: Any, spec: Any) -> None:
    server = serve([spec("a")], max_queue=1)
    post(server)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: post(server, max_tokens=200, ignore_eos=True), range(8)))
    statuses = sorted(response.status_code for response in found)
    assert statuses[:2] == [200, 200]
    assert statuses[-1] == 429
    (full, *_) = [response for response in found if response.status_code == 429]
    assert full.headers["retry-after"] == "1"
    assert full.json()["error"]["type"] == "rate_limit_error"
    assert post(server).status_code == 200


def test_a_prompt_that_is_longer_than_the_server_takes(serve: Any, spec: Any) -> None:
    server = serve([spec("a")], max_prompt_tokens=20)
    long = post(server, prompt="word " * 30)
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "up to 20" in long.json()["error"]["message"]


def test_keys(serve: Any, spec: Any) -> None:
    server = serve([spec("a")], api_keys=("first", "schlüssel"))
    assert httpx.get(f"{server.url}/health").status_code == 200
    for headers in ({}, {"authorization": "Bearer firs"}, {"authorization": "first"}, {"x-api-key": "First"}):
        refused = post(server, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    for headers in ({"authorization": "Bearer first"}, {"x-api-key": "first"}):
        assert post(server, headers=headers).status_code == 200
    assert post(server, headers={"authorization": "Bearer schlüssel".encode()}).status_code == 200
    assert httpx.get(f"{server.url}/v1/models").status_code == 401


def test_pages_of_other_origins(serve: Any, spec: Any, server: Running) -> None:
    asked = {"origin": "http://a.example", "access-control-request-method": "POST"}
    open_server = serve([spec("a")], cors_origins=("http://a.example",), api_keys=("key",))
    answer = httpx.options(f"{open_server.url}/v1/completions", headers=asked)
    assert answer.headers["access-control-allow-origin"] == "http://a.example"
    assert "access-control-allow-origin" not in httpx.options(f"{server.url}/v1/completions", headers=asked).headers


def test_another_sites_name_that_leads_here(serve: Any, spec: Any, server: Running) -> None:
    local = serve([spec("a")], local_names_alone=True)
    for name in ("localhost", "127.0.0.1", "127.0.0.2:80", "[::1]:8080", "a.localhost:1"):
        assert httpx.get(f"{local.url}/v1/models", headers={"host": name}).status_code == 200
    for name in ("a.example", "a.example:80", "127.0.0.1.a.example", "localhost.a.example", "[::2]", "10.0.0.1", ""):
        refused = httpx.get(f"{local.url}/v1/models", headers={"host": name})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden_host")
    assert httpx.get(f"{server.url}/v1/models", headers={"host": "a.example"}).status_code == 200


def test_requests_have_names(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    assert post(server, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert post(server, headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req_")


def test_metrics(server: Running) -> None:
    post(server)
    text = httpx.get(f"{server.url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['ggpy_generated_tokens_total{model="tiny"}']) >= 2
    assert float(values['ggpy_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert values['ggpy_requests_running{model="tiny"}'] == "0.0"


def test_the_server_ends_what_runs_before_it_ends(serve: Any, spec: Any) -> None:
    server = serve([spec("a")])
    post(server)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, server, max_tokens=200, ignore_eos=True)
        server.wait_for(lambda: server.engine.has_work)
        server.stop()
        server.wait_for(lambda: not server.listens())
        assert running.result().json()["usage"]["completion_tokens"] == 200
    assert threading.active_count() < 50


def test_what_runs_too_long_when_the_server_ends_is_told_so(serve: Any, spec: Any) -> None:
    """Whole answers get a 503, streams an event in their protocol's shape; nothing breaks off in the middle."""
    server = serve([spec("a")], binding={"drain": 0})
    post(server)
    step = server.engine.step
    server.engine.step = lambda: (time.sleep(0.05), step())[1]
    say = [{"role": "user", "content": "a"}]
    asked: Any = {
        "/v1/chat/completions": {"messages": say, "max_tokens": 200},
        "/v1/responses": {"input": "a", "max_output_tokens": 200},
        "/v1/messages": {"messages": say, "max_tokens": 200},
        "/api/chat": {"model": "a", "messages": say},
        "/completion": {"prompt": "a", "n_predict": 200},
    }

    def ask(path: str, stream: bool) -> tuple[int, str]:
        answer = httpx.post(f"{server.url}{path}", json={**asked[path], "stream": stream}, timeout=60)
        return answer.status_code, answer.text

    queue = server.engine.scheduler
    with ThreadPoolExecutor(10) as pool:
        streamed = {path: pool.submit(ask, path, True) for path in asked}
        whole = {path: pool.submit(ask, path, False) for path in asked}
        server.wait_for(lambda: len(queue.running) + len(queue.waiting) == 10)
        server.stop()
        for path in asked:
            status, text = whole[path].result()
            assert status == 503
            assert "The server ends" in json.dumps(json.loads(text)["error"])
            status, text = streamed[path].result()
            assert status == 200
            last = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
            assert "The server ends" in json.dumps(last["response"] if path == "/v1/responses" else last)
            assert "error" in last or last["type"] == "response.failed"
