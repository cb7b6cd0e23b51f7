"""`ggpy serve` as a process, and what it refuses before it listens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette")

from click.testing import CliRunner

from ggpy.cli.main import main
from tests.support.converted import tiny_model

LONG = 120  # seconds, after which something hangs


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("模型 serve") / "小 模型.gguf")


@contextmanager
def started(*args: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server with JSON for a log, and its address."""
    command = [sys.executable, "-m", "ggpy", "serve", "--log-json", "-t", "1", "-c", "256", *args]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
        assert process.stderr is not None
        try:
            url = ""
            for line in process.stderr:
                row = json.loads(line) if line.startswith("{") else {}
                if row.get("message", "").startswith("listening on "):
                    url = row["message"].removeprefix("listening on ")
                    break
            assert url
            yield process, url
        finally:
            process.kill()


def test_a_process_is_asked_and_ended(path: Path) -> None:
    with started("-m", str(path), GGPY_SERVE_PORT="0", GGPY_SERVE_PARALLEL="2") as (process, url):
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 3}, timeout=LONG)
        assert answer.json()["model"] == "小 模型"
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        rows = [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]
        assert process.wait(LONG) == 0
    (row,) = [row for row in rows if row.get("path") == "/v1/completions"]
    assert (row["status"], row["method"], row["request_id"]) == (200, "POST", answer.headers["x-request-id"])


def test_a_socket_and_a_file_of_models(path: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text(
        f"""uds = '{tmp_path}/socket'
max-queue = 7
[models.one]
source = '{path}'
aliases = ["gpt-4o"]
sampling = {{ temperature = 0.0 }}
[models.two]
source = '{path}'
n_ctx = 128
""",
        encoding="utf-8",
    )
    with started("--config", str(config)) as (_, url):
        assert url == f"unix:{tmp_path}/socket"
        with httpx.Client(transport=httpx.HTTPTransport(uds=f"{tmp_path}/socket"), timeout=LONG) as client:
            found = client.get("http://a/v1/models").json()["data"]
            assert [model["id"] for model in found] == ["one", "two"]
            body = {"model": "gpt-4o", "prompt": "a", "max_tokens": 3}
            assert client.post("http://a/v1/completions", json=body).json()["model"] == "one"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-m", "nothing.gguf"], "nothing.gguf"),
        (["-m", "MODEL", "-m", "MODEL"], "Two models are named"),
        (["-m", "MODEL", "--port", "PORT"], "cannot be listened on"),
        (["-m", "MODEL", "--host", "no such host", "--api-key", "k"], "cannot be listened on"),
        (["-m", "MODEL", "--keep-alive", "soon"], "is no duration"),
        (["-m", "MODEL", "--api-key-file", "none"], "none cannot be read"),
        (["-m", "MODEL", "--tls-cert", "none.pem"], "certificate"),
        (["-m", "MODEL", "--device", "tpu"], "device is 'tpu'"),
        (["--config", "none.toml"], "none.toml cannot be read"),
        (["--config", "a = "], "is no TOML"),
        (["--config", "colour = 3"], "'colour' is no option"),
        (["--config", "models = 3"], "a table for each model"),
        (["--config", "[models.a]\nn_ctxx = 3"], "[models.a]: 'n_ctxx' is no setting of a model"),
        (["--config", "[models.a.sampling]\ntemperature = 1e9"], "temperature is"),
        (["--config", "port = 'x'"], "'x' is not a valid integer"),
    ],
)
def test_refused_before_it_listens(path: Path, tmp_path: Path, args: list[str], words: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = []
        for arg in args:
            if args[0] == "--config" and " " in arg:
                (tmp_path / "a.toml").write_text(arg)
                arg = str(tmp_path / "a.toml")
            given.append({"MODEL": str(path), "PORT": str(taken.getsockname()[1])}.get(arg, arg))
        result = CliRunner().invoke(main, ["serve", *given])
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_wide_address_without_a_key_warns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("ggpy.server.run.run", lambda app, binding: asked.append(binding))
    for args, warned in ((["--host", "0.0.0.0"], True), (["--host", "0.0.0.0", "--api-key", "k"], False), ([], False)):
        result = CliRunner().invoke(main, ["serve", "-m", str(path), *args])
        assert ("anyone there" in result.stderr) == warned
    assert asked[0].url == "http://127.0.0.1:8080"
