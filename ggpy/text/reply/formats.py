"""The formats in which models reply, and how a chat template tells which one its model writes."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ggpy.errors import GGPYError, quoted
from ggpy.text.reply.gemma_calls import GemmaCalls
from ggpy.text.reply.grammar import Lark
from ggpy.text.reply.harmony import CONTROLS, THOUGHTS, harmony_grammar, harmony_reply, read_harmony
from ggpy.text.reply.json_calls import JsonCalls
from ggpy.text.reply.named_calls import DeepSeekCalls, KimiCalls, MistralCalls, NamedCalls, RecipientCalls
from ggpy.text.reply.parser import CallSyntax, Form, ReplyParser, Thoughts, functions, open_thoughts
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


def _dsml(section: str) -> Form:
    """DeepSeek's calls since V3.2, in a section of this name."""
    return Form(calls=(XmlCalls(
        f"<｜DSML｜{section}>", f"</｜DSML｜{section}>", '<｜DSML｜invoke name="', '">', "</｜DSML｜invoke>",
        '<｜DSML｜parameter name="', '" string="', "", "</｜DSML｜parameter>", says_kind=True,
    ),))  # fmt: skip


#: What a template's text holds, all of it, and the format that it then is of. The first that fits counts.
_TABLE: tuple[tuple[tuple[str, ...], str, Form], ...] = (
    (("<|channel|>", "<|message|>"), "harmony", Form(read=read_harmony, thoughts=(THOUGHTS,))),
    (("<|tool_call>", "<tool_call|>"), "gemma4", Form(calls=(GemmaCalls(),), silent=("<channel|>",))),
    (("<|tool_call_begin|>",), "kimi", Form(calls=(KimiCalls(),))),
    (("<｜tool▁call▁begin｜>", "```json"), "deepseek", Form(
        calls=(DeepSeekCalls(fenced=True, end=("\n```<｜tool▁call▁end｜>", "<｜tool▁call▁end｜>")),),
    )),
    (("<｜tool▁call▁begin｜>",), "deepseek", Form(calls=(DeepSeekCalls(),))),
    (("DSML", "function_calls"), "deepseek-v3.2", _dsml("function_calls")),
    (("DSML", "tool_calls"), "deepseek-v4", _dsml("tool_calls")),
    (("<minimax:tool_call>",), "minimax", Form(calls=(XmlCalls(
        "<minimax:tool_call>", "</minimax:tool_call>", '<invoke name="', '">', "</invoke>",
        '<parameter name="', '">', "", "</parameter>",
    ),))),
    (("<seed:tool_call>",), "seed", Form(calls=(XmlCalls(
        "<seed:tool_call>", "</seed:tool_call>", "<function=", ">", "</function>",
        "<parameter=", ">", "", "</parameter>",
    ),))),
    (("[TOOL_CALLS]", "[ARGS]"), "mistral", Form(calls=(MistralCalls(named=True),), new_id=_mistral_id)),
    (("[TOOL_CALLS]",), "mistral", Form(calls=(MistralCalls(),), new_id=_mistral_id)),
    (("<tool_call>", "<parameter="), "qwen-xml", Form(calls=(_QWEN_XML,))),
    (("<arg_key>",), "glm", Form(calls=(XmlCalls(
        "<tool_call>", "</tool_call>", "", "", "", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    ),))),
    (("<|tools_prefix|>",), "apertus", Form(
        calls=(JsonCalls(("<|tools_prefix|>",), "<|tools_suffix|>", by_name=True, in_list=True),),
    )),
    (("<|START_ACTION|>",), "command-r7b", Form(
        calls=(JsonCalls(("<|START_ACTION|>",), "<|END_ACTION|>", keys=("tool_name", "parameters"), in_list=True),),
        silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    )),
    (("Action:", "```json", "tool_name"), "command-r", Form(
        calls=(JsonCalls(
            end="```", begins_at_edge=("Action:",), declared=True, fenced=True,
            keys=("tool_name", "parameters"), in_list=True,
        ),),
    )),
    (("<|tool_call_start|>",), "lfm2", Form(
        calls=(PythonCalls(("<|tool_call_start|>",), "<|tool_call_end|>", ("[",)),),
    )),
    (("List of tools: ",), "lfm2", Form(
        calls=(PythonCalls(("<|tool_call_start|>",), "<|tool_call_end|>", ("[",)),),
    )),
    (("<|tool_call|>", "<|/tool_call|>"), "phi4", Form(calls=(JsonCalls(("<|tool_call|>",), "<|/tool_call|>"),))),
    (("<|tool_call|>",), "granite", Form(calls=(JsonCalls(("<|tool_call|>", "<tool_call>"), in_list=True),))),
    (("<TOOLCALL>",), "nemotron", Form(calls=(JsonCalls(("<TOOLCALL>",), "</TOOLCALL>", in_list=True),))),
    (("<tool_calls>",), "tool-calls", Form(
        calls=(JsonCalls(("<tool_calls>",), "</tool_calls>", in_list=True),), silent=("[END FINAL RESPONSE]",),
    )),
    (("<tool_call>",), "hermes", Form(calls=(JsonCalls(("<tool_call>",), "</tool_call>", pad="\n"),))),
    (("functools[",), "firefunction", Form(calls=(JsonCalls(("functools",), declared=True, in_list=True),))),
    (("<|function_call|>",), "gigachat", Form(calls=(JsonCalls(("<|function_call|>",)),))),
    (("'function call'", "<|role_sep|>"), "gigachat", Form(
        calls=(JsonCalls(("<|message_sep|>\n\nfunction call<|role_sep|>\n",)),),
    )),
    (("<|plugin|>",), "internlm", Form(
        calls=(JsonCalls(("<|action_start|><|plugin|>",), "<|action_end|>", keys=("name", "parameters")),),
    )),
    ((">>>", "recipient"), "functionary-v3.2", Form(always=(RecipientCalls(),))),
    (("<function=", "</function>"), "functionary-v3.1", Form(
        calls=(NamedCalls("<function=", (">",), ("</function>",), declared=True), BuiltinCalls()),
    )),
    (("<|python_tag|>",), "llama3", Form(
        calls=(JsonCalls(begins_at_edge=("{",), declared=True, keys=("name", "parameters")), BuiltinCalls()),
    )),
    (("<|python_start|>", "<|python_end|>"), "llama4", Form(
        calls=(
            JsonCalls(begins_at_edge=("{",), declared=True, keys=("name", "parameters")),
            PythonCalls(begins_at_edge=("[",)),
        ),
        silent=("<|python_start|>", "<|python_end|>"),
    )),
    (('"parameters": dictionary of argument name',), "llama3", Form(
        calls=(JsonCalls(begins_at_edge=("{",), declared=True, keys=("name", "parameters")), BuiltinCalls()),
    )),
    (("[func_name1(",), "pythonic", Form(calls=(PythonCalls(begins_at_edge=("[",)),))),
)  # fmt: skip

