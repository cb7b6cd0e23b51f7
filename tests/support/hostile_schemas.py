"""JSON schemas that nobody should send: invalid, contradictory, huge, deep, recursive, with keywords that cannot be
followed, patterns that explode, and names of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

DEEP, HUGE = 5000, 20_000


def nested(n: int, wrap: Any, inner: Any) -> Any:
    """A schema within n others."""
    for _ in range(n):
        inner = wrap(inner)
    return inner


#: Keywords that constrain, each where it says something. Some can be followed, some not.
KEYWORDS: list[dict[str, Any]] = [
    {"not": {"type": "string"}},
    {"type": "array", "uniqueItems": True},
    {"type": "array", "contains": {"const": 1}},
    {"type": "array", "contains": {}, "minContains": 2},
    {"type": "array", "contains": {}, "maxContains": 0},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False},
    {"type": "array", "items": [{"type": "integer"}]},
    {"type": "array", "items": {"type": "integer"}, "additionalItems": False},
    {"type": "array", "prefixItems": [{"type": "boolean"}], "unevaluatedItems": False},
    {"type": "object", "minProperties": 2},
    {"type": "object", "maxProperties": 1},
    {"type": "object", "propertyNames": {"pattern": "^a+$"}},
    {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "properties": {"a": {}}, "dependentRequired": {"a": ["b"]}},
    {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
    {"type": "object", "dependencies": {"a": ["b"]}},
    {"type": "object", "properties": {"a": {"type": "null"}}, "unevaluatedProperties": False},
    {"if": {"type": "string"}, "then": {"minLength": 3}, "else": {"type": "integer"}},
    {"then": {"minLength": 3}, "type": "null"},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    {"oneOf": [{"type": "integer"}, {"type": "string"}]},
    {"anyOf": [{"type": "string", "maxLength": 1}, {"type": "string", "minLength": 2, "maxLength": 4}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 7}]},
    {"allOf": [{"required": ["a"], "type": "object"}, {"properties": {"a": {"const": 1}}}]},
    {"type": "string", "contentEncoding": "base64"},
    {"type": "string", "contentMediaType": "application/json"},
    {"$dynamicRef": "#a"},
    {"$recursiveRef": "#"},
    {"$anchor": "a", "properties": {"x": {"$ref": "#a"}}},
    {"$id": "https://example.com/a", "$ref": "https://example.com/b"},
    {"$ref": "#/$defs/missing"},
    {"$ref": "file:///etc/passwd"},
    {"$ref": "http://127.0.0.1:1/x.json"},
    {"$schema": "http://json-schema.org/draft-03/schema#", "type": "any"},
    {"$schema": "https://example.com/unknown", "type": "null"},
    {"$vocabulary": {"https://example.com/v": True}, "type": "null"},
    {"type": "integer", "format": "int32"},
    {"type": "string", "nullable": True},
    {"discriminator": {"propertyName": "a"}, "type": "null"},
    {"type": "integer", "title": "t", "description": "d", "default": 3, "examples": [1], "deprecated": True},
    {"type": "null", "x-unknown": {"deep": [1]}, "$comment": "c", "readOnly": True},
    {"x-guidance": {"whitespace_flexible": True, "lenient": True}, "not": {}},
    {"x-guidance": {"whitespace_pattern": "x"}, "type": "array"},
    {"x-guidance": {"no such": 1}, "type": "null"},
    {"x-guidance": 5, "type": "null"},
]

#: Values of the wrong kind, and bounds that leave nothing.
WRONG: list[dict[str, Any]] = [
    {"type": 5},
    {"type": "thing"},
    {"type": []},
    {"type": ["string", "thing"]},
    {"type": ["null", "null"]},
    {"type": None},
    {"properties": []},
    {"properties": {"a": 3}},
    {"properties": {"a": "string"}},
    {"type": "object", "required": "a"},
    {"type": "object", "required": [1]},
    {"type": "object", "required": ["a", "a"]},
    {"required": ["never"], "type": "object", "additionalProperties": False},
    {"enum": {}},
    {"enum": []},
    {"enum": "abc"},
    {"enum": [{"a": [1, None]}, [], "x", 1.5, True, None]},
    {"enum": ["a", "a"]},
    {"enum": ["a"], "type": "integer"},
    {"const": "a", "minLength": 3},
    {"const": {"ü": [1, {"é": "\u2028"}]}},
    {"const": None},
    {"const": 1e400},
    {"minimum": "x", "type": "integer"},
    {"minimum": 5, "maximum": 3, "type": "integer"},
    {"exclusiveMinimum": 3, "exclusiveMaximum": 4, "type": "integer"},
    {"minimum": 1e308, "type": "number"},
    {"maximum": -1e308, "type": "number"},
    {"minimum": float("nan"), "type": "number"},
    {"minimum": float("inf"), "type": "number"},
    {"minimum": 10**40, "type": "integer"},
    {"minimum": -(10**40), "maximum": 10**40, "type": "integer"},
    {"minimum": 0.1, "maximum": 0.2, "type": "integer"},
    {"exclusiveMinimum": True, "minimum": 3, "type": "integer"},
    {"multipleOf": 0, "type": "number"},
    {"multipleOf": -3, "type": "integer"},
    {"multipleOf": 7, "minimum": 50, "maximum": 60, "type": "integer"},
    {"multipleOf": 7, "minimum": 50, "maximum": 55, "type": "integer"},
    {"multipleOf": 0.01, "type": "number"},
    {"multipleOf": 1e-300, "type": "number"},
    {"multipleOf": 1e300, "type": "number"},
    {"multipleOf": "x", "type": "number"},
    {"multipleOf": 2**63, "type": "integer"},
    {"type": "string", "minLength": -1},
    {"type": "string", "minLength": 1.5},
    {"type": "string", "minLength": 5, "maxLength": 3},
    {"type": "string", "maxLength": "x"},
    {"type": "string", "maxLength": 0},
    {"type": "string", "minLength": 2**64},
    {"type": "array", "minItems": 3, "maxItems": 2},
    {"type": "array", "minItems": "x"},
    {"type": "array", "maxItems": 0},
    {"type": "array", "items": False, "minItems": 1},
    {"type": "array", "items": 3},
    {"type": "array", "prefixItems": {}},
    {"anyOf": []},
    {"anyOf": {}},
    {"anyOf": [False, False]},
    {"anyOf": [3]},
    {"allOf": []},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"oneOf": []},
    {"$ref": 7},
    {"$ref": ""},
    {"$ref": "#"},
    {"$ref": "#/"},
    {"$ref": "#/properties/a"},
    {"$ref": "#/%zz"},
    {"$defs": 5, "type": "null"},
    {"$defs": {"a": 5}, "$ref": "#/$defs/a"},
    {"properties": {"a": False}, "required": ["a"], "type": "object"},
    {"properties": {"a": True}, "type": "object", "additionalProperties": False},
    {"additionalProperties": 3, "type": "object"},
    {"patternProperties": {"[": {}}, "type": "object"},
    {"patternProperties": [], "type": "object"},
    {"type": "string", "format": 5},
    {"type": "string", "format": "no such"},
    {"type": "string", "pattern": 5},
    {"if": 5, "type": "null"},
    {},
]

#: Patterns: what other engines explode on, what no automaton has, what is wrong, what is long.
PATTERNS = [
    "(a+)+$",
    "^(([a-z])+.)+[A-Z]([a-z])+$",
    "((a*)*)*b",
    "(a|aa)+$",
    "(a|a?)+$",
    "(.*a){20}",
    "(x+x+)+y",
    "^(a?){50}a{50}$",
    "(?=a)b",
    "(?!a)b",
    "(?<=a)b",
    "(?<!a)b",
    r"(a)\1",
    r"(?P<n>a)(?P=n)",
    r"\ba\b",
    r"\Ba",
    "(?>a+)b",
    "a*+b",
    "(?R)",
    "(?(1)a|b)",
    "[",
    "(",
    ")",
    "*",
    "a{2,1}",
    "a{99999999999}",
    "a{0,1000000}",
    "(a{1,1000}){1,1000}",
    "(((a{0,100}){0,100}){0,100})",
    "[z-a]",
    "\\",
    r"\p{Nope}",
    r"\p{L}{3}",
    r"\u{110000}",
    "^a$",
    "a^b$c",
    "^",
    "$",
    "",
    "^$",
    "\\x00",
    "[^\\x00-\\x7f]{2}",
    "é+",
    "\U0001f600{1,3}",
    "[\\s\\S]{0,5}",
    "(?i)abc",
    "(?m)^a$",
    "a|b|",
    "|" * 200,
    "a" * 3000,
    "|".join(f"w{i}" for i in range(2000)),
    "(" * 200 + "a" + ")" * 200,
    "(" * 5000 + "a" + ")" * 5000,
    "[a-z]{3}-\\d{4}",
    "^(\\d{3}|[A-Z]{2,4})(-[a-f0-9]{8}){1,3}$",
    "\ud800",
    '"',
    '\\"{3}',
    "\\n{2}",
    ".{3}",
    "(?:(?:25[0-5]|2[0-4]\\d|1?\\d?\\d)(?:\\.(?!$)|$)){4}",
    "(?s).*",
    "[\\w.+-]+@[\\w-]+\\.[\\w.]+",
]

FORMATS = [
    "date-time",
    "date",
    "time",
    "duration",
    "email",
    "idn-email",
    "hostname",
    "idn-hostname",
    "ipv4",
    "ipv6",
    "uri",
    "uri-reference",
    "iri",
    "uuid",
    "json-pointer",
    "relative-json-pointer",
    "uri-template",
    "regex",
    "byte",
]

#: Names of members, which are written into the answer as they are.
KEYS = [
    "",
    " ",
    "é",
    "名前",
    "\U0001f600",
    "\ud800",
    "a\ud83d",
    "\x00",
    "\x7f",
    "\n",
    '"',
    "\\",
    "\\u0041",
    "a.b/c~d",
    "$ref",
    "type",
    "__proto__",
    "%",
    "{}",
    "k" * 5000,
    "\u2028",
    "\ufeff",
    "</script>",
    "{{ x }}",
    "<|im_end|>",
    "<|end|>",
]


def hostile_schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    """A name and a schema, some 270 times."""
    for i, schema in enumerate(KEYWORDS):
        yield f"keyword {i} {'/'.join(schema)}", schema
    for i, schema in enumerate(WRONG):
        yield f"wrong {i} {'/'.join(schema)}", schema
    for i, pattern in enumerate(PATTERNS):
        yield f"pattern {i} {pattern[:20]!a}", {"type": "string", "pattern": pattern}
    for name in FORMATS:
        yield f"format {name}", {"type": "string", "format": name}
    for key in KEYS:
        yield (
            f"key {key[:10]!a}",
            {
                "type": "object",
                "properties": {key: {"type": "boolean"}},
                "required": [key],
                "additionalProperties": False,
            },
        )
        yield (
            f"pattern of keys {key[:10]!a}",
            {"type": "object", "patternProperties": {key: {"type": "null"}}, "additionalProperties": False},
        )
    for n in (60, 200, DEEP):
        yield (
            f"{n} objects deep",
            nested(
                n,
                lambda s: {"type": "object", "properties": {"a": s}, "required": ["a"], "additionalProperties": False},
                {"type": "null"},
            ),
        )
        yield (
            f"{n} arrays deep",
            nested(n, lambda s: {"type": "array", "items": s, "minItems": 1, "maxItems": 1}, {"const": 1}),
        )
        for word in ("anyOf", "allOf", "oneOf"):
            yield f"{n} {word} deep", nested(n, lambda s, word=word: {word: [s]}, {"const": 1})
        yield f"{n} not deep", nested(n, lambda s: {"not": s}, {"const": 1})
        yield f"{n} values deep", {"const": nested(n, lambda v: [v], 1)}
        yield (
            f"{n} $refs on end",
            {
                "$ref": "#/$defs/0",
                "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(n)} | {str(n): {"const": 1}},
            },
        )
    item = {"$ref": "#"}
    yield "itself", item
    yield (
        "recursive",
        {
            "type": "object",
            "properties": {"next": {"anyOf": [item, {"type": "null"}]}},
            "required": ["next"],
            "additionalProperties": False,
        },
    )
    yield "endless", {"type": "object", "properties": {"next": item}, "required": ["next"]}
    yield "endless list", {"type": "array", "items": item, "minItems": 1}
    yield "tree", {"type": "array", "items": item}
    yield "two by turns", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    yield "all of itself", {"allOf": [item, {"type": "object"}]}
    yield "any of itself", {"anyOf": [item, {"type": "null"}]}
    yield "not itself", {"not": item}
    yield (
        "doubling",
        {
            "$ref": "#/$defs/30",
            "$defs": {"0": {"const": 1}}
            | {
                str(i): {
                    "type": "array",
                    "prefixItems": [{"$ref": f"#/$defs/{i - 1}"}] * 2,
                    "minItems": 2,
                    "items": False,
                }
                for i in range(1, 31)
            },
        },
    )
    yield (
        "doubling allOf",
        {
            "$ref": "#/$defs/30",
            "$defs": {"0": {"type": "object"}}
            | {str(i): {"allOf": [{"$ref": f"#/$defs/{i - 1}"}] * 2} for i in range(1, 31)},
        },
    )
    yield (
        "doubling anyOf",
        {
            "$ref": "#/$defs/30",
            "$defs": {"0": {"const": 1}}
            | {str(i): {"anyOf": [{"$ref": f"#/$defs/{i - 1}"}] * 2} for i in range(1, 31)},
        },
    )
    yield (
        "product of anyOf",
        {
            "allOf": [
                {"anyOf": [{"properties": {f"a{i}": {"const": j}}, "type": "object"} for j in range(4)]}
                for i in range(12)
            ]
        },
    )
    yield "many values", {"enum": [f"value {i}" for i in range(HUGE)]}
    yield "many members", {"type": "object", "properties": {f"a{i}": {"type": "integer"} for i in range(HUGE // 20)}}
    yield (
        "many needed members",
        {
            "type": "object",
            "properties": {f"a{i}": {"const": 1} for i in range(100)},
            "required": [f"a{i}" for i in range(100)],
            "additionalProperties": False,
        },
    )
    yield "many needed, undeclared", {"type": "object", "required": [f"a{i}" for i in range(HUGE // 200)]}
    yield (
        "many choices",
        {
            "anyOf": [
                {"type": "object", "properties": {f"a{i}": {"type": "integer"}}, "required": [f"a{i}"]}
                for i in range(1000)
            ]
        },
    )
    yield "many oneOf", {"oneOf": [{"const": i} for i in range(1000)]}
    yield "many patterns", {"type": "object", "patternProperties": {f"^a{i}.*b$": {"type": "null"} for i in range(300)}}
    yield "a long value", {"const": "x" * 1_000_000}
    yield "a long description", {"type": "null", "description": "x" * 1_000_000}
    for n in (1000, 10**6, 10**9, 2**63):
        yield f"minLength {n}", {"type": "string", "minLength": n}
        yield f"maxLength {n}", {"type": "string", "maxLength": n}
        yield f"minItems {n}", {"type": "array", "items": {"const": 1}, "minItems": n}
        yield f"maxItems {n}", {"type": "array", "items": {"const": 1}, "maxItems": n}
        yield (
            f"of {n} lists of {n}",
            {"type": "array", "items": {"type": "array", "items": {"const": 1}, "minItems": n}, "minItems": n},
        )
