"""Chat templates: what they render, and what a template from a stranger cannot do."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.text.chat_messages import merged_values
from ggpy.text.chat_template import CHATML, ChatTemplate, find_template, no_template
from ggpy.text.tokenizer import Tokenizer
from tests.support.vocabularies import CONTROL, bpe_metadata, spm_metadata, write_gguf

USER = {"role": "user", "content": 'Hello <b>"你好"</b>'}
ASSISTANT = {"role": "assistant", "content": "Hi!"}
SYSTEM = {"role": "system", "content": "Be brief."}


def _render(source: str, messages: list[dict[str, Any]] | None = None, **extra: Any) -> str:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return ChatTemplate(source, special, where="some.gguf").render([USER] if messages is None else messages, **extra)


def test_chatml() -> None:
    assert _render(CHATML, [SYSTEM, USER]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        '<|im_start|>user\nHello <b>"你好"</b><|im_end|>\n<|im_start|>assistant\n'
    )
    assert _render(CHATML, [ASSISTANT], add_generation_prompt=False) == "<|im_start|>assistant\nHi!<|im_end|>\n"


def test_instructions_in_brackets() -> None:
    template = """{{ bos_token }}
    {%- for message in messages %}
        {%- if message.role == 'user' %}
            {{- '[INST] ' + message.content | trim + ' [/INST]' }}
        {%- elif message['role'] == 'assistant' %}
            {{- ' ' + message['content'] + eos_token }}
        {%- else %}
            {{- raise_exception('Only user and assistant roles are supported!') }}
        {%- endif %}
    {%- endfor %}"""
    expected = '<s>[INST] Hello <b>"你好"</b> [/INST] Hi!</s>[INST] Hello <b>"你好"</b> [/INST]'
    assert _render(template, [USER, ASSISTANT, USER]) == expected
    with pytest.raises(GGPYError, match=r"some.gguf.*refuses these messages: Only user and assistant roles"):
        _render(template, [SYSTEM])


def test_blocks_take_their_line_with_them() -> None:
    template = "{% for m in messages %}\n    {% if true %}\n{{ m.role }};\n    {% endif %}\n{% endfor %}\nend"
    assert _render(template) == "user;\nend"


def test_what_templates_expect() -> None:
    assert _render("{{ tools is none }} {{ documents is none }} {{ nothing is defined }}") == "True True False"
    assert _render("{{ thinking }}", thinking="yes") == "yes"
    assert _render("{{ bos_token }}", bos_token="B") == "B"
    assert _render("{{ messages | tojson }}") == '[{"role": "user", "content": "Hello <b>\\"你好\\"</b>"}]'
    assert _render("{{ {'a': [1]} | tojson(indent=2) }}") == '{\n  "a": [\n    1\n  ]\n}'
    assert _render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}") == '{"a":2,"b":1}'
    assert _render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert _render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert _render("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}") == "user"
    assert _render("{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a ~ '-' ~ ns['a'] }}") == "2-2"
    assert _render("{{ dict(a=1)['a'] }}{{ 'x' * 3 }}{{ 2 ** 8 }}{{ '%s' % 'y' }}{{ '{}'.format(1) }}") == "1xxx256y1"
    assert _render("{{ ['a', 'b'] | join(', ') }} {{ 'aXa' | replace('X', '-') }} {{ 'a\nb' | indent(2) }}") == (
        "a, b a-a a\n  b"
    )


def test_a_template_for_tools() -> None:
    template = ChatTemplate("plain", tool_source="{{ tools | length }} tools")
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=[{"name": "f"}]) == "1 tools"


def test_what_llama_cpp_renders_and_transformers_refuses() -> None:
    queue = "{% set l = [] %}{% for m in messages %}{% set _ = l.append(m.role) %}{% endfor %}{{ l.pop(0) }}{{ l }}"
    assert _render(queue, [SYSTEM, USER]) == "system['user']"
    assert _render("{{ messages | map(attribute='role') | tojson }}") == '["user"]'
    reads_functions = ChatTemplate("{{ functions }}|{{ datetime }}")
    tool = {"type": "function", "function": {"name": "f"}}
    assert "tools" in reads_functions.values_read
    assert re.fullmatch(r'\[\s+\{\s+"name": "f"\s+\}\s+\]\|20\d\d-.*', reads_functions.render([USER], tools=[tool]))
    assert reads_functions.render([USER]).startswith("|20")
    assert reads_functions.render([USER], tools=[tool], functions="mine", datetime="now") == "mine|now"
    with pytest.raises(GGPYError, match="failed with these messages: keys must be str"):
        reads_functions.render([USER], tools=[{("no", "JSON"): 1}])


def test_values_that_the_template_does_not_read() -> None:
    template = ChatTemplate("{{ messages }}{{ enable_thinking }}", tool_source="{{ tools }}", where="some.gguf")
    template.check_values({"enable_thinking": False, "tools": [{}], "documents": None, "functions": []})
    template.check_values({"add_generation_prompt": False, "continue_final_message": "content"})
    with pytest.raises(GGPYError, match=r"some.gguf.*does not read 'enable_thinkin'; did you mean 'enable_thinking'\?"):
        template.check_values({"enable_thinkin": False})
    with pytest.raises(GGPYError, match=r"does not read 'documents'; leave it out"):
        template.check_values({"documents": [{"text": "x"}]})
    for name in ("message", "raise_exception", "namespac"):  # what a template has is no value that it reads
        with pytest.raises(GGPYError, match=f"does not read '{name}'; leave it out"):
            ChatTemplate("{{ messages }}{{ raise_exception(namespace) }}").check_values({name: 1})
    ChatTemplate("{% faulty").check_values({"tools": [{}]})  # rendering says what is wrong


def test_values_come_by_name_or_together() -> None:
    assert merged_values(None, {"a": 1}) == {"a": 1}
    assert merged_values({"b": 2}, {"a": 1}) == {"a": 1, "b": 2}
    for kwargs, said in (
        ({"a": 2}, "hold 'a'"),
        ({"messages": []}, "hold 'messages'"),
        ([1], "dict"),
        ({1: 2}, "dict"),
    ):
        with pytest.raises(GGPYError, match=said):
            merged_values(kwargs, {"a": 1})  # type: ignore[arg-type]


def test_messages_are_not_changed_and_come_as_plain_data() -> None:
    class Loud(str):
        def shout(self) -> str:
            return self.upper()

    messages = [{"role": "user", "content": Loud("x")}]
    assert _render("{{ messages[0].content.shout is defined }}{{ messages[0].content }}", messages) == "Falsex"
    assert _render("{{ messages[0].image }}", [{"image": object()}]) == "<object>"


# From files


def _from(tmp_path: Path, metadata: dict[str, Any]) -> ChatTemplate | None:
    with GGUFFile(write_gguf(tmp_path / "m.gguf", metadata)) as file:
        return ChatTemplate.from_gguf(file, Tokenizer.from_gguf(file))


def test_from_gguf(tmp_path: Path) -> None:
    metadata = spm_metadata()
    assert _from(tmp_path, metadata) is None
    assert _from(tmp_path, {**metadata, "tokenizer.chat_template": "\n"}) is None
    template = _from(tmp_path, {**metadata, "tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}{{ unk_token }}"})
    assert template is not None
    assert template.render([USER]) == "<s></s><unk>"
    tools = {**metadata, "tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"}
    template = _from(tmp_path, tools)
    assert template is not None
    assert template.render([USER], tools=[{}]) == "b"
    with pytest.raises(GGPYError, match="must be a text; found"):
        _from(tmp_path, {**metadata, "tokenizer.chat_template": 5})


def test_another_template_is_chosen(tmp_path: Path) -> None:
    metadata = {
        **spm_metadata(), "tokenizer.chat_template": "a{{ bos_token }}", "tokenizer.chat_template.tool_use": "b",
        "tokenizer.chat_template.rag": "c{{ bos_token }}", "tokenizer.chat_templates": ["tool_use", "rag"],
    }  # fmt: skip
    (tmp_path / "own.jinja").write_bytes("\ufeffé{{ eos_token }}".encode())
    (tmp_path / "bytes.jinja").write_bytes(b"\xff")
    with GGUFFile(write_gguf(tmp_path / "m.gguf", metadata)) as file:
        tokenizer = Tokenizer.from_gguf(file)

        def rendered(chosen: Any) -> str:
            template = ChatTemplate.from_gguf(file, tokenizer, find_template(file, chosen))
            assert template is not None
            return template.render([USER], tools=[{}])

        assert (rendered("rag"), rendered("tool_use"), rendered("default")) == ("c<s>", "b", "a<s>")
        assert rendered("chatml").startswith("<|im_start|>user")
        assert rendered(tmp_path / "own.jinja") == rendered(str(tmp_path / "own.jinja")) == "é</s>"
        for chosen, said in (
            ("chatlm", "no chat template 'chatlm'; give a file, or one of tool_use, rag, chatml"),
            (tmp_path / "none.jinja", "cannot be read"),
            (tmp_path / "bytes.jinja", "is no chat template"),
            ("", "empty"),
        ):
            with pytest.raises(GGPYError, match=said):
                find_template(file, chosen)


def test_a_file_with_named_templates_alone_says_their_names(tmp_path: Path) -> None:
    metadata = {**spm_metadata(), "tokenizer.chat_template.rag": "c", "tokenizer.chat_templates": ["rag"]}
    with GGUFFile(write_gguf(tmp_path / "m.gguf", metadata)) as file:
        assert ChatTemplate.from_gguf(file, Tokenizer.from_gguf(file)) is None
        assert "choose one with chat_template or --chat-template: rag." in str(no_template(file))


def test_chatml_where_the_vocabulary_has_its_tokens(tmp_path: Path) -> None:
    metadata = bpe_metadata("qwen2", {"<|im_start|>": CONTROL, "<|im_end|>": CONTROL})
    template = _from(tmp_path, metadata)
    assert template is not None
    assert template.source == CHATML


def test_a_default_bos_is_no_part_of_a_conversation(tmp_path: Path) -> None:
    metadata = bpe_metadata("qwen2")
    del metadata["tokenizer.ggml.bos_token_id"]  # token 11 is BOS then, and stands for an ordinary text
    template = _from(tmp_path, {**metadata, "tokenizer.chat_template": "[{{ bos_token }}]"})
    assert template is not None
    assert template.render([USER]) == "[]"
