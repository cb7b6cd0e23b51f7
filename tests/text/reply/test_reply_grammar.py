"""Under a grammar whatever is written parses to calls whose arguments validate, and nothing else can be written."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from ggpy.errors import GGPYError
from ggpy.text.reply import ReplyFormat
from ggpy.text.reply.xml_calls import XmlCalls
from tests.support.reply_templates import BY_NAME, FAMILIES, Family, parse

llguidance = pytest.importorskip("llguidance")

CLOSING = frozenset(b'"}],>/\n<')

IDS = [f"{i}-{family.name}" for i, family in enumerate(FAMILIES)]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "units": {"type": "string", "enum": ["metric", "imperial"]},
        "sure": {"type": ["boolean", "null"]},
        "where": {
            "type": "object",
            "properties": {"x": {"type": "number"}},
            "required": ["x"],
            "additionalProperties": False,
        },
    },
    "required": ["city", "where"],
    "additionalProperties": False,
}
#: What elements cannot say: a text of a pattern.
PATTERN = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-C]{2}$"}, "where": {"type": "object"}},
    "required": ["city", "where"],
    "additionalProperties": False,
}


def tools(schema: Mapping[str, Any], strict: bool = False) -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": name, "parameters": schema, "strict": strict}}
        for name in ("get_weather", "get-time")
    ]


class Vocabulary:
    """Single bytes, and a format's control tokens."""

    def __init__(self, form: ReplyFormat, with_controls: bool) -> None:
        controls = sorted(form.kept_tokens) if with_controls else []
        self.tokens = [bytes([i]) for i in range(256)] + [control.encode() for control in controls] + [b"<eos>"]
        self.special_token_ids = list(range(256, len(self.tokens)))
        self.bos_token_id, self.eos_token_id = None, len(self.tokens) - 1
        ends = [syntax.value_closing for syntax in form.form.calls if isinstance(syntax, XmlCalls)]
        self.ids = {control: 256 + i for i, control in enumerate(controls)}
        # What ends free texts, as chance would never spell it.
        self.closing = [id for end in ends for id in ([self.ids[end]] if end in self.ids else [10, *end.encode()])]
        self.tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(self), n_vocab=len(self.tokens), eos_token=self.eos_token_id
        )

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def matcher(self, grammar: str) -> Any:
        compiled = llguidance.grammar_from("grammar", grammar)
        wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(compiled, self.tokenizer)
        assert not wrong, messages
        return llguidance.LLMatcher(self.tokenizer, compiled, log_level=0)

    def written(self, grammar: str, rng: random.Random) -> str:
        """A text by choice among what may follow, with a liking for what ends things."""
        matcher, text = self.matcher(grammar), b""
        spelling: list[int] = []
        bits = np.zeros(-(-len(self.tokens) // 32), np.int32)
        for _ in range(2000):
            if matcher.is_stopped():
                break
            matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
            allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist()
            everything = frozenset(allowed)
            if self.eos_token_id in allowed and rng.random() < 0.7:
                break
            if not spelling and rng.random() < 0.1:
                spelling = [*self.closing]
            allowed = [token for token in allowed if token < 128 or 256 <= token < self.eos_token_id] or allowed
            closing = [token for token in allowed if token in CLOSING]
            token = rng.choice(closing if closing and rng.random() < 0.5 else allowed)
            if spelling:
                token = spelling.pop(0) if spelling[0] in everything else token
            assert matcher.consume_token(token)
            text += self.tokens[token]
        else:
            pytest.fail(f"it never ended: {text[:500]!r}")
        return text.decode()

    def follows(self, grammar: str, text: str) -> bool:
        """True where a text can be written."""
        matcher, at = self.matcher(grammar), 0
        while at < len(text):
            control = next((c for c in sorted(self.ids, key=len, reverse=True) if text.startswith(c, at)), None)
            ids = [self.ids[control]] if control else list(text[at].encode())
            if not all(matcher.consume_token(token) for token in ids):
                return False
            at += len(control or text[at])
        return bool(matcher.is_accepting())


def valid(arguments: dict[str, Any], schema: Mapping[str, Any]) -> bool:
    if schema is PATTERN:
        return (
            len(arguments["city"]) == 2
            and set(arguments["city"]) <= set("ABC")
            and isinstance(arguments["where"], dict)
        )
    checks = {
        "city": lambda v: isinstance(v, str),
        "days": lambda v: type(v) is int,
        "units": lambda v: v in ("metric", "imperial"),
        "sure": lambda v: v in (True, False, None),
        "where": lambda v: set(v) == {"x"} and type(v["x"]) in (int, float),
    }
    return {"city", "where"} <= arguments.keys() and all(checks[key](value) for key, value in arguments.items())


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
def test_required_calls_parse_and_validate(family: Family) -> None:
    rng = random.Random(3)
    prompt = family.prompts if family.prompts == ">>>" else ""
    named = {"type": "function", "function": {"name": "get-time"}}
    for with_controls, choice, schema in (
        (True, "required", SCHEMA), (False, "required", SCHEMA), (False, named, SCHEMA), (True, named, PATTERN),
    ):  # fmt: skip
        vocabulary = Vocabulary(family.format, with_controls)
        grammar = family.format.grammar(tools(schema), choice, True, vocabulary.ids.get)
        assert grammar is not None
        for _ in range(2):
            text = vocabulary.written(grammar, rng)
            found = parse(family.format, [text], prompt, tools(schema))
            assert found.calls, text
            assert not found.content.strip("\n"), text
            for name, arguments in found.calls:
                assert name == "get-time" or choice == "required"
                assert valid(json.loads(arguments), schema), text


STRICT = ("hermes", "deepseek", "kimi", "granite", "functionary-v3.2", "llama3", "qwen-xml", "harmony", "command-r7b")


@pytest.mark.parametrize("name", STRICT)
def test_where_the_model_may_choose_strict_calls_validate(name: str) -> None:
    family = BY_NAME[name]
    vocabulary = Vocabulary(family.format, name in ("kimi", "harmony", "granite"))
    grammar = family.format.grammar(tools(SCHEMA, strict=True), "auto", True, vocabulary.ids.get)
    assert grammar is not None

    def turn(arguments: dict[str, Any] | None) -> str:
        calls = (
            [{"id": "i", "function": {"name": "get_weather", "arguments": arguments}}] if arguments is not None else []
        )
        content = "Hm. {" if family.writes_content else ""
        message = {"role": "assistant", "content": content, "reasoning_content": "", "tool_calls": calls}
        return family.turn_of(message)[1]

    fine = {"city": "Oslo", "where": {"x": 1}}
    assert vocabulary.follows(grammar, turn(None))
    if name == "harmony":  # thoughts and calls are each other's turn
        fine_turn = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>" + json.dumps(fine)
        assert vocabulary.follows(grammar, fine_turn)
        assert not vocabulary.follows(grammar, fine_turn.replace('"Oslo"', "5"))
        return
    if name != "command-r7b":
        assert vocabulary.follows(grammar, turn(fine))
    for wrong in ({"where": {"x": 1}}, {"city": "Oslo", "where": {"x": "1"}}):
        assert not vocabulary.follows(grammar, turn(wrong))


def test_nothing_is_forbidden_where_nothing_is_asked_for() -> None:
    form = BY_NAME["hermes"].format
    assert form.grammar(tools(SCHEMA), "auto", True, lambda text: None) is None
    assert form.grammar(tools(SCHEMA, strict=True), "none", True, lambda text: None) is None
    for choice in ({"type": "function", "function": {"name": "other"}}, {"type": "function"}):
        with pytest.raises(GGPYError, match="none of the tools"):
            form.grammar(tools(SCHEMA), choice, True, lambda text: None)
    with pytest.raises(GGPYError, match="no tools"):
        form.grammar([], "required", True, lambda text: None)


def test_one_call_alone_where_parallel_ones_are_off() -> None:
    for family in FAMILIES:
        vocabulary = Vocabulary(family.format, True)
        grammar = family.format.grammar(tools(SCHEMA), "required", False, vocabulary.ids.get)
        assert grammar is not None
        text = vocabulary.written(grammar, random.Random(1))
        prompt = family.prompts if family.prompts == ">>>" else ""
        assert len(parse(family.format, [text], prompt, tools(SCHEMA)).calls) == 1


def test_thoughts_may_begin_before_a_call() -> None:
    form = BY_NAME["hermes"].format
    vocabulary = Vocabulary(form, False)
    grammar = form.grammar(tools(SCHEMA), "required", False, vocabulary.ids.get, thinks=True)
    assert grammar is not None
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "O", "where": {"x": 1}}}\n</tool_call>'
    assert vocabulary.follows(grammar, "<think>" + call)  # the thoughts themselves are not the grammar's
    assert vocabulary.follows(grammar, call)
    assert not vocabulary.follows(grammar, "Hm." + call)
