"""Hundreds of schemas that nobody should send: each is refused in a sentence before anything is evaluated, or every
answer that ends by itself is as the schema says."""

from __future__ import annotations

import datetime
import ipaddress
import json
import uuid
from typing import Any

import pytest

from ggpy.engine.engine import Engine
from ggpy.errors import GGPYError
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.sampling.structured import StructuredOutputsParams
from tests.support.doubles import ByteTokenizer, FakeRuntime
from tests.support.hangs import ends
from tests.support.hostile_schemas import hostile_schemas, nested

jsonschema = pytest.importorskip("jsonschema")
resource = pytest.importorskip("resource")
pytest.importorskip("llguidance")

ALL = list(hostile_schemas())
TOKENIZER: Any = ByteTokenizer()
#: What the validator itself explodes on, or reads otherwise: it takes patterns for Python's, and copies what doubles.
NOT_VALIDATED = ("pattern", "doubling", "itself", "two by turns", "any of itself", "deep", "$refs")
CHECKS = {
    "date": datetime.date.fromisoformat,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
}


def test_there_are_enough() -> None:
    assert len({name for name, _ in ALL}) == len(ALL) > 250


@pytest.mark.parametrize("schema", [schema for _, schema in ALL], ids=[name for name, _ in ALL])
def test_a_hostile_schema(schema: dict[str, Any], request: pytest.FixtureRequest) -> None:
    engine = Engine(FakeRuntime(n_ctx=400, n_slots=2), TOKENIZER)  # type: ignore[arg-type]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ends():
        try:
            form = StructuredOutputsParams(json=schema)
            asked = {"seed": 1, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "max_tokens": 100}
            params = SamplingParams(**asked, structured_outputs=form).resolved()  # type: ignore[arg-type]
            answer = engine.request([1], params)
        except GGPYError as error:
            is_one_sentence(str(error))
            assert engine.n_evaluated == 0
            return
        engine.add(answer)
        while engine.has_work:
            engine.step()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10
    assert answer.error is None
    if answer.finish_reason == "stop":
        follows(json.loads(answer.text), schema, request.node.callspec.id)


def is_one_sentence(said: str) -> None:
    assert said.startswith(("The JSON schema cannot be followed (", "json "))
    assert len(said) < 300
    assert "\n" not in said
    assert "state>" not in said


def follows(value: Any, schema: dict[str, Any], name: str) -> None:
    if "format" in schema and schema["format"] in CHECKS:
        CHECKS[schema["format"]](value)
    if "pattern" in schema:
        assert isinstance(value, str)
    elif name.startswith("key "):
        assert set(value) == set(schema["properties"])
        assert all(isinstance(one, bool) for one in value.values())
    elif not any(word in name for word in NOT_VALIDATED):
        array_form = isinstance(schema.get("items"), list)  # of drafts before 2020
        (jsonschema.Draft7Validator if array_form else jsonschema.Draft202012Validator)(schema).validate(value)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#"}, r"a \$ref or a rule leads to itself"),
        ({"properties": {f"a{i}": {} for i in range(600)}, "type": "object"}, "too many properties or alternatives"),
        ({"const": "x" * 600_000}, "json takes 600013 bytes"),
        ({"minimum": float("nan")}, "json is no JSON .*[Oo]ut of range"),
        ({"properties": {"a\ud800": {}}}, r"holds '\\ud800', half a surrogate pair"),
        ({"const": nested(150, lambda value: [value], 1)}, "it is nested more than 120 deep"),
        ({"x-guidance": {"coerce_one_of": True}, "oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"x-guidance": {"lenient": True}, "not": {"type": "string"}}, '"not"'),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_only_the_first_choice_shows_is_said_before_it(schema: dict[str, Any], words: str) -> None:
    engine = Engine(FakeRuntime(), TOKENIZER)  # type: ignore[arg-type]
    with pytest.raises(GGPYError, match=words):
        engine.check([1], SamplingParams(structured_outputs=StructuredOutputsParams(json=schema)).resolved())


def test_a_long_text_that_is_forced_is_taken_at_once() -> None:
    """Without a step, and without asking again for what is left of it."""
    engine = Engine(FakeRuntime(n_ctx=6000), TOKENIZER)  # type: ignore[arg-type]
    form = StructuredOutputsParams(json={"const": "y" * 5000})
    request = engine.request([1], SamplingParams(temperature=0, structured_outputs=form).resolved())
    engine.add(request)
    with ends():
        while engine.has_work:
            engine.step()
    assert request.text == json.dumps("y" * 5000)
    assert engine.runtime.batches == [1]  # type: ignore[attr-defined]
