"""Clients that mean harm, or are written badly: a status and a sentence for each, and the others are served as ever."""

from __future__ import annotations

import gc
import json
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from ggpy.protocol import anthropic, llama_server, ollama, openai, responses_bodies
from ggpy.protocol.errors import RequestError
from ggpy.protocol.openai_bodies import ChatBody, CompletionBody, EmbeddingsBody, RerankBody
from ggpy.protocol.responses_bodies import ResponsesBody
from tests.support.hangs import ends
from tests.support.serving import Running

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"messages": HELLO, "max_tokens": 3}
ODD: list[Any] = [
    0, -1, 1.5, 1e308, 10**30, True, "", "a", "\ud800", "\x00", [], [[]], [0], ["a"], {}, {"a": {"b": []}}, {"type": 3},
    [{"type": "function"}], [{"role": "user"}], [{"role": "user", "content": [{"type": "text"}]}], {"": None},
]  # fmt: skip


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def sentence(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    assert len(error["message"]) <= 1000
    return str(error["message"])


BODIES = [
    ("/v1/chat/completions", CHAT, ChatBody),
    ("/v1/completions", {"prompt": "a", "max_tokens": 3}, CompletionBody),
    ("/v1/embeddings", {"input": "a"}, EmbeddingsBody),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}, RerankBody),
    ("/v1/responses", {"input": "a", "max_output_tokens": 3}, ResponsesBody),
]


@pytest.mark.parametrize(("path", "body", "kind"), BODIES)
def test_odd_values_in_every_field(path: str, body: Any, kind: Any) -> None:
    refused = []
    for field in kind.model_fields:
        for value in ODD:
            given = {**body, field.rstrip("_"): value}
            try:
                _ = responses_bodies.parse(given) if path == "/v1/responses" else openai.parse("POST", path, given)
            except RequestError as error:
                refused.append(error)
    assert refused
    assert all(400 <= error.status < 500 and (error.param or error.code) for error in refused)


OTHERS: list[Any] = [
    ("/completion", lambda given: llama_server.completion_request(llama_server.completion_body(given)),
     {"prompt": "a", "n_predict": 3}, llama_server.CompletionBody),
    ("/infill", llama_server.infill_body, {"input_prefix": "a"}, llama_server.InfillBody),
    ("/embedding", llama_server.embedding_request, {"content": "a"}, llama_server.EmbeddingBody),
    ("/v1/messages", anthropic.parse_messages, {"messages": HELLO, "max_tokens": 3}, anthropic.MessagesBody),
    ("/v1/messages/count_tokens", anthropic.parse_count, {"messages": HELLO}, anthropic.CountBody),
    ("/api/chat", ollama.parse_chat, {"model": "m", "messages": HELLO, "options": {"num_predict": 3}}, ollama.ChatBody),
    ("/api/generate", ollama.parse_generate, {"model": "m", "prompt": "a", "options": {"num_predict": 3}},
     ollama.GenerateBody),
    ("/api/embed", ollama.parse_embed, {"model": "m", "input": "a"}, ollama.EmbedBody),
]  # fmt: skip


@pytest.mark.parametrize(("path", "parse", "body", "kind"), OTHERS)
def test_odd_values_in_the_other_protocols(path: str, parse: Any, body: Any, kind: Any) -> None:
    parse(body)
    refused = []
    for field in kind.model_fields:
        for value in ODD:
            try:
                parse({**body, field.rstrip("_"): value})
            except RequestError as error:
                refused.append(error.status)
    assert len(refused) > len(kind.model_fields)
    assert set(refused) == {400}


def test_odd_values_of_the_other_protocols_reach_the_engine(server: Running, client: httpx.Client) -> None:
    for path, _, body, kind in OTHERS:
        for i, field in enumerate(kind.model_fields):
            value = ODD[i % len(ODD)]
            response = client.post(path, content=json.dumps({**body, field.rstrip("_"): value}).encode())
            assert response.status_code < 500 or response.status_code == 501, (path, field, value, response.text)
    server.check()


def test_odd_values_reach_the_engine(server: Running, client: httpx.Client) -> None:
    """A sample: each field with some of the values."""
    for path, body, kind in BODIES:
        for i, field in enumerate(kind.model_fields):
            for value in ODD[i % 7 :: 7]:
                response = client.post(path, content=json.dumps({**body, field.rstrip("_"): value}).encode())
                if response.status_code != 200:
                    assert 400 <= response.status_code < 500 or response.status_code == 501, (
                        field,
                        value,
                        response.text,
                    )
                    assert sentence(response)
    server.check()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b'{"messages": "\xff\xfe"}', "is no JSON"),
        (b'{"temperature": NaN}', "NaN is no value of JSON"),
        (b"[" * 100_000, "nests too deeply"),
        (b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nests too deeply"),
        (b"null", "must be an object of fields"),
        (b'"text"', "must be an object of fields"),
        (b'{"messages": [], "messages": 3}', "messages is 3"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "is no JSON"),
    ],
)
def test_bodies_that_are_none(client: httpx.Client, data: bytes, words: str) -> None:
    response = client.post("/v1/chat/completions", content=data)
    assert response.status_code == 400
    assert words in sentence(response)


