"""The means of newer families' templates, rendered as transformers' own Jinja environment does.

Each template here is small and of our own, with the means of one family's published template: Gemma 3 and 4, gpt-oss
(harmony), Qwen3.5, LFM2. The published ones were compared in the same way, with the same conversations.
"""

from __future__ import annotations

import copy
import json
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ggpy.errors import GGPYError
from ggpy.text.chat_messages import plain_messages
from ggpy.text.chat_template import ChatTemplate

TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}

ALTERNATING = """{{ bos_token }}
{%- set first = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' -%}
{%- for message in (messages[1:] if first else messages) -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("turns must alternate") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<turn>' + role + '\\n' + (first if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {{ '<image>' if item['type'] == 'image' else item['text'] | trim }}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("neither text nor a list") }}
    {%- endif -%}
    {{ '<turn|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>model\\n' }}{%- endif -%}
"""

DECLARATIONS = """{%- macro value_of(value, keys=True) -%}
    {%- if value is string -%}{{ '"' ~ value ~ '"' }}
    {%- elif value is boolean -%}{{ 'true' if value else 'false' }}
    {%- elif value is mapping -%}
        {%- set ns = namespace(found=false) -%}
        {%- for key, inner in value | dictsort -%}
            {%- if ns.found %},{% endif -%}{%- set ns.found = true -%}
            {{- key if not keys else value_of(key) }}:{{ value_of(inner, keys=keys) -}}
        {%- endfor -%}
    {%- elif value is sequence -%}
        [{%- for inner in value -%}{{ value_of(inner) }}{{ ',' if not loop.last }}{%- endfor -%}]
    {%- else -%}{{ value }}{%- endif -%}
{%- endmacro -%}
{%- for tool in tools or [] %}
<tool>{{ tool.function.name }}{{ '{' ~ value_of(tool['function']['parameters'], false) | trim ~ '}' }}
{{- tool.function.parameters.required | default([]) | map('upper') | list | join('|') }}
{% endfor -%}
{%- for message in messages -%}
    {%- set parts = message.content.split('<t>') if message.content is string else [] -%}
    {%- for part in parts -%}{{ part.split('</t>')[-1] }}{%- endfor -%}
{%- endfor -%}
"""

