"""Answers that follow a schema, a regular expression, a choice or a grammar, whatever a model says."""

from __future__ import annotations

import gc
import json
import math
import re
import sys
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ggpy.engine.engine import Engine
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.sampling import structured
from ggpy.sampling.sampler import Sampler
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.sampling.structured import Grammar, StructuredOutputsParams
from ggpy.text.tokenizer import Tokenizer
from tests.support.doubles import EOS, ByteTokenizer, FakeRuntime, saying
from tests.support.vocabularies import bpe_metadata

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "绿", 'b"l']}, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GBNF = 'root ::= pair ("," pair)?\npair ::= [a-c]{2} "=" num\nnum ::= "0" | [1-9] [0-9]?\n'
LARK = 'start: pair ("," pair)?\npair: /[a-c]{2}/ "=" num\nnum: "0" | /[1-9][0-9]?/\n'


GREEDY = SamplingParams(temperature=0).resolved()


def engine_of(tokenizer: Any = None, **options: Any) -> Engine:
    return Engine(FakeRuntime(**{"n_ctx": 400, **options}), tokenizer or ByteTokenizer())


def params(form: dict[str, Any], **asked: Any) -> SamplingParams:
    asked = {"seed": 1, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 2.0, **asked}
    return SamplingParams(structured_outputs=StructuredOutputsParams(**form), **asked).resolved()


def run(engine: Engine, *requests: Request) -> None:
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.step()


@pytest.mark.parametrize("max_sampled", [0, 8])
@pytest.mark.parametrize(
    ("form", "fits"),
    [
        ({"json": SCHEMA}, lambda text: follows(json.loads(text))),
        ({"json": json.dumps(SCHEMA), "disable_any_whitespace": True}, lambda text: follows(json.loads(text))),
        (
            {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4}},
            lambda text: len(json.loads(text)) in (2, 3, 4),
        ),
        ({"regex": "(ab+|[0-9]{3}-[0-9]{2})x"}, lambda text: re.fullmatch("(ab+|[0-9]{3}-[0-9]{2})x", text)),
        ({"choice": ["yes", "no", "naïve", 'a "b"\n']}, lambda text: text in ("yes", "no", "naïve", 'a "b"\n')),
        ({"grammar": GBNF}, lambda text: re.fullmatch(r"[a-c]{2}=(0|[1-9]\d?)(,[a-c]{2}=(0|[1-9]\d?))?", text)),
        ({"grammar": LARK}, lambda text: re.fullmatch(r"[a-c]{2}=(0|[1-9]\d?)(,[a-c]{2}=(0|[1-9]\d?))?", text)),
    ],
    ids=["object", "object as text", "array", "regex", "choice", "gbnf", "lark"],
)
def test_every_finished_answer_fits(form: dict[str, Any], fits: Any, max_sampled: int) -> None:
    engine = engine_of(n_slots=4, max_sampled=max_sampled)
    requests = [engine.request([i, 7], params(form, seed=i)) for i in range(12)]
    run(engine, *requests)
    finished = [request for request in requests if request.finish_reason == "stop"]
    assert len(finished) >= 10
    assert len({request.text for request in finished}) > 1
    for request in finished:
        assert fits(request.text), request.text


def follows(value: Any) -> bool:
    assert set(value) <= set(SCHEMA["properties"])  # type: ignore[arg-type]
    assert len(value["name"]) <= 12
    assert isinstance(value["age"], int)
    assert 0 <= value["age"] <= 150
    assert set(value["tags"]) <= {"red", "绿", 'b"l'}
    return "next" not in value or value["next"] in (None, True, False)


@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe"])
def test_a_models_own_vocabulary(kind: str) -> None:
    tokenizer = Tokenizer(bpe_metadata(kind))
    rng = np.random.default_rng(0)
    for _ in range(5):
        grammar = Grammar(tokenizer, StructuredOutputsParams(json=SCHEMA))
        ids: list[int] = []
        while not grammar.finished and len(ids) < 300:
            logits = rng.standard_normal(tokenizer.n_vocab + 5).astype(np.float32)
            token = Sampler(GREEDY, grammar=grammar).sample(logits)
            assert token < tokenizer.n_vocab
            assert len(grammar.forced()) == 0 or token == grammar.forced()[0]
            if token in tokenizer.eog:
                break
            grammar.accept(token)
            ids.append(token)
        assert follows(json.loads(tokenizer.detokenize(ids)))


class Masked(Grammar):
    """A grammar that allows what bits say."""

    def __init__(self, allowed: np.ndarray) -> None:
        self.matcher: Any = SimpleNamespace(is_error=lambda: False)
        self.learn(np.packbits(allowed, bitorder="little").view(np.int32))


