"""The formats in which models reply, and how a chat template tells which one its model writes."""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ggpy.text.reply.gemma_calls import GemmaCalls
from ggpy.text.reply.harmony import CONTROLS, read_harmony
from ggpy.text.reply.json_calls import JsonCalls
from ggpy.text.reply.named_calls import DeepSeekCalls, KimiCalls, MistralCalls, NamedCalls, RecipientCalls
from ggpy.text.reply.parser import CallSyntax, Form, ReplyParser, Thoughts
from ggpy.text.reply.python_calls import BuiltinCalls, PythonCalls
from ggpy.text.reply.xml_calls import XmlCalls

if TYPE_CHECKING:
    from ggpy.text.chat_template import ChatTemplate


def _mistral_id() -> str:
    """Nine letters and digits, as Mistral's templates want."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


_QWEN_XML = XmlCalls(
    "<tool_call>", "</tool_call>", "<function=", ">", "</function>",
    "<parameter=", ">", "", "</parameter>", lines=True, begins_bare=True,
)  # fmt: skip
_DSML = "｜DSML｜"

#: What a template's text holds, all of it, and the format that it then is of. The first that fits counts.
_TABLE: tuple[tuple[tuple[str, ...], str, Form], ...] = (
    (("<|channel|>", "<|message|>"), "harmony", Form(read=read_harmony)),
    (("<|tool_call>", "<tool_call|>"), "gemma4", Form(calls=(GemmaCalls(),), silent=("<channel|>",))),
    (("<|tool_call_begin|>",), "kimi", Form(calls=(KimiCalls(),))),
    (("<｜tool▁call▁begin｜>",), "deepseek", Form(calls=(DeepSeekCalls(),))),
    (("DSML", "function_calls"), "deepseek-v3.2", Form(calls=(XmlCalls(
        f"<{_DSML}function_calls>", f"</{_DSML}function_calls>", f'<{_DSML}invoke name="', '">', f"</{_DSML}invoke>",
        f'<{_DSML}parameter name="', '" string="', "", f"</{_DSML}parameter>", says_kind=True,
    ),))),
    (("<minimax:tool_call>",), "minimax", Form(calls=(XmlCalls(
        "<minimax:tool_call>", "</minimax:tool_call>", '<invoke name="', '">', "</invoke>",
        '<parameter name="', '">', "", "</parameter>",
    ),))),
    (("<seed:tool_call>",), "seed", Form(calls=(XmlCalls(
        "<seed:tool_call>", "</seed:tool_call>", "<function=", ">", "</function>",
        "<parameter=", ">", "", "</parameter>",
    ),))),
    (("[TOOL_CALLS]",), "mistral", Form(calls=(MistralCalls(),), new_id=_mistral_id)),
    (("<tool_call>", "<parameter="), "qwen-xml", Form(calls=(_QWEN_XML,))),
    (("<arg_key>",), "glm", Form(calls=(XmlCalls(
        "<tool_call>", "</tool_call>", "", "", "", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    ),))),
    (("<|tools_prefix|>",), "apertus", Form(
        calls=(JsonCalls(("<|tools_prefix|>",), "<|tools_suffix|>", by_name=True),),
    )),
    (("<|START_ACTION|>",), "command-r7b", Form(
        calls=(JsonCalls(("<|START_ACTION|>",), "<|END_ACTION|>"),),
        silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    )),
    (("Action:", "```json", "tool_name"), "command-r", Form(
        calls=(JsonCalls(end="```", begins_at_edge=("Action:",), declared=True, fenced=True),),
    )),
    (("<|tool_call_start|>",), "lfm2", Form(
        calls=(PythonCalls(("<|tool_call_start|>",), "<|tool_call_end|>", ("[",)),),
    )),
    (("List of tools: ",), "lfm2", Form(
        calls=(PythonCalls(("<|tool_call_start|>",), "<|tool_call_end|>", ("[",)),),
    )),
    (("<|tool_call|>",), "granite", Form(calls=(JsonCalls(("<|tool_call|>", "<tool_call>"), "<|/tool_call|>"),))),
    (("<TOOLCALL>",), "nemotron", Form(calls=(JsonCalls(("<TOOLCALL>",), "</TOOLCALL>"),))),
    (("<tool_calls>",), "tool-calls", Form(
        calls=(JsonCalls(("<tool_calls>",), "</tool_calls>"),), silent=("[END FINAL RESPONSE]",),
    )),
    (("<tool_call>",), "hermes", Form(calls=(JsonCalls(("<tool_call>",), "</tool_call>"),))),
    (("functools[",), "firefunction", Form(calls=(JsonCalls(("functools",), declared=True),))),
    (("<|function_call|>",), "gigachat", Form(calls=(JsonCalls(("<|function_call|>",), "<|message_sep|>"),))),
    (("'function call'", "<|role_sep|>"), "gigachat", Form(
        calls=(JsonCalls(("<|message_sep|>\n\nfunction call<|role_sep|>\n",), "<|message_sep|>"),),
    )),
    (("<|plugin|>",), "internlm", Form(calls=(JsonCalls(("<|action_start|><|plugin|>",), "<|action_end|>"),))),
    ((">>>", "recipient"), "functionary-v3.2", Form(always=(RecipientCalls(),))),
    (("<function=", "</function>"), "functionary-v3.1", Form(
        calls=(NamedCalls("<function=", (">",), ("</function>",), declared=True), BuiltinCalls()),
    )),
    (("<|python_tag|>",), "llama3", Form(
        calls=(JsonCalls(begins_at_edge=("{",), declared=True), BuiltinCalls()),
    )),
    (('"parameters": dictionary of argument name',), "llama3", Form(
        calls=(JsonCalls(begins_at_edge=("{",), declared=True), BuiltinCalls()),
    )),
    (("[func_name1(",), "pythonic", Form(calls=(PythonCalls(begins_at_edge=("[",)),))),
)  # fmt: skip

#: What stands around thoughts.
_THOUGHTS = (
    Thoughts("<think>", "</think>"),
    Thoughts("<seed:think>", "</seed:think>"),
    Thoughts("[THINK]", "[/THINK]", anywhere=True),
    Thoughts("<|START_THINKING|>", "<|END_THINKING|>", anywhere=True),
    Thoughts("<|channel>thought", "<channel|>", anywhere=True),
    Thoughts("<|inner_prefix|>", "<|inner_suffix|>", anywhere=True),
    Thoughts("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    Thoughts("Here is my thought process:", "Here is my response:"),
    Thoughts("◁think▷", "◁/think▷"),
    Thoughts("<thinking>", "</thinking>"),
    Thoughts("<thought>", "</thought>"),
    Thoughts("<reasoning>", "</reasoning>"),
)

#: For templates that show tools, but of which nothing tells how they are called: the two commonest forms.
_COMMON: tuple[CallSyntax, ...] = (
    JsonCalls(("<tool_call>",), "</tool_call>"),
    JsonCalls(begins_at_edge=("{",), declared=True),
)


@dataclass(frozen=True)
class ReplyFormat:
    """How a model writes thoughts and calls. shows_tools: its template tells the model of tools."""

    name: str
    form: Form
    shows_tools: bool = False

    def parser(
        self, prompt: str = "", tools: Sequence[Mapping[str, Any]] | None = None, stream: bool = False
    ) -> ReplyParser:
        """A parser of one reply to a rendered prompt, see `ReplyParser`."""
        return ReplyParser(self.form, prompt, tools, stream)

    @property
    def kept_tokens(self) -> frozenset[str]:
        """Tokens that a parser has to see in the text, though they may show nothing elsewhere."""
        if self.form.read is not None:
            return frozenset(CONTROLS)
        markers = [*self.form.silent]
        for thoughts in self.form.thoughts:
            markers += [thoughts.begin, thoughts.end, *(["<|channel>"] if "<|channel>" in thoughts.begin else [])]
        for syntax in (*self.form.calls, *self.form.always):
            markers += syntax.controls
        return frozenset(markers)


def reply_format(template: ChatTemplate | None) -> ReplyFormat:
    """The format of a model's replies, recognised by what its template's text holds."""
    if template is None:
        return ReplyFormat("plain", Form(thoughts=_THOUGHTS[:1]))
    source = template.whole_source
    thoughts = tuple(found for found in _THOUGHTS if found.begin in source and found.end in source)
    # DeepSeek R1's first templates leave it to the model to begin its thoughts, and the model leaves it out.
    starts = "</think>" in source and "<think>" not in source and "<｜Assistant｜>" in source
    shows_tools = template.reads("tools")
    unknown = ("common", Form(calls=_COMMON)) if shows_tools else ("plain", Form())
    fitting = ((name, form) for texts, name, form in _TABLE if all(text in source for text in texts))
    name, form = next(fitting, unknown)
    form = replace(form, thoughts=thoughts or _THOUGHTS[:1], starts_in_thoughts=starts and not thoughts)
    return ReplyFormat(name, form, shows_tools)
