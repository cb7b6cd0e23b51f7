"""`ggpy serve --ray` and `ggpy batch --ray` on a cluster of three node processes: answers are the library's, whichever
replica writes them, and what a killed one was writing is told to its clients. Where Ray is installed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
pytest.importorskip("starlette")

import httpx

from ggpy import LLM, SamplingParams
from tests.support.converted import tiny_model
from tests.support.ray_cluster import LONGEST, ray_cluster, replicas, serving, wait_for

N_CTX = 4096
MODEL = ("-t", "1", "-c", str(N_CTX), "--parallel", "16")
GREEDY = {"temperature": 0, "max_tokens": 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("ray") / "tiny.gguf")


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(model, n_ctx=N_CTX, n_threads=1, n_parallel=16) as llm:
        yield llm


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster() as cluster:
        yield cluster


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def post(url: str, path: str, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(f"{url}{path}", json=body, timeout=LONGEST)
    assert answer.status_code == status, answer.text
    return answer.json()


def chat(url: str, messages: list[dict[str, str]], **values: Any) -> Any:
    return post(url, "/v1/chat/completions", messages=messages, **{**GREEDY, **values})


async def events(url: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """All of a stream, of server-sent events or of lines."""
    async with httpx.AsyncClient(timeout=LONGEST) as client, client.stream("POST", f"{url}{path}", json=body) as answer:
        lines = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_serving(cluster: Any, model: Path, llm: LLM) -> None:
    with serving(model.parent, "-m", model.name, "--ray-replicas", "2", *MODEL) as (url, _):
        check_answers(url, llm)
        wait_for(lambda: len(replicas(cluster)) == 2)
        check_conversations(url)
        asyncio.run(check_a_death(url, cluster))
        wait_for(lambda: len(replicas(cluster)) == 2)
        check_answers(url, llm)
    assert not replicas(cluster)


def test_a_full_replica(cluster: Any, model: Path) -> None:
    """Requests beyond those that may wait are told so, and those that wait are all answered, also as others leave."""
    body = {"prompt": "Hello", "max_tokens": 60, "ignore_eos": True}

    async def ask(client: httpx.AsyncClient, n: int) -> list[int]:
        found = []
        for i in range(n):
            with contextlib.suppress(asyncio.TimeoutError):
                leaves = 0.05 if n > 1 and i % 4 == 3 else None
                answer = await asyncio.wait_for(client.post("/v1/completions", json=body), leaves)
                assert answer.status_code in (200, 429), answer.text
                if answer.status_code == 429:
                    assert answer.json()["error"]["code"] == "queue_full"
                found.append(answer.status_code)
        return found

    async def check(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=LONGEST) as client:
            statuses = await asyncio.gather(*(ask(client, 1) for _ in range(30)))
            assert {status for each in statuses for status in each} == {200, 429}
            statuses = await asyncio.gather(*(ask(client, 12) for _ in range(6)))
            assert all(set(each) == {200} for each in statuses)

    options = (*MODEL[:4], "--parallel", "1", "--ray-replicas", "1", "--max-queue", "8")
    with serving(model.parent, "-m", model.name, *options) as (url, _):
        post(url, "/v1/completions", **body)
        asyncio.run(check(url))


def check_answers(url: str, llm: LLM) -> None:
    """Whole and streamed, by two protocols, and what else is asked of a model."""
    (expected,) = llm.chat(asked("Hello"), SamplingParams(**GREEDY))
    text = expected.outputs[0].text
    assert chat(url, asked("Hello"))["choices"][0]["message"]["content"] == text
    body = {"messages": asked("Hello"), "stream": True, **GREEDY}
    chunks = asyncio.run(events(url, "/v1/chat/completions", body))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
    body = {"model": "tiny", "messages": asked("Hello"), "options": {"temperature": 0, "num_predict": 20}}
    assert "".join(line["message"]["content"] for line in asyncio.run(events(url, "/api/chat", body))) == text
    assert post(url, "/tokenize", content="Hello")["tokens"] == llm.tokenize("Hello", add_special=False)
    (known,) = httpx.get(f"{url}/v1/models").json()["data"]
    assert (known["id"], known["status"]["value"], known["meta"]["n_ctx"]) == ("tiny", "loaded", N_CTX)
    long = post(url, "/v1/completions", 400, prompt="word " * N_CTX)["error"]
    assert str(N_CTX) in long["message"]
    assert post(url, "/api/generate", 501, model="tiny", keep_alive=0)["error"].startswith("Models stay loaded")


def check_conversations(url: str) -> None:
    """Their second turns come where their first ones are in the cache."""
    for i in range(8):
        messages = asked(f"Conversation number {i} begins with words of its own, by which it is known.")
        first = chat(url, messages)
        messages += [first["choices"][0]["message"], *asked("And then?")]
        again = chat(url, messages)["usage"]
        assert again["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"]


async def check_a_death(url: str, cluster: Any) -> None:
    """Each stream on a killed replica ends with an error of its protocol; the others go on."""
    said: list[list[Any]] = [[] for _ in range(16)]

    async def stream(i: int) -> None:
        body: dict[str, Any] = {"stream": True, "ignore_eos": True, "temperature": 0}
        if i % 2:
            path, body = "/completion", {**body, "prompt": f"Number {i}", "n_predict": 3500}
        else:
            path, body = "/v1/chat/completions", {**body, "messages": asked(f"Number {i}"), "max_tokens": 3500}
        async with httpx.AsyncClient(timeout=LONGEST) as client, client.stream("POST", url + path, json=body) as answer:
            async for line in answer.aiter_lines():
                if line:
                    said[i].append(json.loads(line.removeprefix("data: ")))

    streams = [asyncio.create_task(stream(i)) for i in range(16)]
    while not all(said):
        await asyncio.sleep(0.05)
    os.kill(replicas(cluster)[0], signal.SIGKILL)
    while not any(task.done() for task in streams):
        await asyncio.sleep(0.05)
    lengths = [len(each) for each in said]
    await asyncio.sleep(1)
    over = [i for i in range(16) if streams[i].done()]
    for i in over:
        error = said[i][-1]["error"]
        assert (error["code"], error["type"]) == (
            (503, "unavailable_error") if i % 2 else ("replica_lost", "server_error")
        )
        assert "is gone; ask again" in error["message"]
    assert any(len(said[i]) > lengths[i] for i in range(16) if i not in over)
    for task in streams:  # clients that leave
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


def test_a_batch(cluster: Any, model: Path, llm: LLM, tmp_path: Path) -> None:
    requests, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts = [f"text {i}" for i in range(70)]
    rows = [{"method": "POST", "url": "/v1/completions", "body": {"prompt": text, **GREEDY}} for text in prompts]
    rows.append({"method": "POST", "url": "/v1/completions", "body": {"prompt": "", "temperature": -1}})
    requests.write_text("".join(json.dumps({"custom_id": str(i), **row}) + "\n" for i, row in enumerate(rows)))
    command = [sys.executable, "-m", "ggpy", "batch", "--ray", "-m", model.name, *MODEL[:4], "--parallel", "2"]
    for said in ("71 results, of which 1 failed", "71 of 71 were answered before"):
        done = subprocess.run(
            [*command, str(requests), str(results)], cwd=model.parent, capture_output=True, text=True, timeout=LONGEST
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stderr
    found = {row["custom_id"]: row["response"] for row in map(json.loads, results.read_text().splitlines())}
    expected = llm.generate(prompts, SamplingParams(**GREEDY))
    for i, output in enumerate(expected):
        assert found[str(i)]["body"]["choices"][0]["text"] == output.outputs[0].text
    assert found["70"]["status_code"] == 400