@pytest.mark.parametrize("share", [0.002, 0.01, 0.3, 1.0])
@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0},
        {"logit_bias": {0: 3.0, 900: -math.inf, 5: 2.0}, "top_k": 3},
        {"top_p": 0.7, "min_p": 0.01, "temperature": 1.5},
        {"typical_p": 0.6},
        {"top_n_sigma": 1.0, "dynatemp_range": 0.4},
        {"mirostat": 1},
        {"mirostat": 2, "repetition_penalty": 1.5, "repeat_last_n": 64},
        {"samplers": "temperature;top_p;penalties;top_k", "top_p": 0.9, "frequency_penalty": 1.0},
    ],
    ids=str,
)
def test_masks_of_every_kind_leave_the_same_choice(share: float, asked: dict[str, Any]) -> None:
    """Told by what may follow, or as biases: the tokens are those of logits that are minus infinity."""
    rng = np.random.default_rng(0)
    allowed = rng.random(2048) < share
    allowed[7] = True
    both = SamplingParams(**{"seed": 3, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, **asked}).resolved()
    one, other = Sampler(both), Sampler(both, grammar=Masked(allowed))
    for sampler in (one, other):
        sampler.accept(range(0, 2048, 5), of_prompt=True)
    for _ in range(40):
        logits = 2 * rng.standard_normal(2050).astype(np.float32)
        masked = np.where(np.pad(allowed, (0, 2)), logits, np.float32(-np.inf))
        kept = logits.copy()
        assert other.sample(logits) == one.sample(masked)
        np.testing.assert_array_equal(logits, kept)


def test_masks_are_there_when_the_step_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, inline = engine_of(n_slots=4), []
    learn = Grammar.learn

    def learned(grammar: Grammar, bits: Any) -> None:
        inline.append(threading.current_thread() is threading.main_thread())
        learn(grammar, bits)

    monkeypatch.setattr(Grammar, "learn", learned)
    requests = [engine.request([i], params({"json": SCHEMA}, seed=i)) for i in range(6)]
    run(engine, *requests)
    assert all(follows(json.loads(request.text)) for request in requests if request.finish_reason == "stop")
    assert len(inline) > 100
    assert not any(inline)


def test_blanks_have_an_end() -> None:
    """A model that would write blanks for ever still comes to the end of its JSON."""
    engine = engine_of(script=lambda prefix: ord(" "))
    request = engine.request([0], params({"json": SCHEMA}, temperature=0))
    run(engine, request)
    assert (request.finish_reason, follows(json.loads(request.text))) == ("stop", True)
    blanks = engine_of(script=lambda prefix: ord("\t"))
    form = {"json": {"type": "array", "maxItems": 0}, "whitespace_pattern": r"\t{0,3}"}
    request = blanks.request([0], params(form, temperature=0))
    run(blanks, request)
    assert request.text == "[\t\t\t]"


def test_what_can_only_go_on_in_one_way_is_not_asked_of_the_model() -> None:
    engine = engine_of()
    request = engine.request([5, 6], params({"regex": "(ab|cd)elephants"}))
    run(engine, request)
    assert request.text in ("abelephants", "cdelephants")
    assert engine.runtime.batches == [2]  # type: ignore[attr-defined]  # the prompt alone: the first letter says it all
    slow = engine_of(n_batch=4, by_kind=True)
    two = slow.request([5, 6], params({"regex": "(ab|cd)elephants[xy]"}))
    run(slow, two)
    assert re.fullmatch("(ab|cd)elephants[xy]", two.text)


@pytest.mark.parametrize("n_batch", [3, 16])
def test_logprobs_change_nothing_in_the_text(n_batch: int) -> None:
    for seed in range(4):
        texts = []
        for logprobs in (None, 1):
            engine = engine_of(n_batch=n_batch)
            request = engine.request([1, 2, 3, 4], params({"json": SCHEMA}, seed=seed, logprobs=logprobs))
            run(engine, request)
            texts.append((request.token_ids, request.text))
            assert logprobs is None or len(request.logprobs or ()) == request.n_chosen
        assert texts[0] == texts[1]


def test_an_answer_may_end_where_the_grammar_may() -> None:
    engine = engine_of(script=saying("aaa"))
    request = engine.request([0], params({"regex": "a+"}, temperature=0))
    run(engine, request)
    assert (request.text, request.finish_reason, request.stop_reason) == ("aaa", "stop", EOS)
    longer = engine.request([0], params({"regex": "a+"}, temperature=0, min_tokens=5, max_tokens=9))
    run(engine, longer)
    assert longer.text.startswith("aaaaa")
    whole = engine.request([0], params({"regex": "a{2}"}, temperature=0, min_tokens=5))
    run(engine, whole)
    assert (whole.text, whole.finish_reason, whole.stop_reason) == ("aa", "stop", None)
    short = engine.request([0], params({"regex": "abcdef"}, max_tokens=3))
    run(engine, short)
    assert (short.text, short.finish_reason) == ("abc", "length")


