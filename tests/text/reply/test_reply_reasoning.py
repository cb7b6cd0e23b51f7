"""One setting of thoughts, as each family's template reads it."""

from __future__ import annotations

from typing import Any

import pytest

from ggpy.errors import GGPYError
from ggpy.text.chat_template import ChatTemplate
from ggpy.text.reply import reply_format
from ggpy.text.reply.reasoning import reasoning_settings

THINK = "{% for m in messages %}<think>{{ m.thinking }}</think>{{ m.content }}{% endfor %}"
SWITCH = THINK + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
DEEPSEEK = "{% if not thinking is defined %}{% set thinking = enable_thinking %}{% endif %}" + THINK + "{{ thinking }}"
HARMONY = "<|channel|><|message|>{{ reasoning_effort }}"
SEED = THINK + "{% if thinking_budget == 0 %}x{% endif %}"
PLAIN = "{% for m in messages %}{{ m.content }} is thinking, enable_thinking{% endfor %}"
#: Words of a conversation or of the template's own are no values that it reads.
EFFORT = THINK + "{{ reasoning_effort }}{% set reasoning = 1 %}{{ reasoning }}"


@pytest.mark.parametrize(
    ("source", "asked", "values", "budget"),
    [
        (SWITCH, (True, None, None), {"enable_thinking": True}, None),
        (SWITCH, (False, None, None), {"enable_thinking": False}, None),
        (SWITCH, (None, "high", None), {"enable_thinking": True}, None),
        (SWITCH, (None, "medium", None), {}, None),
        (SWITCH, (None, "minimal", None), {"enable_thinking": False}, None),
        (SWITCH, (None, None, 50), {"enable_thinking": True}, 50),
        (SWITCH, (None, None, None), {}, None),
        (DEEPSEEK, (True, None, None), {"enable_thinking": True, "thinking": True}, None),
        (THINK, (False, None, None), {}, 0),  # nothing to tell: they are ended where they begin
        (THINK, (None, "none", None), {}, 0),
        (THINK, (True, None, 50), {}, 50),
        (HARMONY, (None, "minimal", None), {"reasoning_effort": "low"}, None),
        (HARMONY, (None, "high", None), {"reasoning_effort": "high"}, None),
        (HARMONY, (False, None, None), {"reasoning_effort": "low"}, 0),
        (EFFORT, (None, "max", None), {"reasoning_effort": "max"}, None),
        (EFFORT, (False, None, None), {"reasoning_effort": "none"}, 0),
        (SEED, (None, None, 50), {"thinking_budget": 50}, 50),
        (SEED, (False, None, None), {"thinking_budget": 0}, None),
        (PLAIN, (False, None, None), {}, None),
        (PLAIN, (None, None, 50), {}, None),
    ],
)
def test_what_a_template_reads_is_what_it_is_told(
    source: str, asked: tuple[Any, Any, Any], values: dict[str, Any], budget: int | None
) -> None:
    template = ChatTemplate(source)
    found = reasoning_settings(template, reply_format(template), *asked)
    assert (found.values, found.budget) == (values, budget)


def test_thoughts_that_a_model_cannot_have_are_refused() -> None:
    template = ChatTemplate(PLAIN)
    for asked in ((True, None, None), (None, "high", None)):
        with pytest.raises(GGPYError, match="cannot be told"):
            reasoning_settings(template, reply_format(template), *asked)
