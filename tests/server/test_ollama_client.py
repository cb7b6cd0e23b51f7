"""Ollama's own Python client against the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

pytest.importorskip("ollama")
pytest.importorskip("llguidance")

from ollama import AsyncClient, Client, ResponseError

from ggpy.protocol.ollama import parse_chat
from tests.server.test_replies import TOOL, thinking  # noqa: F401 - a fixture
from tests.support.serving import Running

HELLO: Any = [{"role": "user", "content": "Hello"}]
GREEDY = {"temperature": 0, "num_predict": 10, "num_ctx": 4096}


def test_a_stream_says_what_the_whole_says(server: Running) -> None:
    client = Client(host=server.url)
    whole = client.chat("tiny", HELLO, options=GREEDY)
    lines = list(client.chat("tiny", HELLO, options=GREEDY, stream=True))
    assert "".join(line.message.content or "" for line in lines) == whole.message.content
    for end in (whole, lines[-1]):
        assert (end.done, end.done_reason, end.eval_count) == (True, "length", 10)
        assert end.prompt_eval_count
        assert end.total_duration
    assert not any(line.done for line in lines[:-1])


def test_names_may_have_the_tag_that_ollamas_clients_add() -> None:
    assert parse_chat({"model": "tiny:latest"}).model == "tiny"


def test_generate_is_a_turn_of_its_own_or_a_text_as_it_stands(server: Running) -> None:
    client = Client(host=server.url)
    chat = client.chat("tiny", [{"role": "system", "content": "Be brief."}, *HELLO], options=GREEDY).message.content
    assert client.generate("tiny", "Hello", system="Be brief.", options=GREEDY).response == chat
    raw = client.generate("tiny", "Hello", raw=True, options=GREEDY).response
    assert (
        "".join(line.response for line in client.generate("tiny", "Hello", raw=True, options=GREEDY, stream=True))
        == raw
    )
    assert raw != chat


def test_many_at_once_in_an_event_loop(server: Running) -> None:
    async def ask() -> list[Any]:
        client = AsyncClient(host=server.url)
        return await asyncio.gather(*(client.chat("tiny", HELLO, options=GREEDY) for _ in range(3)))

    assert len({answer.message.content for answer in asyncio.run(ask())}) == 1


def test_thoughts_calls_and_forms(thinking: Running) -> None:  # noqa: F811
    client = Client(host=thinking.url)
    found = client.chat("tiny", HELLO, tools=[TOOL], think=True, options=GREEDY)
    assert found.message.thinking
    assert not found.message.content
    lines = list(client.chat("tiny", HELLO, think=True, options=GREEDY, stream=True))
    assert "".join(line.message.thinking or "" for line in lines)
    assert not client.chat("tiny", HELLO, think=False, options=GREEDY).message.thinking
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    schema["additionalProperties"] = False  # type: ignore[assignment]
    options = {"temperature": 0, "num_predict": 60}
    said = client.chat("tiny", HELLO, think=False, format=schema, options=options).message.content
    assert json.loads(said or "")["sure"] in (True, False)
    called: Any = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}],
    }
    after = [*HELLO, called, {"role": "tool", "tool_name": "get_weather", "content": "Rain."}]
    assert client.chat("tiny", after, tools=[TOOL], think=False, options=GREEDY).message.content


def test_models_are_listed_shown_loaded_and_left(serve: Any) -> None:
    server = serve()
    client = Client(host=server.url)
    assert [model.model for model in client.list().models] == ["tiny"]
    assert not client.ps().models
    assert client.generate("tiny").done_reason == "load"
    (running,) = client.ps().models
    assert running.context_length == 256
    shown = client.show("tiny")
    assert "completion" in (shown.capabilities or [])
    assert (shown.modelinfo or {})["general.architecture"] == "qwen3"
    assert client.generate("tiny", keep_alive=0).done_reason == "unload"
    assert not client.ps().models
    assert httpx.get(f"{server.url}/api/version").json()["version"]


def test_errors_have_ollamas_shape(server: Running) -> None:
    for wrong, said in (
        ({"options": {"num_predict": "many"}}, "options.num_predict"),
        ({"options": {"tfs_z": 1}}, "options.tfs_z"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images"),
        ({"format": "xml"}, "format"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"think": True}, "thoughts"),
        ({"unheard_of": 1}, "unheard_of"),
    ):
        answer = httpx.post(f"{server.url}/api/chat", json={"model": "tiny", "messages": HELLO, **wrong}, timeout=60)
        assert answer.status_code == 400
        assert said in answer.json()["error"]
    with pytest.raises(ResponseError, match="embed"):
        Client(host=server.url).embed("tiny", "Hello")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), (5, 5.0), ("5m", 300.0), ("1h30m", 5400.0), ("0", 0.0), (-1, float("inf")), ("-1m", float("inf"))],
)
def test_how_long_a_model_stays(given: Any, seconds: float | None) -> None:
    assert parse_chat({"model": "tiny", "keep_alive": given}).keep_alive == seconds
