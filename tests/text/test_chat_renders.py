"""Chat templates write every kind of conversation as transformers does: small ones, and those of a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ggpy.errors import GGPYError
from ggpy.text import chat_messages, template_filters
from ggpy.text.chat_template import ChatTemplate
from tests.support.chat_renders import CONVERSATIONS, NOW, RECORDED, SPECIAL_TOKENS, digest, key
from tests.support.reply_templates import FAMILIES
from tests.text.test_template_families import TEMPLATES

FOLDER = os.environ.get("GGPY_CHAT_TEMPLATES")
SOURCES = {
    **TEMPLATES,
    **{f"{i}-{family.name}": family.template.source for i, family in enumerate(FAMILIES)},
    **{
        path.stem: path.read_text(encoding="utf-8") for path in (sorted(Path(FOLDER).glob("*.jinja")) if FOLDER else ())
    },
}


class Clock:
    @staticmethod
    def now() -> object:
        return NOW


@pytest.mark.parametrize("name", SOURCES)
def test_renders_are_those_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    for module in (chat_messages, template_filters):
        monkeypatch.setattr(module, "datetime", Clock)
    template = ChatTemplate(SOURCES[name], SPECIAL_TOKENS)
    if key(template.source) not in recorded:
        assert name not in TEMPLATES
        pytest.skip("transformers was not asked")
    renders: list[str | None] = []
    for conversation in CONVERSATIONS:
        values = dict(conversation)
        try:
            renders.append(template.render(values.pop("messages"), **values))
        except GGPYError:
            renders.append(None)
    assert any(renders)
    assert digest(renders) == recorded[key(template.source)]