#: The arguments of functions whose schema need not be followed, or that have none.
_ANY_OBJECT = {"type": "object"}

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
    JsonCalls(("<tool_call>",), "</tool_call>", pad="\n"),
    JsonCalls(begins_at_edge=("{",), declared=True, keys=("name", "parameters")),
)


@dataclass(frozen=True)
class ReplyFormat:
    """How a model writes thoughts and calls. shows_tools: its template tells the model of tools. writes_thoughts: it
    has thoughts in it."""

    name: str
    form: Form
    shows_tools: bool = False
    writes_thoughts: bool = False

    def parser(
        self, prompt: str = "", tools: Sequence[Mapping[str, Any]] | None = None, stream: bool = False
    ) -> ReplyParser:
        """A parser of one reply to a rendered prompt, see `ReplyParser`."""
        return ReplyParser(self.form, prompt, tools, stream)

    def thoughts_at(self, prompt: str) -> tuple[Thoughts, bool] | None:
        """The thoughts that a reply to a prompt may hold, and whether it begins within them."""
        opened = open_thoughts(self.form, prompt)
        if opened is None:
            return (self.form.thoughts[0], False) if self.form.thoughts else None
        return opened, True

    def grammar(
        self,
        tools: Sequence[Mapping[str, Any]],
        tool_choice: str | Mapping[str, Any],
        parallel: bool,
        control: Callable[[str], int | None],
        thinks: bool = False,
    ) -> str | None:
        """The grammar, in llguidance's Lark, of what was asked for: a call of a tool, of a named one, or, where the
        model may choose, that calls of strict tools validate; None where nothing has to be guaranteed.

        tool_choice: as OpenAI has it. control: a text's id where it is a token that shows nothing. thinks: thoughts may
        begin, of which the grammar has the beginning alone (see `sampling.thoughts`). Raises GGPYError.
        """
        known = {name: schema or _ANY_OBJECT for name, schema in functions(tools).items()}
        if isinstance(tool_choice, Mapping):
            named = tool_choice.get("function")
            name = named.get("name") if isinstance(named, Mapping) else None
            if name not in known:
                raise GGPYError(f"tool_choice names {quoted(name, 80)}, which is none of the tools.")
            known = {name: known[name]}
        syntaxes = (*self.form.calls, *self.form.always)
        write = harmony_grammar if self.form.read is not None else syntaxes[0].grammar if syntaxes else None
        lark = Lark(control, self.kept_tokens, self.form.silent)
        if tool_choice == "required" or isinstance(tool_choice, Mapping):
            if write is None or not known:
                words = "there are no tools" if not known else "its chat template shows none"
                raise GGPYError(f"The model cannot be made to call a tool: {words}.")
            calls = write(lark, known, parallel and tool_choice == "required")
            if self.form.read is not None:
                before = f"({lark.text(THOUGHTS.begin)} {lark.text('<|start|>assistant')})? "
            else:
                before = self._thought(lark, thinks)
            return lark.whole(before + calls)
        strict = {name for tool in tools if (name := _strict_name(tool)) is not None}
        if tool_choice == "none" or not strict or write is None:
            return None
        known = {name: schema if name in strict else _ANY_OBJECT for name, schema in known.items()}
        return lark.whole(self._thought(lark, thinks) + f"({self._free_or_calls(lark, known, parallel)})")

    def _thought(self, lark: Lark, thinks: bool) -> str:
        """An expression for where thoughts may begin."""
        if not thinks or not self.form.thoughts or self.form.read is not None:
            return ""
        return f"({lark.text(self.form.thoughts[0].begin)})? "

    def _free_or_calls(self, lark: Lark, known: Mapping[str, Mapping[str, Any]], parallel: bool) -> str:
        """An expression for any reply, in which what begins as a call goes on as one."""
        if self.form.read is not None:
            return harmony_reply(lark, known)
        syntax = (*self.form.calls, *self.form.always)[0]
        if isinstance(syntax, RecipientCalls):
            return syntax.reply(lark, known, parallel)
        if syntax.begins:
            sign = next(iter(syntax.begins))
            if isinstance(syntax, NamedCalls) and syntax.section:
                sign = syntax.section[0]
            return lark.within_text(sign, lambda: syntax.grammar(lark, known, False), parallel)
        sign = syntax.begins_at_edge[0]
        other = lark.rule(rf"/\s*[^\s{re.escape(sign[0])}](?s:.*)/")
        return f"{syntax.grammar(lark, known, parallel)} | {other} | {lark.text('')}"

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
    shows_tools = "tools" in template.values_read
    unknown = ("common", Form(calls=_COMMON)) if shows_tools else ("plain", Form())
    fitting = ((name, form) for texts, name, form in _TABLE if all(text in source for text in texts))
    name, form = next(fitting, unknown)
    form = replace(
        form, thoughts=form.thoughts or thoughts or _THOUGHTS[:1], starts_in_thoughts=starts and not thoughts
    )
    return ReplyFormat(name, form, shows_tools, bool(thoughts) or starts or form.read is not None)


def _strict_name(tool: Mapping[str, Any]) -> str | None:
    function = tool.get("function", tool)
    return function["name"] if isinstance(function, Mapping) and function.get("strict") is True else None