def test_paths_and_methods_that_are_none(client: httpx.Client) -> None:
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/%00/..%2f").status_code == 404
    assert client.get("/v1/chat/completions").status_code == 405
    assert "does not take GET" in sentence(client.get("/v1/chat/completions"))


def test_a_body_that_is_too_large(serve: Callable[..., Running]) -> None:
    server = serve(max_body=1000)
    for pieces in (b"x" * 2000, iter([b"x" * 900, b"x" * 900])):  # with its length, and in chunks
        response = httpx.post(f"{server.url}/v1/completions", content=pieces)
        assert response.status_code == 413
        assert "larger than" in sentence(response)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:  # a hundred megabytes are not read
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n" + b"x" * 4096
        )
        assert b" 413 " in connection.recv(4096)
    server.check()


@pytest.mark.parametrize("kind", ["too large", "no JSON", "too long", "left"])
def test_bodies_that_are_refused_wait_for_no_collection(serve: Callable[..., Running], kind: str) -> None:
    """None is held by a cycle: between two collections there may be a hundred requests."""
    text = b"a b " * (2 << 18)
    server = serve(max_body=len(text) // 2 if kind == "too large" else 4 * len(text))
    data = b'{"prompt": "' + text + (b'"}' if kind == "too long" else b"")
    server.check()
    tracemalloc.start()
    gc.disable()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(4):
            if kind == "left":
                with socket.create_connection(("127.0.0.1", server.port)) as connection:
                    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
                    connection.sendall(head % (2 * len(data)) + data)
            else:
                answer = httpx.post(f"{server.url}/v1/completions", content=iter([data]))
                assert answer.status_code == (413 if kind == "too large" else 400)
        server.wait_for(lambda: tracemalloc.get_traced_memory()[0] - before < len(text))
    finally:
        gc.enable()
        tracemalloc.stop()


def test_a_text_far_beyond_the_context_is_not_tokenized(server: Running, client: httpx.Client) -> None:
    text = "a b " * (3 << 20)
    with ends(20):
        for path, body in (
            ("/v1/completions", {"prompt": text}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
        ):
            response = client.post(path, json=body)
            assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    server.check()


def test_connections_that_stand_still_are_closed(serve: Callable[..., Running]) -> None:
    server = serve(timeout=0.3, keep_alive=1)
    begun = [b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET /hea"]
    half = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{"
    for sent, status in [*((one, b"") for one in begun), (half, b" 408 ")]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(sent)
            found = b""
            while piece := connection.recv(4096):
                found += piece
            assert status in found
    server.check()


def test_a_reader_that_reads_nothing_is_left(serve: Callable[..., Running]) -> None:
    server = serve(timeout=0.3)
    server.check()
    body = json.dumps({"prompt": "a", "max_tokens": 250, "n": 16, "stream": True, "ignore_eos": True, "logprobs": 20})
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        connection.sendall(head.encode())
        server.wait_for(lambda: server.engine.has_work)
        server.wait_for(lambda: not server.engine.has_work)
    server.check()


def test_a_client_that_goes_frees_its_slot(server: Running) -> None:
    for stream in (True, False):
        body = {"prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": stream, "n": 8}
        with httpx.Client(base_url=server.url, timeout=0.2 if not stream else 60) as client:
            if stream:
                with client.stream("POST", "/v1/completions", json=body) as response:
                    assert next(response.iter_bytes())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/completions", json={**body, "n": 64})
        began = server.engine.n_evaluated
        server.wait_for(lambda: not server.engine.has_work)
        assert server.engine.n_evaluated - began < 64 * 250  # it was not run to its end
    server.check()


def test_idle_connections_cost_nothing(server: Running) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    began = time.process_time()
    server.check()
    assert time.process_time() - began < 10
    for connection in idle:
        connection.close()


def test_pipelined_and_malformed_http(server: Running) -> None:
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /a HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nbad header\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(sent)
            assert connection.recv(4096).startswith(b"HTTP/1.1 4")
    two = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n" * 2
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(two)
        found = b""
        while found.count(b'"ok"') < 2:
            found += connection.recv(4096)
    server.check()
