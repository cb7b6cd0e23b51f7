"""The chat page in a real browser, over a double of the API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from tests.support.chat_server import ChatServer, chat_server
from tests.support.chromium import Chromium, Page, find_chromium
from tests.support.page import Open, ready


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if find_chromium() is None:
        pytest.skip("the page is tested in Chromium, which is not installed")
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def api() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def opened(browser: Chromium, api: ChatServer) -> Iterator[Open]:
    """Open the page. Whatever a test does, nothing is fetched from elsewhere, thrown, or stopped by the policy."""
    pages: list[Page] = []

    def open_page(**given: Any) -> Page:
        page = browser.open(api.url, **{"language": "zh-CN", **given})
        pages.append(page)
        ready(page)
        return page

    yield open_page
    for page in pages:
        assert page.problems == []
        assert [url for url in page.requests if not url.startswith((api.url, "blob:"))] == []
    for page in {page.context: page for page in pages}.values():
        page.close()


@pytest.fixture
def page(opened: Open) -> Page:
    return opened()
