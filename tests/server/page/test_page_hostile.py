"""Hostile models, and files of strangers, which cannot harm the page or its reader."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.chat_server import ChatServer
from tests.support.chromium import Chromium, Page
from tests.support.page import Open, ask, ready

HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "<iframe src='javascript:parent.hacked=1'>",
    "[a](javascript:window.hacked=1) [b](JAVASCRIPT:alert(1)) [c](data:text/html,<script>alert(1)</script>)"
    " [d](vbscript:x)",
    "<javascript:alert(1)> ![x](https://example.org/track.png) <https://example.org/\"onclick=alert(1)>",
    "[`x`](https://example.org/?q='><script>window.hacked=1</script>) [z](//example.org/x)",
    "```html\n<script>window.hacked = 1</script>\n",
    "x" * 20_000,
    "```\n" + "y" * 20_000 + "\n```",
    "|" + "col|" * 200 + "\n|" + "-|" * 200 + "\n|" + "wide wide|" * 200,
    "> " * 200 + "deep\n" + "- " * 200 + "deep",
    "**" * 3000 + "[" * 3000 + "```" + "`" * 3000,
    "\u202e\u0000\ud7ff\ufeff" + "a\u0300" * 3000,
    "$$\n" + "\\frac{" * 2000,
    "# " + "標" * 3000,
)  # fmt: skip


def test_hostile_answers_are_only_shown(opened: Open, api: ChatServer) -> None:
    page = opened()
    api.answers["骗我"] = ["\n\n".join(HOSTILE[:5]), "\n```\n\n"]
    api.answers["很宽"] = [text + "\n\n" for text in HOSTILE[5:]]
    api.answers["想"] = [{"reasoning_content": HOSTILE[0]}, {"tool_calls": [{"index": 0, "id": HOSTILE[0], "function": {
        "name": HOSTILE[0] + "z" * 3000, "arguments": HOSTILE[0] + "w" * 20_000}}]}]  # fmt: skip
    for text in ("骗我", "很宽", "想"):
        ask(page, text)
    page.click(".thought summary")
    links = page.run("[...document.querySelectorAll('.messages a')].map((a) => [a.protocol, a.rel, a.target, a.href])")
    assert all(link[:3] == ["https:", "noopener noreferrer nofollow", "_blank"] for link in links)
    assert {link[3].split("/")[2] for link in links} == {"example.org"}
    for width in (1280, 360):
        page.size(width, 740)
        page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.run(
            "document.querySelector('.scroller').scrollWidth <= document.querySelector('.scroller').clientWidth"
        )
        assert page.run(f"document.documentElement.scrollWidth <= {width}")
        assert page.run("document.querySelector('.composer').getBoundingClientRect().bottom <= innerHeight")
    assert page.run("window.hacked") is None
    tags = page.run("[...new Set([...document.querySelectorAll('.messages *')].map((one) => one.localName))]")
    assert not set(tags) & {"script", "img", "iframe", "object", "embed", "form", "style", "link", "base", "video"}
    handlers = page.run("[...document.querySelectorAll('*')].flatMap((one) => one.getAttributeNames())"
                        ".filter((name) => name.startsWith('on') || name === 'style' || name === 'src')")  # fmt: skip
    assert set(handlers) <= {"src", "style"}  # the page's own script, and heights of fields set by it
    assert "<script>window.hacked = 1</script>" in page.text(".messages")


def test_the_policy_stops_what_the_page_would_not_do(browser: Chromium, api: ChatServer) -> None:
    page = browser.open(api.url)
    ready(page)
    for script in ("document.body.innerHTML = '<b>x</b>'", "eval('1')", "document.createElement('script').text = '1'"):
        assert (
            page.run(f"(() => {{ try {{ {script}; return 'done'; }} catch (error) {{ return error.name; }} }})()")
            != "done"
        )
    page.run("void new Image().setAttribute('src', 'https://example.org/x.png')")
    refused = page.run("fetch('https://example.org/').then(() => 'done', () => 'refused')")
    assert refused == "refused"
    assert page.problems  # the violations are reported: that other tests have none is no accident
    page.close()


def test_files_of_strangers_do_no_harm(page: Page, tmp_path: Path) -> None:
    odd = [
        {"id": "a", "parent": "b", "role": "user", "content": "一", "order": 1},
        {"id": "b", "parent": "a", "role": "assistant", "content": ["x"], "stats": {"speed": "fast"}, "toolCalls": [1]},
        {
            "id": "b",
            "parent": "b",
            "role": "user",
            "content": "二",
            "order": "3",
            "attachments": "no",
            "state": "running",
        },
        {"id": 5, "parent": "nowhere", "role": "system", "content": "x"},
        "message",
        None,
    ]
    settings = {"params": {"temperature": "hot"}, "system": 5}
    chats = [{"title": 5, "messages": odd, "leaf": "b", "settings": settings}, 7, {"messages": 1}]
    (tmp_path / "odd.json").write_text(json.dumps({"format": "ggpy.chats", "chats": chats}))
    (tmp_path / "other.json").write_text("[1, 2")
    page.give_files(".sidebar input[type=file]", tmp_path / "other.json")
    page.wait_for(".problems", "other.json")
    page.give_files(".sidebar input[type=file]", tmp_path / "odd.json")
    page.wait("document.querySelectorAll('.entry').length === 1")
    page.click(".entry .title")
    page.wait("document.querySelector('.message')")
    ask(page, "三")
