"""Laws that hold of any text: where it is cut changes nothing, nothing is lost, nothing raises, and time is linear."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hangs import ends
from tests.support.reply_templates import BY_NAME, FAMILIES, TOOLS, Family, parse

ANYWHERE = [
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\",
    ",",
    ":",
    "\n",
    " ",
    "<",
    ">",
    "(",
    "=",
    "'",
    "a",
    "1",
    "é",
    "functions.",
    "\\u00",
]
PIECES = [
    "get_weather", "get-time", '"name"', '"arguments"', '"parameters": ', '{"city": "x"}', "city", "true", "null", "</",
    '{"name": "get_weather", "arguments": {"city": "O"}}', "function", "call:", "to=functions.get_weather", "```json\n",
]  # fmt: skip


def texts(family: Family) -> st.SearchStrategy[str]:
    """Texts of a format's markers, whole and cut short, of JSON and of anything."""
    form = family.format.form
    markers = sorted(family.format.kept_tokens) + [t.begin for t in form.thoughts] + [t.end for t in form.thoughts]
    for syntax in (*form.calls, *form.always):
        markers += [*syntax.begins, *syntax.begins_at_edge, *syntax.controls]
    turns = [
        family.turn_of({"role": "assistant", "content": "Hm. ", "reasoning_content": "Is it?", "tool_calls": calls})[1]
        for calls in (
            [],
            [{"id": "abcdefghi", "function": {"name": "get_weather", "arguments": {"city": "O", "days": 1}}}],
        )
    ]
    short = [marker[:-1] for marker in markers]
    parts = st.sampled_from([*markers, *short, *PIECES, *ANYWHERE, *turns, *(turn[:-3] for turn in turns)])
    return st.lists(st.one_of(parts, parts, st.text(max_size=3)), max_size=12).map("".join)


@st.composite
def cut(draw: st.DrawFn, family: Family) -> tuple[str, list[str]]:
    text = draw(texts(family))
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return text, [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize(("name", "text"), [("common", "\n{"), ("harmony", "\nto=functions")])
def test_the_blank_before_what_is_no_call_stays(name: str, text: str) -> None:
    assert parse(BY_NAME[name].format, [text], "").content == text


@pytest.mark.parametrize("family", FAMILIES, ids=[f"{i}-{family.name}" for i, family in enumerate(FAMILIES)])
def test_cuts_change_nothing_and_nothing_is_lost(family: Family) -> None:
    prompts = ["", family.template.render([{"role": "user", "content": "<think>"}])]

    @settings(max_examples=60, deadline=None, database=None)
    @given(cut(family), st.sampled_from(prompts), st.booleans())
    def check(drawn: tuple[str, list[str]], prompt: str, stream: bool) -> None:
        text, deltas = drawn
        whole = parse(family.format, [text], prompt, stream=stream)
        assert whole == parse(family.format, deltas, prompt, stream=stream)
        assert whole == parse(family.format, list(text), prompt, stream=stream)
        if not stream:
            for _, arguments in whole.calls:
                assert isinstance(json.loads(arguments), dict)
        for part in (whole.reasoning, whole.content):  # no letter comes twice, or in another order
            letters = iter(text)
            assert all(letter in letters for letter in part)
        if not whole.calls and not prompt:
            markers = set(family.format.form.silent)
            for thoughts in family.format.form.thoughts:
                markers |= {thoughts.begin, thoughts.end}
            if family.name == "harmony":
                markers = set(family.format.kept_tokens)
            if family.name == "functionary-v3.2":
                markers |= {">>>all"}
            if not any(marker in text for marker in markers):
                assert not whole.reasoning
                assert whole.content == text

    check()


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(), st.sampled_from(sorted(BY_NAME)))
def test_text_of_no_format_is_content(text: str, name: str) -> None:
    found = parse(BY_NAME[name].format, [text], tools=None)
    assert (found.reasoning, found.content, found.calls) == ("", text, [])


#: Texts that are read again and again by a parser that goes back, or held by one that waits.
HOSTILE = {
    "hermes": ["<tool_call>", "<tool_cal", '<tool_call>{"name": "get_weather", "arguments": {"city": "', " ", '{"a":['],
    "qwen-xml": ["<tool_call><function=get_weather><parameter=city>", "</parameter>", "<function="],
    "deepseek": ["<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{", "```"],
    "gemma4": ['<|tool_call>call:f{a:<|"|>', "<|tool_call>call:f{a:[", "<|channel>thought"],
    "harmony": ["<|channel|>", "<|start|>assistant<|channel|>analysis<|message|>", "<|start|>"],
    "lfm2": ["<|tool_call_start|>[f(a=[", "[get_weather(", "<|tool_call_start|>[f(a='"],
    "llama3": ['{"name": ', "<|python_tag|>f.call(", "\\"],
    "functionary-v3.2": [">>>", ">>>all\n", ">>>get_weather\n{"],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear(name: str) -> None:
    with ends():
        for piece in HOSTILE[name]:
            for before in ("", "<think>"):
                text = before + piece * (40_000 // len(piece))
                parse(BY_NAME[name].format, [text])
                parse(BY_NAME[name].format, [text[i : i + 64] for i in range(0, len(text), 64)], stream=True)


def test_a_call_comes_out_while_it_is_written() -> None:
    parser = BY_NAME["qwen-xml"].format.parser("", TOOLS, stream=True)
    said = "<tool_call>\n<function=get_weather>\n<parameter=city>\nOs"
    assert [event.arguments for event in parser.feed(said)][-1].endswith('"Os')
    assert [event.arguments for event in parser.feed("lo")] == ["lo"]
