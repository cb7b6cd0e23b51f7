"""The chat page's files as they are served: types, policy, caching; all are there, none asks for others."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urljoin

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.applications import Starlette
from starlette.testclient import TestClient

from ggpy.server import page
from ggpy.server.page import FOLDER

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=page.routes()))


def test_the_page_has_a_strict_policy(client: TestClient) -> None:
    found = client.get("/")
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in found.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert set(policy.values()) <= {"'none'", "'self'", "'script'"}  # neither inline nor eval nor another host
    assert (
        policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == policy["trusted-types"] == "'none'"
    )
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "no-referrer"


def test_files_are_sent_once_and_asked_about_each_time(client: TestClient) -> None:
    for path in ("/", "/page/main.js", "/page/base.css", "/page/icon.svg"):
        first = client.get(path)
        assert first.status_code == 200
        assert first.headers["cache-control"] == "no-cache"
        for tag in (first.headers["etag"], f"W/{first.headers['etag']}", f'"other", {first.headers["etag"]}'):
            again = client.get(path, headers={"if-none-match": tag})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["content-security-policy"]
        assert client.get(path, headers={"if-none-match": '"other"'}).content == first.content
        head = client.head(path)
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", first.headers["etag"])
    assert client.get("/page/main.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert client.get("/page/base.css").headers["content-type"] == "text/css; charset=utf-8"


def test_nothing_else_is_served(client: TestClient) -> None:
    for path in (
        "/page/",
        "/page/index.html",
        "/page/../page.py",
        "/page/%2e%2e/page.py",
        "/page/..%2fpage.py",
        "/page.py",
    ):
        assert client.get(path).status_code == 404
    assert client.post("/").status_code == 405


def test_all_that_the_page_names_is_there_and_here(client: TestClient) -> None:
    """Every file is reached from the page, and none names another host."""
    seen: set[str] = set()
    waiting = ["/"]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        found = client.get(path)
        assert found.status_code == 200, path
        named = re.findall(r"(?:href|src)=\"([^\"]+)\"|(?:from|import) \"([^\"]+)\"|url\(([^)]+)\)", found.text)
        waiting += [urljoin(path, a or b or c) for a, b, c in named]
        outside = re.sub(r"http://www\.w3\.org/2000/svg", "", found.text)
        assert not re.search(r"https?://\w", outside), path
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", outside
        ), path
    assert seen == {"/", *(f"/page/{path.name}" for path in FOLDER.iterdir() if path.name != "index.html")}


def test_the_wheel_has_all_of_it() -> None:
    declared = re.search(r'^"ggpy\.server" = \[([^\]]*)\]', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared is not None
    patterns = re.findall(r'"([^"]+)"', declared[1])
    for path in FOLDER.iterdir():
        assert any(fnmatch(f"page/{path.name}", pattern) for pattern in patterns), path.name


def test_every_word_is_in_both_languages() -> None:
    words = (FOLDER / "words.js").read_text(encoding="utf-8")
    keys = set(re.findall(r"^  (\w+): \[", words, re.M))
    code = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.js") if path.name != "words.js")
    used = set(re.findall(r"\bt\(\"(\w+)\"", code))
    assert used <= keys
    composed = ("thinking", "theme")  # with what was chosen
    assert [key for key in keys if not re.search(rf"\"{key}\"", code) and not key.startswith(composed)] == []
