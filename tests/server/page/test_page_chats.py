"""The page around a chat: the list of chats, windows side by side, languages, themes, a phone, the keyboard."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.chat_server import ChatServer
from tests.support.chromium import CTRL, SHIFT, Chromium, Page
from tests.support.page import Open, ask, ready, shown, until


def test_chats_are_found_renamed_deleted_exported_and_imported(page: Page, api: ChatServer, tmp_path: Path) -> None:
    api.answers["苹果"] = ["关于**香蕉**的回答"]
    ask(page, "苹果")
    page.press("o", CTRL | SHIFT)
    page.wait("!document.querySelector('.message')")
    ask(page, "梨")
    assert page.count(".entry") == 2
    page.press("k", CTRL)
    page.type("香蕉")  # in an answer, not in a title
    page.wait("document.querySelectorAll('.entry').length === 1")
    assert page.text(".entry .title") == "苹果"
    page.run("document.querySelector('.search input').select()")
    page.press("Backspace")
    page.wait("document.querySelectorAll('.entry').length === 2")
    page.run("document.querySelector('.entry.current .title').focus()")
    page.press("F2")
    page.wait("document.activeElement.matches('.rename')")
    page.run("document.activeElement.select()")
    page.type("鸭梨 <b>")
    page.press("Enter")
    page.wait_for(".entry.current .title", "鸭梨 <b>")
    page.downloads_to(tmp_path)
    page.click(".sidebar-bar .plain", 0)
    until(lambda: list(tmp_path.glob("*.json")))
    [path] = tmp_path.glob("*.json")
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert {chat["title"] for chat in saved["chats"]} == {"苹果", "鸭梨 <b>"}
    page.run("document.querySelector('.entry.current [title=删除]').click()")
    page.wait("document.querySelector('dialog')")
    page.click("dialog .danger")
    page.wait("document.querySelectorAll('.entry').length === 1")
    assert page.count(".message") == 0
    page.give_files(".sidebar input[type=file]", path)
    page.wait("document.querySelectorAll('.entry').length === 3")
    page.run("[...document.querySelectorAll('.entry .title')].find((one) => one.innerText === '鸭梨 <b>').click()")
    page.wait("document.querySelectorAll('.message').length === 2")
    assert shown(page) == ["梨", "你说：梨"]
    page.reload()
    ready(page)
    assert shown(page) == ["梨", "你说：梨"]
    assert page.count(".entry") == 3


def test_a_long_chat_opens_at_its_end_and_is_read_as_it_comes_into_view(page: Page, tmp_path: Path) -> None:
    n = 400
    messages = [
        {
            "id": str(i),
            "parent": str(i - 1),
            "order": i,
            "role": ("user", "assistant")[i % 2],
            "content": f"**{i}**\n\n" * 9,
        }
        for i in range(n)
    ]
    chats = [{"title": "长", "messages": messages, "leaf": str(n - 1)}]
    (tmp_path / "long.json").write_text(json.dumps({"format": "ggpy.chats", "chats": chats}))
    page.give_files(".sidebar input[type=file]", tmp_path / "long.json")
    page.wait_for(".entry .title", "长")
    page.click(".entry .title")
    page.wait(f"document.querySelectorAll('.message').length === {n}")
    scroller = "document.querySelector('.scroller')"
    page.wait(f"{scroller}.scrollTop + {scroller}.clientHeight > {scroller}.scrollHeight - 4")
    assert page.text(".message.assistant strong") == str(n - 1)
    assert page.count(".message.assistant strong") < 9 * n / 4
    assert page.run("document.querySelector('.message.assistant .content').textContent").startswith("**1**")
    page.run(f"{scroller}.scrollTop = 0")
    page.wait_for(".message.assistant:nth-child(2) strong", "1")
    assert not page.run("document.querySelector('.to-end').hidden")
    page.click(".to-end")
    page.wait(f"{scroller}.scrollTop + {scroller}.clientHeight > {scroller}.scrollHeight - 4")


def test_two_windows_show_the_same_chats(browser: Chromium, page: Page, api: ChatServer) -> None:
    other = browser.open(api.url, language="zh-CN", beside=page)
    ready(other)
    page.to_front()
    ask(page, "一")
    other.to_front()
    other.wait_for(".entry .title", "一")
    other.click(".entry .title")
    other.wait("document.querySelectorAll('.message').length === 2")
    ask(other, "二")
    page.to_front()
    page.wait_for(".message.assistant .content", "你说：二")
    assert shown(page) == shown(other) == ["一", "你说：一", "二", "你说：二"]


def test_languages_themes_and_a_phone(opened: Open, api: ChatServer) -> None:
    page = opened(language="en-US")
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("document.getElementById('message').placeholder") == "Write a message"
    page.type("half a thou")
    page.click(".language")
    assert page.run("document.documentElement.lang") == "zh-CN"
    assert page.run("document.getElementById('message').placeholder") == "输入消息"
    assert page.run("document.getElementById('message').value") == "half a thou"  # what is written stays

    def light() -> bool:
        colour = page.run("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.strip("rgb()").split(","))) > 384

    page.media(prefers_color_scheme="dark")
    assert not light()
    page.click(".theme")
    assert light()
    page.click(".theme")
    page.media(prefers_color_scheme="light")
    assert not light()
    page.reload()
    ready(page)
    assert not light()
    assert page.run("document.getElementById('message').placeholder") == "输入消息"
    page.size(360, 640, 2, True)
    page.wait("!document.querySelector('.sidebar').checkVisibility()")
    ask(page, "手机")
    page.click("header.top .icon-button", 0)
    page.wait_for(".sidebar .title", "手机")
    page.press("Escape")
    page.wait("!document.querySelector('.sidebar').checkVisibility()")
    assert page.run("document.documentElement.scrollWidth") <= 360


def test_all_of_it_is_reached_by_keyboard_and_named(page: Page, api: ChatServer) -> None:
    ask(page, "一")
    page.run("document.getElementById('message').focus()")
    page.press("ArrowUp")
    page.wait("document.activeElement.matches('.edit')")
    page.press("Escape")
    page.wait("!document.querySelector('.edit')")
    assert page.count(".message") == 2
    page.run("document.activeElement.blur()")
    page.press("?", SHIFT)
    page.wait_for("dialog", "键盘快捷键")
    page.press("Escape")
    page.press("/")
    page.wait("document.activeElement.id === 'message'")
    assert page.run("document.getElementById('message').value") == ""
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [
        node for node in nodes if node.get("role", {}).get("value") in ("button", "textbox", "searchbox", "combobox")
    ]
    assert len(controls) > 15
    assert [node for node in controls if not node.get("name", {}).get("value")] == []
    page.run("document.querySelector('.new').focus()")
    seen = []
    while "message" not in seen:
        assert len(seen) < 40, seen
        seen.append(page.run("document.activeElement.className || document.activeElement.id"))
        page.press("Tab")
    order = [
        seen.index(name)
        for name in ("new", "title", "models", "icon-button theme", "icon-button open-settings", "message")
    ]
    assert order == sorted(order)
    assert page.run("document.getElementById('announcer').textContent").startswith("回答完毕。")
