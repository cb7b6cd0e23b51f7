"""https by a certificate of the test's own, of localhost until 2126, made with

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:TRUE
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from ggpy.errors import GGPYError
from ggpy.server.run import Binding, server
from tests.support.serving import Running

PEM = Path(__file__).parents[1] / "data" / "localhost.pem"
TLS = {"ssl_certfile": str(PEM), "ssl_keyfile": str(PEM)}


def test_answers_come_encrypted_to_whom_trusts_the_certificate(serve: Callable[..., Running]) -> None:
    running = serve(binding=TLS)
    url = f"https://localhost:{running.port}"
    body = {"prompt": "a", "max_tokens": 5, "temperature": 0}
    with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=PEM), timeout=60) as client:
        whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        with client.stream("POST", "/completion", json={**body, "n_predict": 5, "stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert len(lines) > 1
        assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == whole
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")  # whose authorities do not know it
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        assert b"200" not in plain.recv(4096)
    with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=PEM)) as client:
        assert client.get("/health").json() == {"status": "ok"}


def test_addresses_that_clients_are_given() -> None:
    assert Binding("0.0.0.0", 8443, ssl_certfile="a.pem").url == "https://127.0.0.1:8443"
    assert Binding("::", 80).url == "http://[::1]:80"


def test_files_that_are_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    for cert in (tmp_path / "none.pem", tmp_path / "missing.pem"):
        with pytest.raises(GGPYError, match="certificate or its key cannot be used"):
            server(None, Binding(ssl_certfile=str(cert), ssl_keyfile=str(PEM)))  # type: ignore[arg-type]
