"""Replies as models write them though their templates do not show it, and the parts that they have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ggpy.text.chat_template import CHATML, ChatTemplate
from ggpy.text.reply import reply_format
from tests.support.reply_templates import BY_NAME, parse


def reads(name: str, text: str, prompt: str = "", **options: Any) -> tuple[str, str, list[tuple[str, Any]]]:
    """Thoughts, content and calls, with their arguments as values where they are JSON."""
    found = parse(BY_NAME[name].format, [text], prompt, **options)
    assert found == parse(BY_NAME[name].format, list(text), prompt, **options)
    calls = []
    for called, arguments in found.calls:
        try:
            calls.append((called, json.loads(arguments)))
        except ValueError:
            calls.append((called, arguments))
    return found.reasoning, found.content, calls


CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
OSLO = ("get_weather", {"city": "Oslo"})


def test_thoughts_begin_in_the_prompt_or_in_the_reply() -> None:
    assert reads("hermes", "Hm.\n</think>\n\nYes.", "…<think>\n") == ("Hm.", "Yes.", [])
    assert reads("hermes", "<think>\nHm.\n</think>\n\nYes.", "…<think>\n") == ("Hm.", "Yes.", [])
    assert reads("hermes", "<think>Hm.</think>Yes.") == ("Hm.", "Yes.", [])
    assert reads("hermes", "<think>\n\n</think>\n\nYes.") == ("", "Yes.", [])
    assert reads("hermes", "\n</think>\nYes.") == ("", "Yes.", [])  # told not to think
    assert reads("hermes", "<think>Hm.") == ("Hm.", "", [])
    assert reads("hermes", "Yes.", "…<think>\n\n</think>\n\n") == ("", "Yes.", [])
    # A user's word for it opens no thoughts, nor does one within a text.
    assert reads("hermes", "It is a tag.", "What is <think>?<|im_end|>\n<|im_start|>assistant\n") == (
        "",
        "It is a tag.",
        [],
    )
    assert reads("hermes", "The tag <think> is …") == ("", "The tag <think> is …", [])


def test_a_prompt_may_end_within_thoughts() -> None:
    assert reads("hermes", " so yes</think>Yes.", "…<think>It rains,") == ("so yes", "Yes.", [])


def test_deepseek_r1_leaves_out_where_thoughts_begin() -> None:
    source = "{% for m in messages %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}{% endfor %}<｜Assistant｜>"
    form = reply_format(ChatTemplate(source))
    for text in ("Hm.\n</think>\n\nYes.", "<think>\nHm.\n</think>\n\nYes."):
        found = parse(form, list(text), "<｜Assistant｜>")
        assert (found.reasoning, found.content) == ("Hm.", "Yes.")
    assert parse(form, ["Yes."], "<｜Assistant｜></think>\n").content == "Yes."


def test_without_a_template_thoughts_are_found_all_the_same() -> None:
    for template in (None, ChatTemplate(CHATML)):
        found = parse(reply_format(template), ["<think>Hm.</think>Yes."])
        assert (found.reasoning, found.content) == ("Hm.", "Yes.")


def test_calls_within_thoughts_are_thoughts_unless_the_reply_ends_with_them() -> None:
    assert reads("hermes", f"<think>I could {CALL} but</think>No.") == (f"I could {CALL} but", "No.", [])
    assert reads("hermes", f"<think>I will.\n{CALL}\n") == ("I will.", "", [OSLO])
    assert reads("hermes", f"<think>I will {CALL} {CALL}") == ("I will", "", [OSLO, OSLO])
    assert reads("hermes", f"<think>I will {CALL[:-20]}") == (f"I will {CALL[:-20]}", "", [])
    assert reads("hermes", f"<think>Yes</think>{CALL}") == ("Yes", "", [OSLO])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>\noops\n</tool_call>",
        '<tool_call>{"name": "get_weather"',
        '<tool_call>{"name": "get_weather", "arguments": {"city": Oslo}}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"city": "Oslo"}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": {"a": ' + "[" * 5000,
        '<tool_call>{"name": "get_weather", "arguments": {"a": ' + "9" * 5000 + "}}",
        "Use <tool_call> and </tool_call> so.",
    ],
)
def test_what_does_not_parse_is_content(text: str) -> None:
    assert reads("hermes", text) == ("", text, [])
    assert reads("hermes", f"Hm.\n\n{text}") == ("", f"Hm.\n\n{text}", [])


def test_calls_after_one_that_does_not_parse_are_calls() -> None:
    assert reads("hermes", f"<tool_call>oops {CALL}") == ("", "<tool_call>oops", [OSLO])
    broken = '<tool_call>{"name": "get_weather", "arguments": {"city": '
    assert reads("hermes", broken + CALL) == ("", broken.rstrip(), [OSLO])


def test_calls_that_are_json_but_nearly() -> None:
    bare = '<tool_call>{"name": "get_weather", "arguments": '
    assert reads("hermes", bare + '{"city": "a\nb\\d"}}')[2] == [("get_weather", {"city": "a\nb\\d"})]
    assert reads("hermes", bare + '"{\\"city\\": \\"Oslo\\"}"}</tool_call>')[2] == [OSLO]
    assert reads("hermes", '<tool_call>{"name": "get_weather"}</tool_call>')[2] == [("get_weather", {})]
    assert reads("hermes", '<tool_call>{"arguments": {"city": "Oslo"}, "name": "get_weather"}</tool_call>')[2] == [OSLO]
    assert reads("hermes", CALL + " And so on. " + CALL) == ("", "And so on.", [OSLO, OSLO])


def test_a_streamed_call_that_breaks_off_stays_one_and_is_not_mended() -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "Os'
    assert reads("hermes", text, stream=True) == ("", "", [("get_weather", '{"city": "Os')])
    assert reads("hermes", text) == ("", text, [])


def test_values_become_what_the_schema_says() -> None:
    def value(key: str, text: str) -> Any:
        called = f"<tool_call><function=get_weather><parameter={key}>\n{text}\n</parameter></function></tool_call>"
        ((_, arguments),) = reads("qwen-xml", called)[2]
        return arguments[key]

    assert value("city", "5") == "5"
    assert value("city", "\n a \n") == "\n a \n"
    assert value("days", "5") == 5
    assert value("days", "five") == "five"
    assert value("sure", "True") is True
    assert value("sure", "null") is None
    assert value("units", "12") == "12"
    assert value("options", "{'a': [1, None]}") == {"a": [1, None]}
    assert value("options", "{oops") == "{oops"
    assert value("any", "[1]") == [1]
    assert value("any", "word") == "word"
    assert value("unheard-of", "7") == 7


def test_xml_calls_that_leave_out_what_is_around_them() -> None:
    call = "<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>"
    assert reads("qwen-xml", call)[2] == [OSLO]
    assert reads("qwen-xml", f"<tool_call>\n{call}")[2] == [OSLO]
    assert reads("qwen-xml", call.replace("get_weather", "main")) == ("", call.replace("get_weather", "main"), [])
    assert reads("qwen-xml", CALL)[2] == [OSLO]


def test_llama_calls_are_bare_json_that_names_a_tool() -> None:
    call = '{"name": "get_weather", "parameters": {"city": "Oslo"}}'
    assert reads("llama3", call)[2] == [OSLO]
    assert reads("llama3", f"{call}; {call}")[2] == [OSLO, OSLO]
    assert reads("llama3", f"<|python_tag|>{call}")[2] == [OSLO]
    assert reads("llama3", '<|python_tag|>brave_search.call(query="x y")')[2] == [("brave_search", {"query": "x y"})]
    for text in (call.replace("get_weather", "other"), f"So: {call}", '{"answer": 5}', "<|python_tag|>import os"):
        assert reads("llama3", text) == ("", text, [])


def test_python_calls() -> None:
    text = "<|tool_call_start|>[get_weather(city='Oslo', options={'a': [1, -2.5, True, null]})]<|tool_call_end|>Done"
    call = ("get_weather", {"city": "Oslo", "options": {"a": [1, -2.5, True, None]}})
    assert reads("lfm2", text) == ("", "Done", [call])
    assert reads("lfm2", '[get_weather(city="Oslo")]')[2] == [OSLO]
    for text in (
        "[a](b)",
        "[get_weather",
        "[1, 2]",
        "<|tool_call_start|>[f(x)]",
        "<|tool_call_start|>[f(a=open('x'))]",
    ):
        assert reads("lfm2", text) == ("", text, [])


def test_harmony_by_channel_and_recipient() -> None:
    then = "<|end|><|start|>assistant"
    text = f"<|channel|>analysis<|message|>Hm.{then}<|channel|>final<|message|>Yes."
    assert reads("harmony", text) == ("Hm.", "Yes.", [])
    for call in (
        ' to=functions.get_weather<|channel|>analysis <|constrain|>json<|message|>{"city": "Oslo"}',
        '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>',
        '<|channel|>commentary to=get_weather<|message|>{"city": "Oslo"}',
        "<|channel|>commentary to=assistant"
        f'<|channel|>commentary to=functions.get_weather<|message|>{{"city": "Oslo"}}{then}',
    ):
        assert reads("harmony", call)[2] == [OSLO]
    text = f"<|channel|>commentary<|message|>First.{then}<|channel|>commentary to=functions.get_weather<|message|>{{}}"
    assert reads("harmony", text) == ("", "First.", [("get_weather", {})])
    assert reads("harmony", "No channel at all.") == ("", "No channel at all.", [])
    broken = "<|channel|>commentary to=functions.get_weather<|message|>{oops"
    assert reads("harmony", broken) == ("", broken, [])
    assert reads("harmony", "<|channel|>analysis to=python<|message|>print(1)") == ("print(1)", "", [])


def test_functionary_recipients_need_no_tools() -> None:
    assert reads("functionary-v3.2", "all\nYes.", "…>>>", tools=None) == ("", "Yes.", [])
    text = 'all\nFirst.>>>get_weather\n{"city": "Oslo"}'
    assert reads("functionary-v3.2", text, "…>>>") == ("", "First.", [OSLO])
    assert reads("functionary-v3.2", "oops", "…>>>") == ("", "oops", [])


def test_white_space_beside_markers_is_the_formats_and_other_is_kept() -> None:
    assert reads("hermes", f"  Hm. \n\n{CALL}\n\n Then \n") == ("", "  Hm.Then \n", [OSLO])
    assert reads("hermes", " \n ") == ("", " \n ", [])
