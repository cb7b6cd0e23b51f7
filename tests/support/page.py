"""Steps that tests of the chat page take again and again."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.support.chromium import Page

Open = Callable[..., Page]


def ready(page: Page) -> None:
    page.wait("document.documentElement.dataset.ready")


def ask(page: Page, text: str, answered: bool = True) -> None:
    n = page.count(".message")
    page.run("document.getElementById('message').focus()")
    page.type(text)
    page.press("Enter")
    page.wait(f"document.querySelectorAll('.message').length === {n + 2}")
    if answered:
        done(page)


def done(page: Page) -> None:
    page.wait("!document.querySelector('.message.running')")


def shown(page: Page) -> list[str]:
    """The texts of the messages, from the first to the last."""
    found: list[str] = page.run("[...document.querySelectorAll('.message')].map((one) => "
                                "(one.querySelector('.content, .text')?.textContent ?? '').trim())")  # fmt: skip
    return found


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