def test_a_grammar_beside_other_parameters() -> None:
    form = {"regex": "[abc]{6}"}
    for asked in (
        {"mirostat": 1}, {"mirostat": 2}, {"top_n_sigma": 1.0}, {"typical_p": 0.5}, {"top_p": 0.5}, {"top_k": 40},
        {"xtc_probability": 1.0}, {"dynatemp_range": 1.0}, {"dry_multiplier": 1.0}, {"repetition_penalty": 1.5},
        {"logit_bias": {ord("a"): -math.inf}}, {"bad_words": ["bc"]}, {"temperature": 0},
    ):  # fmt: skip
        engine = engine_of()
        request = engine.request([9], params(form, **asked))
        run(engine, request)
        assert re.fullmatch("[abc]{6}", request.text), asked
        if "logit_bias" in asked:
            assert "a" not in request.text
        assert "bad_words" not in asked or "bc" not in request.text
    none = engine.request([9], params(form, logit_bias=dict.fromkeys(b"abc", -math.inf)))
    run(engine, none)
    assert "No token is left" in str(none.error)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"json": {"type": "array", "uniqueItems": True}}, r"The JSON schema cannot be followed .*\"uniqueItems\""),
        ({"json": {"properties": {"a": {"not": {}}}}}, r"The JSON schema .*\"not\""),
        ({"json": {"type": "string", "format": "colour"}}, "The JSON schema .*colour"),
        ({"json": {"type": "thing"}}, "The JSON schema .*thing"),
        ({"json": {"$ref": "https://example.com/x"}}, "The JSON schema .*example.com"),
        ({"json": {"$ref": "#/$defs/no"}}, "The JSON schema .*no"),
        ({"json": {"enum": []}}, "The JSON schema .*Unsatisfiable"),
        ({"json": {"type": "string", "pattern": "(?=a)b"}}, "The JSON schema .*look-around"),
        ({"regex": "[a"}, "The regular expression .*unclosed"),
        ({"grammar": "root ::= other"}, "The grammar .*other"),
        ({"grammar": "nonsense"}, "The grammar .*nonsense"),
        ({"grammar": "start: other"}, "The grammar .*other"),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_said_before_anything_is_generated(form: dict[str, Any], message: str) -> None:
    engine = engine_of()
    with pytest.raises(GGPYError, match=message) as caught:
        engine.check([1], params(form))
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    with pytest.raises(GGPYError, match=message):
        engine.request([1], params(form))
    assert engine.n_evaluated == 0


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "one of json, json_object, regex, choice, grammar, but there is none"),
        ({"json_object": False}, "but there is none"),
        ({"regex": "a", "choice": ["b"]}, "but there is regex and choice"),
        ({"json": "{"}, "json is no JSON"),
        ({"json": [1]}, "a JSON schema"),
        ({"json": False}, "a JSON schema"),
        ({"json": {"a": {1, 2}}}, "json is no JSON"),
        ({"json_object": "yes"}, "json_object"),
        ({"regex": 3}, "regex"),
        ({"grammar": b"x"}, "grammar"),
        ({"choice": []}, "choice"),
        ({"choice": ["a", ""]}, "choice"),
        ({"regex": "a", "disable_any_whitespace": 1}, "disable_any_whitespace"),
        ({"json_object": True, "whitespace_pattern": 1}, "whitespace_pattern"),
    ],
    ids=str,
)
def test_values_of_the_wrong_kind(form: dict[str, Any], message: str) -> None:
    with pytest.raises(GGPYError, match=message):
        StructuredOutputsParams(**form)


def test_the_parameter_takes_nothing_else() -> None:
    with pytest.raises(GGPYError, match=r"structured_outputs is .*StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GGPYError, match=r"pip install 'ggpy\[guided\]'"):
        Grammar(ByteTokenizer(), StructuredOutputsParams(regex="a"))  # type: ignore[arg-type]


def test_a_vocabulary_is_made_once_and_goes_with_its_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(structured._Vocabulary):
        def __init__(self, tokenizer: Any) -> None:
            made.append(tokenizer.n_vocab)
            super().__init__(tokenizer)

    monkeypatch.setattr(structured, "_Vocabulary", Counted)
    tokenizer: Any = ByteTokenizer()
    for i in range(structured._KEPT + 5):
        Grammar(tokenizer, StructuredOutputsParams(regex=f"a{{{i}}}"))
    assert len(made) == 1
    assert len(structured._compiled[tokenizer].grammars) == structured._KEPT
    one, two = (Grammar(tokenizer, StructuredOutputsParams(regex="ab")) for _ in range(2))
    one.accept(ord("a"))
    two.accept(ord("a"))  # the same grammar, at a place of its own
    gone = weakref.ref(tokenizer)
    del tokenizer, one, two
    gc.collect()
    assert gone() is None