HARMONY = """{%- macro type_of(spec, required=[]) -%}
    {%- if spec.type == 'array' -%}
        {{- type_of(spec['items'], required) + '[]' if spec['items'] else 'any[]' }}
        {%- if spec.nullable %}{{- ' | null' }}{%- endif -%}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string and spec.type[0] is defined -%}
        {{- spec.type | join(' | ') }}
    {%- elif spec.enum -%}{{ '"' + spec.enum | join('" | "') + '"' }}
    {%- elif spec.type == 'object' and spec.properties -%}
        {{- '{\\n' }}
        {%- for name, inner in spec.properties.items() -%}
            {{- name + ('?' if name not in (spec.required or []) else '') + ': ' + type_of(inner) }}
            {%- if inner.default is defined %}{{ ' // default: ' ~ (inner.default | tojson) }}{% endif -%}
            {{- ', ' if not loop.last }}
        {%- endfor -%}
        {{- '}' }}
    {%- else -%}{{- spec.type or 'any' }}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last=none, thought=false) -%}
<|start|>system<|message|>{{ model_identity | default('You are a model.') + '\\n' }}
{{- 'Current date: ' + strftime_now('%Y-%m-%d') + '\\nReasoning: ' + (reasoning_effort or 'medium') }}<|end|>
{%- if builtin_tools %}{% for tool in builtin_tools %}{{ tool | upper }} {% endfor %}{% endif -%}
{%- for tool in tools or [] -%}
    {{- '// ' + tool.function.description.replace('\\n', '\\n// ') + '\\ntype ' + tool.function.name + ' = ' }}
    {{- type_of(tool.function.parameters) + ';\\n' }}
{%- endfor -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if 'content' in message and '<|channel|>' in message.content -%}
            {{- raise_exception('channels stand in the thinking field') }}
        {%- endif -%}
        {%- if 'tool_calls' in message and message.tool_calls -%}
            {%- if message.thinking -%}{{ '<|channel|>analysis<|message|>' + message.thinking }}{%- endif -%}
            {%- set call = message.tool_calls[0] -%}
            {%- set call = call.function if call.function else call -%}
            {{- '<|channel|>commentary to=functions.' ~ call.name ~ '<|message|>' ~ call.arguments | tojson }}<|call|>
            {%- set ns.last = call.name -%}
        {%- elif loop.last and not add_generation_prompt -%}
            {{- '<|channel|>final<|message|>' + message.content + '<|return|>' }}
        {%- else -%}
            {{- '<|channel|>final<|message|>' + message.content + '<|end|>' }}{%- set ns.last = none -%}
        {%- endif -%}
    {%- elif message.role == 'tool' -%}
        {%- if ns.last is none %}{{ raise_exception('a tool that nobody called') }}{% endif -%}
        {{- '<|start|>functions.' + ns.last + ' to=assistant<|message|>' + message.content | tojson }}
    {%- elif message.role == 'user' -%}{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""

THINKING = """{%- set images = namespace(count=0) %}
{%- macro text_of(content, counts) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for item in content %}
            {%- if 'image' in item or item.type == 'image' %}
                {%- if counts %}{%- set images.count = images.count + 1 %}{%- endif %}
                {{- 'Picture ' ~ images.count ~ ': ' if add_vision_id }}<image>
            {%- elif 'text' in item %}
                {{- item.text }}
            {%- else %}
                {{- raise_exception('neither text nor picture') }}
            {%- endif %}
        {%- endfor %}
    {%- elif content is none or content is undefined %}
        {{- '' }}
    {%- endif %}
{%- endmacro %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and not text_of(message.content, false).startswith('<r>') %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- if ns.searching %}{{- raise_exception('nobody asks') }}{%- endif %}
{%- for message in messages %}
    {%- set content = text_of(message.content, true)|trim %}
    {%- set reasoning = '' %}
    {%- if message.reasoning_content is string %}
        {%- set reasoning = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- set shown = loop.index0 > ns.last and reasoning %}
    {{- '<|im_start|>' + message.role + '\\n' + ('<think>' + reasoning if shown else '') + content }}
    {%- if message.tool_calls and message.tool_calls is iterable and message.tool_calls is not mapping %}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {%- for name, value in call.arguments|items %}
                {%- set plain = value is string or value is not iterable %}
                {%- set value = value | string if plain else value | tojson | safe %}
                {{- '<parameter=' + name + '>' + value }}
            {%- endfor %}
        {%- endfor %}
    {%- endif %}
    {%- if loop.previtem and loop.previtem.role != message.role %}{{- '<changed>' }}{%- endif %}
    {%- if not loop.last and loop.nextitem.role != 'tool' or loop.last %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' + ('<think></think>' if enable_thinking is false else '') }}
{%- endif %}"""

CALLS = """{{- bos_token -}}
{%- macro argument(value) -%}
    {{- "'" + value + "'" if value is string else value | tojson if value is mapping else value | string -}}
{%- endmacro -%}
{%- set keep = keep | default(false) -%}
{%- set ns = namespace(system="") -%}
{%- if messages[0]["role"] == "system" -%}
    {%- if messages[0].get("content") -%}{%- set ns.system = messages[0]["content"] -%}{%- endif -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set ns.system = ns.system + ("\\n" if ns.system else "") + "List of tools: [" -%}
    {%- for tool in tools -%}
        {%- if tool is not string -%}{%- set tool = tool | tojson -%}{%- endif -%}
        {%- set ns.system = ns.system + tool + (", " if not loop.last else "]") -%}
    {%- endfor -%}
{%- endif -%}
{{- ns.system -}}
{%- for message in messages -%}
    {%- generation -%}
    {{- message.role -}}
    {%- set ns_calls = namespace(calls=[]) -%}
    {%- for call in message.tool_calls or [] -%}
        {%- set ns_args = namespace(texts=[]) -%}
        {%- for name, value in call["function"]["arguments"].items() -%}
            {%- set ns_args.texts = ns_args.texts + [name + "=" + argument(value)] -%}
        {%- endfor -%}
        {%- set named = call["function"]["name"] -%}
        {%- set ns_calls.calls = ns_calls.calls + [named + "(" + (ns_args.texts | join(", ")) + ")"] -%}
    {%- endfor -%}
    {{- "[" + (ns_calls.calls | join(", ")) + "]" if ns_calls.calls -}}
    {%- set content = message["content"] if message["content"] else "" -%}
    {{- (content if content is string else content | tojson)[: -1 if keep else none] -}}
    {%- endgeneration -%}
{%- endfor -%}
"""

TEMPLATES = {
    "gemma 3": ALTERNATING, "gemma 4": DECLARATIONS, "gpt-oss": HARMONY, "qwen 3.5": THINKING, "lfm 2": CALLS
}  # fmt: skip

USER = {"role": "user", "content": ' Hello <b>"你好"</b>\n'}
SYSTEM, ANSWER = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Hi <t>hm</t>!"}
CALL = {
    "role": "assistant",
    "content": "Let me see",
    "reasoning_content": "where?",
    "tool_calls": [{"id": "a1", "type": "function", "function": {
        "name": "weather", "arguments": {"city": "Paris", "n": 2, "of": ["a"], "o": {"x": 1.5}, "now": True},
    }}],
}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": "a1", "name": "weather", "content": '{"t": 20}'}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER, USER], [USER, ANSWER], [USER, USER], [ANSWER],
    [USER, {"role": "assistant", "content": "<think>\nabc\n</think>\n\n4"}, USER],
    [USER, {"role": "assistant", "content": "4", "thinking": "2 and 2"}],
    [SYSTEM, USER, CALL, RESULT, ANSWER], [USER, CALL, RESULT], [USER, {**CALL, "content": None}, RESULT, USER],
    [{"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "image"}]}, ANSWER],
    [USER, {"role": "assistant", "content": "<|channel|>x"}], [RESULT], [{"role": "user", "content": 5}],
]  # fmt: skip
TOOLS = [
    {"type": "function", "function": {
        "name": "weather", "description": "The weather\nof a city",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "Which <b>", "enum": ["Paris", "Ö"]},
            "n": {"type": ["integer", "null"], "default": 3},
            "of": {"type": "array", "items": {"type": "string"}, "nullable": True},
            "o": {"type": "object", "properties": {"x": {"type": "number"}}},
        }},
    }},
    {"type": "function", "function": {
        "name": "none", "description": "Nothing", "parameters": {"type": "object", "properties": {}}}},
]  # fmt: skip
VALUES: list[dict[str, Any]] = [
    {}, {"tools": TOOLS}, {"enable_thinking": False, "add_vision_id": True},
    {"reasoning_effort": "low", "builtin_tools": ["browser"], "model_identity": "X", "keep": True},
]  # fmt: skip


class Generation(jinja2.ext.Extension):
    """The block {% generation %}, which marks the assistant's text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_through"), [], [], body).set_lineno(line)

    def _through(self, caller: Any) -> Any:
        return caller()


def reference() -> ImmutableSandboxedEnvironment:
    """The environment that transformers makes for chat templates."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda x, **options: json.dumps(x, **{"ensure_ascii": False, **options})
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@pytest.mark.parametrize("family", TEMPLATES)
def test_templates_render_as_in_transformers(family: str) -> None:
    ours, theirs = ChatTemplate(TEMPLATES[family], TOKENS), reference().from_string(TEMPLATES[family])
    texts, refused = set(), 0
    for messages in CONVERSATIONS:
        for values in VALUES:
            for prompt in (True, False):
                seen = {"tools": None, "documents": None, **TOKENS, **copy.deepcopy(values)}
                try:
                    expected = theirs.render(messages=plain_messages(messages), add_generation_prompt=prompt, **seen)
                except Exception:
                    refused += 1
                    with pytest.raises(GGPYError):
                        ours.render(messages, prompt, **values)
                    continue
                assert ours.render(messages, prompt, **values) == expected, (messages, values)
                texts.add(expected)
    assert len(texts) > 10
    assert refused < 100
