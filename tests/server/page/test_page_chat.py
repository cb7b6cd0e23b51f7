"""Chatting in the page: streamed, stopped, edited, answered again, with thoughts, tools, settings, files, errors."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.chat_server import ChatServer
from tests.support.chromium import CTRL, SHIFT, Chromium, Page
from tests.support.page import Open, ask, done, ready, shown, until
from tests.support.serving import Running


def test_a_chat_is_streamed_stopped_and_there_after_a_reload(page: Page, api: ChatServer) -> None:
    ask(page, "你好")
    assert shown(page) == ["你好", "你说：你好"]
    assert "42 词元/秒" in page.text(".stats")
    assert "56 个词元" in page.text(".stats")
    assert "上下文 3.1%" in page.text(".stats")  # (200 + 56) / 8192
    ask(page, api.endless, answered=False)
    page.wait("document.querySelector('.message.running .content').innerText.includes('5 6 7')")  # before it ends
    assert page.run("document.querySelector('.send').title") == "停止"
    page.click(".send")
    done(page)
    until(lambda: api.left == [api.endless])  # the server is told, and does not go on
    assert "已停止" in page.text(".message.assistant .note")
    before = shown(page)
    assert before[3].startswith("0 1 2 3")
    page.reload()
    ready(page)
    assert shown(page) == before
    assert page.text(".entry.current .title") == "你好"
    ask(page, "还在吗")
    assert [message["role"] for message in api.requests[-1]["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert api.requests[-1]["model"] == "qwen3-0.6b"
    assert api.requests[-1]["stream_options"] == {"include_usage": True}


def test_a_page_that_is_closed_keeps_what_had_come(page: Page, api: ChatServer) -> None:
    ask(page, api.endless, answered=False)
    page.wait("document.querySelector('.message.running .content').innerText.includes('7')")
    page.reload()
    ready(page)
    until(lambda: api.left == [api.endless])
    assert "已中断" in page.text(".message.assistant .note")
    assert page.text(".message.assistant .content").startswith("0 1")


def test_an_input_method_does_not_send(page: Page, api: ChatServer) -> None:
    page.run("document.getElementById('message').focus()")
    page.compose("ni hao")
    page.press("Enter", code=229)  # chooses among the method's words; browsers say so by the code, or by isComposing
    assert page.count(".message") == 0
    page.type("你好")
    page.press("Enter", SHIFT)
    page.type("第二行")
    assert page.run("document.getElementById('message').value") == "你好\n第二行"
    page.press("Enter")
    done(page)
    page.wait_for(".message.assistant .stats")
    assert api.requests[-1]["messages"] == [{"role": "user", "content": "你好\n第二行"}]


def test_messages_are_edited_answered_again_and_branch(page: Page, api: ChatServer) -> None:
    ask(page, "一")
    ask(page, "二")
    page.click(".message.user .icon-button[title=编辑]", 0)
    page.wait("document.activeElement.matches('.edit')")
    page.type("二")
    page.press("Enter")
    page.wait("document.querySelectorAll('.message').length === 2")
    done(page)
    assert shown(page) == ["一二", "你说：一二"]
    assert api.requests[-1]["messages"] == [{"role": "user", "content": "一二"}]
    assert page.text(".versions") == "2 / 2"
    api.answers["一二"] = ["另一个回答"]
    page.click(".message.assistant .icon-button[title=重新回答]")
    page.wait_for(".message.assistant .content", "另一个回答")
    done(page)
    page.click(".message.user .versions button", 0)
    page.wait("document.querySelectorAll('.message').length === 4")
    assert shown(page) == ["一", "你说：一", "二", "你说：二"]  # with all that followed it
    page.click(".message.user .versions button", 1)
    page.wait("document.querySelectorAll('.message').length === 2")
    assert shown(page) == ["一二", "另一个回答"]
    page.click(".message.assistant .versions button", 0)
    page.wait_for(".message.assistant .content", "你说：一二")
    page.reload()
    ready(page)
    assert shown(page) == ["一二", "你说：一二"]  # the version that was shown
    page.click(".message.assistant .icon-button[title=编辑]")
    page.run("document.querySelector('.edit').select()")
    page.type("改过的回答")
    page.press("Enter", CTRL)
    page.wait_for(".message.assistant .content", "改过的回答")
    ask(page, "继续")
    assert [message["content"] for message in api.requests[-1]["messages"]] == ["一二", "改过的回答", "继续"]


def test_thoughts_are_folded_and_tool_calls_answered(page: Page, api: ChatServer) -> None:
    api.answers["北京天气"] = [
        {"reasoning_content": "需要"}, {"reasoning_content": "工具。"}, "我来查。",
        {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"北京"}'}}]},
    ]  # fmt: skip
    page.click(".open-settings")
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    page.run("document.getElementById('tools').focus()")
    page.type(json.dumps(tools))
    page.press("Escape")
    ask(page, "北京天气")
    assert api.requests[-1]["tools"] == tools
    assert not page.run("document.querySelector('.thought').open")
    page.click(".thought summary")
    page.wait_for(".thought .markdown", "需要工具。")
    assert "weather" in page.text(".call .label")
    assert '"city": "北京"' in page.text(".call pre")
    api.answers["晴"] = ["北京今天晴。"]
    page.click(".call textarea")
    page.type("晴")
    page.click(".calls .button")
    page.wait_for(".message.assistant .content", "北京今天晴。")
    done(page)
    assert api.requests[-1]["messages"][1:] == [
        {"role": "assistant", "content": "我来查。", "reasoning_content": "需要工具。", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "北京"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "晴"},
    ]  # fmt: skip


def test_settings_are_sent_and_empty_ones_are_the_models(page: Page, api: ChatServer) -> None:
    ask(page, "一")
    assert not {"temperature", "top_p", "seed", "tools", "stop", "chat_template_kwargs"} & api.requests[-1].keys()
    page.click(".open-settings")
    assert page.run("document.getElementById('temperature').placeholder") == "0.6"
    assert page.run("document.getElementById('repetition_penalty').placeholder") == "1"
    assert page.run("document.getElementById('seed').placeholder") == "默认"
    for name, text in {"system": "你是诗人。", "temperature": "0.3", "top_k": "5", "stopTexts": "完\n\n。"}.items():
        page.run(f"document.getElementById('{name}').focus()")
        page.type(text)
    page.run("document.getElementById('top_p').focus()")
    page.type("7")
    page.wait_for(".field-problem", "0 和 1 之间")
    page.run("const thinking = document.getElementById('thinkingMode'); thinking.value = 'Off';"
             "thinking.dispatchEvent(new Event('change'))")  # fmt: skip
    page.press("Escape")
    ask(page, "二")
    sent = api.requests[-1]
    assert sent["messages"][0] == {"role": "system", "content": "你是诗人。"}
    assert (sent["temperature"], sent["top_k"], sent["stop"]) == (0.3, 5, ["完", "。"])
    assert "top_p" not in sent
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    page.reload()
    ready(page)
    page.run("document.querySelector('.models').value = 'smollm2-135m';"
             "document.querySelector('.models').dispatchEvent(new Event('change'))")  # fmt: skip
    ask(page, "三")
    assert (api.requests[-1]["temperature"], api.requests[-1]["model"]) == (0.3, "smollm2-135m")
    page.click(".sidebar .new")
    ask(page, "四")
    assert "temperature" not in api.requests[-1]  # settings are one chat's, unless they are kept for new ones
    assert len(api.requests[-1]["messages"]) == 1


def test_text_files_are_attached_and_others_refused(page: Page, api: ChatServer, tmp_path: Path) -> None:
    (tmp_path / "笔记.md").write_bytes("标题\n```\ncode\n```\n".encode("gb18030"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0\0")
    page.give_files(".composer input[type=file]", tmp_path / "笔记.md", tmp_path / "picture.png")
    page.wait_for(".chip", "笔记.md")
    page.wait_for(".problems", "picture.png 不是文本文件")
    page.run("""(() => {
        const data = new DataTransfer();
        data.items.add(new File(["print(1)"], "a.py"));
        for (const type of ["dragover", "drop"]) {
            const event = new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true});
            document.querySelector(".scroller").dispatchEvent(event);
        }
    })()""")
    page.wait_for(".chip", "a.py")
    ask(page, "看看")
    sent = api.requests[-1]["messages"][0]["content"]
    assert sent == "笔记.md\n````\n标题\n```\ncode\n```\n````\n\na.py\n```\nprint(1)\n```\n\n看看"
    assert page.count(".chip") == 0
    assert page.count(".message.user .file") == 2


def test_errors_are_said_in_the_servers_words(page: Page, api: ChatServer) -> None:
    words = "The prompt has 9120 tokens, but the context holds 8192; shorten it."
    api.errors["太长"] = (400, {"error": {"message": words, "type": "invalid_request_error", "param": "messages"}})
    ask(page, "太长")
    assert words in page.text(".note.error")
    del api.errors["太长"]
    page.click(".note.error .button")  # again; what failed before a word leaves no version
    page.wait_for(".message.assistant .content", "你说：太长")
    assert page.count(".versions") == 0
    api.answers["半途"] = ["一半", {"error": {"message": "The model was unloaded.", "type": "server_error"}}]
    ask(page, "半途")
    assert page.text(".message.assistant .content") == "一半"
    assert "The model was unloaded." in page.text(".note.error")
    api.errors["坏"] = (502, "<html>Bad Gateway")
    ask(page, "坏")
    assert "Bad Gateway" in page.text(".note.error")


def test_a_key_is_asked_for_kept_and_sent(browser: Chromium, opened: Open, api: ChatServer) -> None:
    api.key = "sk-秘密".encode().hex()
    page = browser.open(api.url, language="zh-CN")
    page.wait_for("dialog .note", "The API key is missing or wrong.")
    assert page.run("document.getElementById('message').offsetHeight") > 20
    page.type(api.key)
    page.press("Enter")
    ready(page)
    ask(page, "你好")
    assert shown(page) == ["你好", "你说：你好"]
    page.reload()
    ready(page)
    api.key = "another"
    ask(page, "又一次")
    page.wait_for("dialog .note", "The API key is missing or wrong.")
    page.run("document.querySelector('dialog input').select()")
    page.type("another")
    page.press("Enter")
    page.wait_for(".message.assistant .content", "你说：又一次")
    assert page.problems == []
    page.close()


def test_it_chats_with_a_model_of_the_real_server(browser: Chromium, server: Running) -> None:
    page = browser.open(server.url + "/", language="zh-CN")
    ready(page)
    assert page.run("document.querySelector('.models').value") == "tiny"
    page.click(".open-settings")
    page.run("document.getElementById('max_tokens').focus()")
    page.type("24")
    page.press("Escape")
    ask(page, "你好")
    page.click(".open-settings")  # it is loaded now: its file says nothing, so as llama.cpp
    assert page.run("document.getElementById('temperature').placeholder") == "0.8"
    page.press("Escape")
    assert "24 个词元" in page.text(".stats")
    assert "词元/秒" in page.text(".stats")
    assert "上下文" in page.text(".stats")
    assert "%" in page.text(".stats")
    assert "已达到最多词元数" in page.text(".message.assistant .note")
    before = shown(page)
    page.reload()
    ready(page)
    assert shown(page) == before
    ask(page, "long " * 400)  # more than the context of 256 tokens
    assert "256" in page.text(".note.error")
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith(server.url)] == []
    page.close()
