"""An assistant's turn as its template writes it is parsed to that turn: thoughts, text and calls."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from ggpy.errors import GGPYError
from ggpy.text.chat_template import ChatTemplate
from ggpy.text.reply import reply_format
from tests.support.reply_templates import ARGUMENTS, FAMILIES, TOOLS, Family, parse

IDS = [f"{i}-{family.name}" for i, family in enumerate(FAMILIES)]


def message(content: str, reasoning: str, calls: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """An assistant's message as templates read it."""
    found: dict[str, Any] = {"role": "assistant", "content": content, "reasoning_content": reasoning}
    if calls:
        found["tool_calls"] = [
            {"id": f"abcdefgh{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ]
    return found


def read(calls: list[tuple[str, str]]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
def test_a_template_tells_its_format(family: Family) -> None:
    assert family.format.name == family.name


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_turns_come_back_as_they_were(family: Family, stream: bool) -> None:
    names = ["get_weather", "get_weather" if family.name == "lfm2" else "get-time"]
    hard = [a for a in ARGUMENTS if family.name not in ("gemma4",) or "\\" not in a["city"]]
    for n_calls in (0, 1, 2):
        for arguments in hard:
            calls = [(names[i], [arguments, hard[-2]][i]) for i in range(min(n_calls, family.n_calls))]
            content = "I will look.\n\nNow" if family.writes_content else ""
            prompt, text = family.turn_of(message(content, "Is it\n\nwarm?", calls))
            for deltas in ([text], list(text), [text[:7], text[7:20], text[20:]]):
                found = parse(family.format, deltas, prompt, stream=stream)
                assert read(found.calls) == calls
                assert found.content == content
                assert found.reasoning == ("Is it\n\nwarm?" if "warm" in text else "")


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
def test_calls_without_tools_are_text(family: Family) -> None:
    if not family.writes_content or family.name in ("harmony", "functionary-v3.2"):
        pytest.skip("its text has markers, too")
    prompt, text = family.turn_of(message("Hm.", "", [("get_weather", {"city": "Oslo"})]))
    found = parse(family.format, list(text), prompt, tools=None)
    assert not found.calls
    assert "Oslo" in found.content


def test_ids_have_the_models_form() -> None:
    by_name = {family.name: family for family in reversed(FAMILIES)}
    for name, form in (("kimi", "functions.get_weather:0"), ("mistral", None), ("hermes", None)):
        prompt, text = by_name[name].turn_of(message("", "", [("get_weather", {})]))
        parser = by_name[name].format.parser(prompt, TOOLS)
        (event,) = parser.feed(text) + parser.finish()
        if form is not None:
            assert event.id == form
        elif name == "mistral":
            assert re.fullmatch("[A-Za-z0-9]{9}", event.id)
        else:
            assert event.id.startswith("call_")


PUBLISHED = (
    sorted(Path(os.environ["GGPY_CHAT_TEMPLATES"]).glob("*.jinja")) if "GGPY_CHAT_TEMPLATES" in os.environ else []
)
#: Published templates that write no calls of a message: they take these as text, or know only the system's side.
WRITE_NONE = ("SmolLM3", "LFM2", "lfm2", "granite", "command_a", "falcon_h1")


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_templates_come_back(path: Path) -> None:
    """Needs a folder of templates, as they are in llama.cpp's models/templates."""
    template = ChatTemplate(path.read_text(encoding="utf-8"), {"bos_token": "<BOS>", "eos_token": "<EOS>"})
    form = reply_format(template)
    if not form.shows_tools or any(name in path.stem for name in WRITE_NONE):
        pytest.skip("it writes no calls")
    asked = {"role": "user", "content": "Will it rain?"}
    described: Any = json.loads(json.dumps(TOOLS))
    for schema in described[0]["function"], described[1]["function"]:
        schema["description"] = "weather"
        for inner in schema["parameters"]["properties"].values():
            inner.setdefault("description", "one")
            inner.setdefault("type", "string")
    said, rendered = "", False
    for attempt in range(16):
        calls = [
            ("get_weather", {"city": 'Paris, "FR"', "days": 3, "options": {"a": [1]}}),
            ("get-time", {"city": "東京"}),
        ]
        calls = calls[: 1 if attempt & 1 else 2]
        answer = message("" if attempt & 2 else "I will look.", "" if attempt & 8 else "Is it?", calls)
        if attempt & 4:
            for call in answer["tool_calls"]:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        values = {"tools": described, "enable_thinking": True}
        try:
            prompt = template.render([asked], **values)
            whole = template.render([asked, answer], add_generation_prompt=False, **values)
        except GGPYError as error:
            said = str(error)
            continue
        n = next(
            (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole))
        )
        n -= whole[:n].endswith("<")  # rather than within a marker
        found = parse(form, [whole[n:]], whole[:n], described)
        if read(found.calls) == calls:
            assert answer["content"] in found.content or answer["content"] not in whole
            return
        rendered = True
    if not rendered:
        pytest.skip(said)
    pytest.fail("no form of the message came back")
