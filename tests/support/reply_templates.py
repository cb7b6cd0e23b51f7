# ruff: noqa: E501 -- templates are one line each
"""Small chat templates of our own that write an assistant's turn as one family's published template does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ggpy.text.chat_template import ChatTemplate
from ggpy.text.reply import ContentDelta, Event, ReasoningDelta, ReplyFormat, ToolCallDelta, reply_format

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "units": {"enum": ["metric", "imperial"]},
                    "options": {"type": "object"},
                    "sure": {"type": ["boolean", "null"]},
                    "any": {},
                },
                "required": ["city"],
            },
        },
    }
    for name in ("get_weather", "get-time")
]

#: What calls are made with: texts that look like other things, markers, nesting, every kind of value.
ARGUMENTS: list[dict[str, Any]] = [
    {"city": 'Paris, "FR"\\', "days": 3, "options": {"a": [1, None, {"b": "x"}], "c": {}}, "sure": True},
    {"city": "東京\n12", "any": [0.5, -2], "units": "metric", "sure": None},
    {"city": "5"},
    {"city": "</tool_call> [x] {y} <think>"},
    {"city": ""},
]


@dataclass(frozen=True)
class Family:
    """name: the format's. turn: an assistant's message `m`. opens: what stands between a user's text and it. prompts:
    what else a prompt ends with. n_calls: the most calls of a turn."""

    name: str
    turn: str
    opens: str = "<|im_start|>assistant\n"
    closes: str = "<|im_end|>"
    prompts: str = ""
    thinks: str = ""
    n_calls: int = 9
    writes_content: bool = True

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate(
            "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{% if m.role == 'assistant' %}"
            f"{self.opens}{self.thinks}{self.turn}{self.closes}"
            "{% else %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
            f"{{% if add_generation_prompt %}}{self.opens}{self.prompts}{{% endif %}}"
        )

    @cached_property
    def format(self) -> ReplyFormat:
        return reply_format(self.template)

    def turn_of(self, message: dict[str, Any]) -> tuple[str, str]:
        """The prompt, and how the template writes a message that answers it."""
        user = {"role": "user", "content": "Will it rain?"}
        prompt = self.template.render([user], tools=TOOLS)
        whole = self.template.render([user, message], add_generation_prompt=False, tools=TOOLS)
        assert whole.startswith(prompt)
        return prompt, whole.removeprefix(prompt).removesuffix(self.closes)


_THINK = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
_CALL = '{{ {"name": f.name, "arguments": f.arguments} | tojson }}'


def _calls(each: str, before: str = "", after: str = "", between: str = "") -> str:
    return (
        f"{{% if m.tool_calls %}}{before}{{% for c in m.tool_calls %}}{{% set f = c.function %}}{each}"
        f"{{% if not loop.last %}}{between}{{% endif %}}{{% endfor %}}{after}{{% endif %}}"
    )


_EACH = "{% for k, v in f.arguments.items() %}"
_TEXT = "{{ v if v is string else v | tojson }}"
_QWEN = (
    f"<tool_call>\n<function={{{{ f.name }}}}>\n{_EACH}<parameter={{{{ k }}}}>\n{_TEXT}\n</parameter>\n"
    "{% endfor %}</function>\n</tool_call>"
)
_GLM = f"<tool_call>{{{{ f.name }}}}\n{_EACH}<arg_key>{{{{ k }}}}</arg_key>\n<arg_value>{_TEXT}</arg_value>\n{{% endfor %}}</tool_call>"
_DSML = (
    f'<｜DSML｜invoke name="{{{{ f.name }}}}">\n{_EACH}<｜DSML｜parameter name="{{{{ k }}}}" '
    f"string=\"{{{{ 'true' if v is string else 'false' }}}}\">{_TEXT}</｜DSML｜parameter>\n{{% endfor %}}</｜DSML｜invoke>\n"
)
_GEMMA_MACRO = (
    '{% macro g(v) %}{% if v is string %}<|"|>{{ v }}<|"|>{% elif v is mapping %}{ {%- for k, w in v.items() %}'
    "{{ k }}:{{ g(w) }}{{ ',' if not loop.last }}{% endfor -%} }{% elif v is iterable %}[{% for w in v %}{{ g(w) }}"
    "{{ ',' if not loop.last }}{% endfor %}]{% else %}{{ v }}{% endif %}{% endmacro %}"
)
_PYTHON = (
    "{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}={{ v | tojson }}{{ ', ' if not loop.last }}{% endfor %})"
)
_HARMONY = (
    "{% if m.reasoning_content %}<|channel|>analysis<|message|>{{ m.reasoning_content }}<|end|><|start|>assistant{% endif %}"
    "{% if m.content %}<|channel|>{{ 'commentary' if m.tool_calls else 'final' }}<|message|>{{ m.content }}"
    "{% if m.tool_calls %}<|end|><|start|>assistant{% endif %}{% endif %}"
)

FAMILIES = [
    Family("hermes", _THINK + "{{ m.content }}" + _calls(f"\n<tool_call>\n{_CALL}\n</tool_call>")),
    Family("qwen-xml", "{{ m.reasoning_content }}\n</think>\n\n{{ m.content }}" + _calls("\n\n" + _QWEN),
           prompts="<think>\n", thinks="<think>\n"),
    Family("seed", "<seed:think>{{ m.reasoning_content }}</seed:think>\n{{ m.content }}"
           + _calls("\n" + _QWEN.replace("tool_call>", "seed:tool_call>").replace(">\n{{ v", ">{{ v")
                    .replace("endfor %}\n</p", "endfor %}</p").replace("tojson }}\n", "tojson }}"))),
    Family("glm", "\n" + _THINK + "{{ m.content }}" + _calls("\n" + _GLM), opens="<|assistant|>", closes=""),
    Family("minimax", _THINK + "{{ m.content }}" + _calls(
        f'<invoke name="{{{{ f.name }}}}">\n{_EACH}<parameter name="{{{{ k }}}}">{_TEXT}</parameter>\n{{% endfor %}}</invoke>\n',
        "\n<minimax:tool_call>\n", "</minimax:tool_call>")),
    Family("deepseek-v3.2", _THINK + "{{ m.content }}" + _calls(
        _DSML, "\n\n<｜DSML｜function_calls>\n", "</｜DSML｜function_calls>"), opens="<｜Assistant｜>"),
    Family("deepseek-v4", _THINK + "{{ m.content }}" + _calls(
        _DSML, "\n\n<｜DSML｜tool_calls>\n", "</｜DSML｜tool_calls>"), opens="<｜Assistant｜>"),
    Family("deepseek", _THINK + "{{ m.content }}" + _calls(
        "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments | tojson }}<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"), opens="<｜Assistant｜>", closes="<｜end▁of▁sentence｜>"),
    Family("deepseek", _THINK + "{{ m.content }}" + _calls(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ f.name }}\n```json\n{{ f.arguments | tojson }}\n```<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "\n"), opens="<｜Assistant｜>"),
    Family("kimi", _THINK + "{{ m.content }}" + _calls(
        "<|tool_call_begin|>functions.{{ f.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>{{ f.arguments | tojson }}"
        "<|tool_call_end|>", "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")),
    Family("mistral", "{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}{{ m.content }}" + _calls(
        "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}"), opens="[/INST]", closes="</s>"),
    Family("mistral", "{{ m.content }}" + _calls(
        "[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]{{ f.arguments | tojson }}"), opens="[/INST]", closes="</s>"),
    Family("mistral", "{{ m.content }}" + _calls(
        '{{ {"name": f.name, "arguments": f.arguments, "id": c.id} | tojson }}', "[TOOL_CALLS][", "]", ", "),
        opens="[/INST]", closes="</s>"),
    Family("harmony", _HARMONY + _calls(
        " to=functions.{{ f.name }}<|channel|>commentary json<|message|>{{ f.arguments | tojson }}"),
        opens="<|start|>assistant", closes="<|call|>", n_calls=1),
    Family("gemma4", _GEMMA_MACRO.replace("{", "{", 1) + "{% if m.reasoning_content %}<|channel>thought\n{{ m.reasoning_content }}"
           "<channel|>{% endif %}" + _calls("<|tool_call>call:{{ f.name }}{{ g(f.arguments) }}<tool_call|>")
           + "{{ m.content }}", opens="<|turn>model\n", closes="<turn|>"),
    Family("granite", "{{ m.content }}" + _calls(_CALL, "<|tool_call|>[", "]", ", "), closes="<|end_of_text|>"),
    Family("phi4", "{{ m.content }}" + _calls(f"<|tool_call|>{_CALL}<|/tool_call|>"), closes="<|end|>"),
    Family("nemotron", "{{ m.content }}" + _calls(_CALL, "\n<TOOLCALL>[", "]</TOOLCALL>", ", ")),
    Family("tool-calls", "{% if m.reasoning_content %}Here are my reasoning steps:\n{{ m.reasoning_content }}\n"
           "[BEGIN FINAL RESPONSE]\n{% endif %}{{ m.content }}" + _calls(_CALL, "\n<tool_calls>[", "]</tool_calls>", ", ")),
    Family("apertus", "{{ m.content }}" + _calls(
        "{{ {f.name: f.arguments} | tojson }}", "<|tools_prefix|>[", "]<|tools_suffix|>", ", ")),
    Family("command-r7b", "<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|>" + _calls(
        '{{ {"tool_call_id": "0", "tool_name": f.name, "parameters": f.arguments} | tojson }}',
        "<|START_ACTION|>[\n    ", "\n]<|END_ACTION|>", ",\n    "), writes_content=False),
    Family("command-r", _calls(
        '{{ {"tool_name": f.name, "parameters": f.arguments} | tojson }}', "Action:\n```json\n[\n    ", "\n]\n```", ",\n    "),
        writes_content=False),
    Family("lfm2", _THINK + "{{ m.content }}" + _calls(
        _PYTHON.replace("f.name", "f.name | replace('-', '_')"), "<|tool_call_start|>[", "]<|tool_call_end|>", ", ")),
    Family("gigachat", "{{ m.content }}" + _calls(f"<|function_call|>{_CALL}"), closes="<|message_sep|>", n_calls=1),
    Family("internlm", "{{ m.content }}" + _calls(
        '<|action_start|><|plugin|>\n{{ {"name": f.name, "parameters": f.arguments} | tojson }}<|action_end|>')),
    Family("functionary-v3.1", "{{ m.content }}" + _calls("<function={{ f.name }}>{{ f.arguments | tojson }}</function>")),
    Family("functionary-v3.2", "{#recipient#}{% if m.content %}all\n{{ m.content }}{% endif %}" + _calls(
        "{% if m.content or not loop.first %}>>>{% endif %}{{ f.name }}\n{{ f.arguments | tojson }}"),
        prompts=">>>", thinks=">>>"),
    Family("firefunction", "{{ m.content }}" + _calls(_CALL, " functools[", "]", ", ")),
    Family("llama3", "{#<|python_tag|>#}" + _calls('{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'),
           n_calls=1, writes_content=False),
    Family("llama4", "{% if m.tool_calls %}<|python_start|>{{ m.content }}<|python_end|>{% else %}{{ m.content }}{% endif %}"
           + _calls('{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'),
           opens="<|header_start|>assistant<|header_end|>\n\n", closes="<|eot|>"),
    Family("common", _THINK + "{{ m.content }}" + _calls(f"\n<tool_{{{{ 'call' }}}}>{_CALL}</tool_{{{{ 'call' }}}}>")),
]  # fmt: skip

BY_NAME = {family.name: family for family in reversed(FAMILIES)}


@dataclass
class Parts:
    """The events of a reply, put together."""

    reasoning: str
    content: str
    calls: list[tuple[str, str]]


def parts_of(events: list[Event]) -> Parts:
    """The parts; asserts that a call's name comes first and once, and its id in each delta."""
    found = Parts("", "", [])
    ids: list[str] = []
    for event in events:
        match event:
            case ReasoningDelta(text):
                found.reasoning += text
            case ContentDelta(text):
                found.content += text
            case ToolCallDelta(index, id, name, arguments):
                if name is not None:
                    assert index == len(found.calls)
                    found.calls.append((name, ""))
                    ids.append(id)
                assert id == ids[index]
                found.calls[index] = (found.calls[index][0], found.calls[index][1] + arguments)
        assert not isinstance(event, ReasoningDelta | ContentDelta) or event.text
    assert len(set(ids)) == len(ids)
    return found


def parse(form: ReplyFormat, deltas: list[str], prompt: str = "", tools: Any = TOOLS, stream: bool = False) -> Parts:
    """The parts of a reply that comes in deltas."""
    parser = form.parser(prompt, tools, stream)
    events = [event for delta in deltas for event in parser.feed(delta)] + parser.finish()
    found = parts_of(events)
    assert parser.n_tool_calls == len(found.calls)
    return found
