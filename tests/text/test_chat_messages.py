"""The processing of messages before a template sees them, as transformers 5.24 does it.

The expected texts are what its `apply_chat_template(…, tokenize=False)` gave for the same template, messages and values
(with add_generation_prompt=True where nothing is continued).
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import numpy as np
import pytest

from ggpy.errors import GGPYError
from ggpy.text.chat_template import ChatTemplate

ALL = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
THINK = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
HARMONY = (
    "{% for m in messages %}<{{ m.role }}>{% if 'thinking' in m %}[{{ m.thinking }}]{% endif %}{{ m.content }}"
    "{% endfor %}"
)
TRIM = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}"
SPACED = "{% for m in messages %}{{ m.content }}{% endfor %}"
BLOCKS = "{% for m in messages %}{% for b in m.content %}{{ b.text }}|{% endfor %}{% endfor %}"
OTHERS = "{{ tools | tojson }} {{ documents | tojson }}"


class Role(str, enum.Enum):
    USER = "user"


@dataclasses.dataclass
class Turn:
    role: str
    content: str | None = None
    name: str | None = None


class Pydantic:
    def model_dump(self) -> dict[str, Any]:
        return {"role": "user", "content": None, "tool_calls": ()}


USER = {"role": "user", "content": "Hi"}
YES = {"role": "assistant", "content": "Yes"}
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
SEEN = '{"role": "user", "content": "Hi"}'


@pytest.mark.parametrize(
    ("template", "messages", "values", "expected"),
    [
        # Reasoning goes by every name.
        (
            ALL,
            [USER, {**YES, "reasoning": "r"}],
            {},
            SEEN
            + '{"thinking": "r", "role": "assistant", "content": "Yes", "reasoning": "r", "reasoning_content": "r"}',
        ),
        (
            ALL,
            [USER, {**YES, "thinking": "t"}],
            {},
            SEEN + '{"thinking": "t", "role": "assistant", "content": "Yes", "reasoning_content": "t"}',
        ),
        (
            ALL,
            [USER, {**YES, "reasoning_content": "c"}],
            {},
            SEEN + '{"thinking": "c", "role": "assistant", "content": "Yes", "reasoning_content": "c"}',
        ),
        (
            ALL,
            [{**YES, "reasoning": "r", "thinking": "t"}],
            {},
            '{"thinking": "t", "role": "assistant", "content": "Yes", "reasoning": "r", "reasoning_content": "t"}',
        ),
        (
            ALL,
            [{**YES, "reasoning": "r", "reasoning_content": "c", "thinking": "t"}],
            {},
            '{"thinking": "t", "role": "assistant", "content": "Yes", "reasoning": "r", "reasoning_content": "c"}',
        ),
        (
            ALL,
            [{**YES, "reasoning": "", "thinking": "t"}],
            {},
            '{"thinking": "t", "role": "assistant", "content": "Yes", "reasoning": "", "reasoning_content": "t"}',
        ),
        (
            ALL,
            [{**YES, "reasoning_content": "", "reasoning": "r"}],
            {},
            '{"thinking": "", "role": "assistant", "content": "Yes", "reasoning_content": "", "reasoning": "r"}',
        ),
        (
            ALL,
            [{"role": "assistant", "reasoning": "r", "tool_calls": [CALL]}],
            {},
            '{"thinking": "r", "role": "assistant", "reasoning": "r", "tool_calls": [{"type": "function", "function": '
            '{"name": "f", "arguments": "{\\"x\\": 1}"}}], "reasoning_content": "r"}',
        ),
        (THINK, [USER, {**YES, "reasoning": "r"}], {}, "<user>Hi<end><assistant><think>r</think>Yes<end><assistant>"),
        (HARMONY, [USER, {**YES, "reasoning": "r"}], {}, "<user>Hi<assistant>[r]Yes"),
        # A key without a value is left out, in the message itself only.
        (
            ALL,
            [{"role": "assistant", "content": None, "tool_calls": None, "name": "n"}],
            {},
            '{"role": "assistant", "name": "n"}',
        ),
        (
            ALL,
            [{"role": "assistant", "content": [{"type": "text", "text": None}], "reasoning": ["a"]}],
            {},
            '{"thinking": ["a"], "role": "assistant", "content": [{"type": "text", "text": null}], "reasoning": ["a"], '
            '"reasoning_content": ["a"]}',
        ),
        ("{{ messages[0].content is defined }}", [{"role": "assistant", "content": None}], {}, "False"),
        # Objects come as plain data.
        (ALL, [Turn("user", "Hi"), Turn("assistant")], {}, SEEN + '{"role": "assistant"}'),
        (
            ALL,
            [Pydantic(), {"role": Role.USER, "content": Turn("a")}],
            {},
            '{"role": "user", "tool_calls": []}'
            '{"role": "user", "content": {"role": "a", "content": null, "name": null}}',
        ),
        (
            ALL,
            [{"role": "user", "content": ({"image": object()}, {"n": np.float32(0.5), "b": np.bool_(False)})}],
            {},
            '{"role": "user", "content": [{"image": "<object>"}, {"n": 0.5, "b": false}]}',
        ),
        (
            "{{ messages[0].content }} {{ x }} {{ y }}",
            [{"role": "user", "content": (1, 2)}],
            {"x": ("a",), "y": Role.USER},
            "(1, 2) ('a',) user",
        ),
        (OTHERS, [USER], {"tools": [], "documents": []}, "[] []"),
        (
            OTHERS,
            [USER],
            {"tools": [{"name": "f", "d": None}], "documents": [{"title": "a"}]},
            '[{"name": "f", "d": null}] [{"title": "a"}]',
        ),
        # The last message is left open.
        (
            THINK,
            [USER, {**YES, "reasoning": "r"}],
            {"continue_final_message": True},
            "<user>Hi<end><assistant><think>r</think>Yes",
        ),
        (
            THINK,
            [USER, {**YES, "reasoning": "so "}],
            {"continue_final_message": "reasoning"},
            "<user>Hi<end><assistant><think>so ",
        ),
        (
            THINK,
            [USER, {**YES, "reasoning": "so ", "thinking": "t"}],
            {"continue_final_message": "thinking"},
            "<user>Hi<end><assistant><think>t",
        ),
        (
            HARMONY,
            [USER, {**YES, "reasoning_content": "r"}],
            {"continue_final_message": "reasoning_content"},
            "<user>Hi<assistant>[r",
        ),
        (
            TRIM,
            [USER, {**YES, "content": " So far "}],
            {"continue_final_message": True},
            "<user>Hi<end><assistant>So far",
        ),
        (SPACED, [USER, {**YES, "content": "So far "}], {"continue_final_message": True}, "HiSo far "),
        (
            BLOCKS,
            [{**YES, "content": [{"text": "a"}, {"text": "b "}, {"image": 1}]}],
            {"continue_final_message": True},
            "a|b ",
        ),
    ],
)
def test_templates_see_what_transformers_shows_them(
    template: str, messages: list[Any], values: dict[str, Any], expected: str
) -> None:
    before = repr(messages)
    assert ChatTemplate(template).render(messages, **values) == expected
    assert repr(messages) == before


@pytest.mark.parametrize(
    ("template", "messages", "values", "said"),
    [
        (ALL, [], {}, "The conversation is empty"),
        (ALL, ["Hi"], {}, "list of messages"),
        (ALL, "Hi", {}, "list of messages"),
        (ALL, [USER], {"tools": ["f"]}, "tools must be a list of dicts"),
        (ALL, [USER], {"tools": [len]}, "tools must be a list of dicts"),
        (ALL, [USER], {"documents": ["f"]}, "documents must be a list of dicts"),
        (ALL, [USER], {"sanitize_control_tokens": True}, "sanitize_control_tokens is an option of transformers"),
        (
            THINK,
            [{"role": "assistant", "content": None}],
            {"continue_final_message": True},
            "no 'content' that could be",
        ),
        (
            THINK,
            [{"role": "assistant", "content": [{"image": 1}]}],
            {"continue_final_message": True},
            "no text that could",
        ),
        (THINK, [{"role": "assistant", "content": 5}], {"continue_final_message": True}, "no text that could be"),
        (
            THINK,
            [USER],
            {"continue_final_message": True, "add_generation_prompt": True},
            "add_generation_prompt after it",
        ),
        ("{{ 'content' }}", [USER], {"continue_final_message": True}, "changes or drops it"),
        ("{{ 'x' }}", [USER], {"continue_final_message": True}, "does not write 'content'"),
    ],
)
def test_what_transformers_refuses(template: str, messages: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(GGPYError, match=said):
        ChatTemplate(template).render(messages, **values)


def test_messages_without_end() -> None:
    message: dict[str, Any] = {"role": "user"}
    message["content"] = message
    with pytest.raises(GGPYError, match="nest too deeply"):
        ChatTemplate(ALL).render([message])
