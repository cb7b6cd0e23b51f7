"""Structured outputs: answers that follow a JSON schema, a regular expression, a choice of texts or a grammar.

llguidance, an optional package, says at each token which ones may follow. It is given the bytes of every token of the
vocabulary once a model, and knows a schema once it has compiled it.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggpy import arguments
from ggpy.errors import GGPYError, shown
from ggpy.sampling.stages import Indices

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from ggpy.text.tokenizer import Tokenizer

#: White space between the parts of JSON: a blank, or a line's end and some indentation, as llama.cpp allows. Without a
#: bound a small model may go on with blanks until its context is full.
_WHITESPACE = r"[ ]|\n[ \t]{0,20}"
_KINDS = ("json", "json_object", "regex", "choice", "grammar")
_KEPT = 32  # compiled grammars of a model
_MOST_SCHEMA = 500_000  # bytes: a text of a million that has to be written took 15 s and 250 MB to begin with
#: Bytes of stack for each character: llguidance calls itself for every $ref within another, and takes up to 27 KB then.
_STACK = 1024


#: Sets of tokens that llguidance allows together where the grammar goes on with any text of such characters, beside its
#: own ones for JSON: it looks at the others one by one. "[A-Za-z0-9 ,.]{10000}" took 0.98 ms a mask, and now 0.21.
_SLICES = ("[a-z]{1,10}", "[A-Za-z]{1,10}", "[A-Za-z0-9]{1,10}", "[A-Za-z0-9 ]{1,10}", "[A-Za-z0-9 ]{1,30}")


@dataclass(frozen=True)
class StructuredOutputsParams:
    """The form that an answer has to have, by one of these. The names are vLLM's.

    json: a JSON schema, as a dictionary or as text. json_object: any JSON object. regex: a regular expression that the
    whole answer matches, in Rust's syntax, where a digit may be of any script. choice: texts, of which the answer is
    one. grammar: a grammar in llguidance's Lark or in llama.cpp's GBNF, whose first rule is `start` or `root`.
    disable_any_whitespace: JSON is written without blanks between its parts. whitespace_pattern: a regular expression
    for those blanks.

    Raises GGPYError on a value of the wrong kind; whether it can be followed is known when a model is there.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        if self.json_object is not None and not arguments.flag("json_object", self.json_object):
            object.__setattr__(self, "json_object", None)
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(given) if given else "none of them"
            raise GGPYError(f"Structured outputs take one of {', '.join(_KINDS)}, but there is {said}.")
        if self.json is not None:
            object.__setattr__(self, "json", _schema(self.json))
        for name in ("regex", "grammar", "whitespace_pattern"):
            if getattr(self, name) is not None:
                arguments.text(name, getattr(self, name))
        if self.choice is not None:
            object.__setattr__(self, "choice", arguments.texts("choice", self.choice))
            if not self.choice:
                raise arguments.wrong("choice", self.choice, "a list of texts, one at least")
        arguments.flag("disable_any_whitespace", self.disable_any_whitespace)

    def compiled(self) -> str:
        """The grammar in llguidance's own form, not checked. Raises GGPYError."""
        llguidance = _llguidance()
        if self.regex is not None:
            return str(llguidance.LLMatcher.grammar_from_regex(self.regex))
        try:
            if self.choice is not None:
                return str(llguidance.grammar_from("choice", json.dumps(self.choice)))
            if self.grammar is not None:
                return str(llguidance.grammar_from("grammar", self.grammar))
            schema = {"type": "object"} if self.json_object else self.json
            options: dict[str, Any] = {"whitespace_pattern": self.whitespace_pattern or _WHITESPACE}
            if self.disable_any_whitespace:
                options = {"whitespace_flexible": False}
            options |= {"lenient": False, "coerce_one_of": False}  # whatever the schema's "x-guidance" says
            return str(llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options))
        except ValueError as error:
            raise self.refused(str(error)) from None

    def refused(self, message: str) -> GGPYError:
        """An error that names the part which cannot be followed."""
        name = "grammar" if self.json is None else "JSON schema"
        name = name if self.regex is None else "regular expression"
        said = " ".join(message.split())
        if "recursion limit" in said:
            said = "it is nested more than 120 deep"
        return GGPYError(f"The {name} cannot be followed ({shown(said, 180)}); replace that part of it.")


def _schema(value: Any) -> Any:
    """A JSON schema, out of text where it is that. Raises GGPYError."""
    words = "a JSON schema: a dictionary, or the text of one"
    given = value if isinstance(value, (str, dict)) else dict(value) if isinstance(value, Mapping) else None
    if given is None:
        raise arguments.wrong("json", value, words)
    try:
        found = json.loads(given if isinstance(given, str) else json.dumps(given))
        n = len(json.dumps(found, ensure_ascii=False, allow_nan=False).encode())
    except RecursionError:
        raise GGPYError("json is nested too deeply for a JSON schema.") from None
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise GGPYError(f"json holds {half}, half a surrogate pair, which no JSON text can; leave it out.") from None
    except (ValueError, TypeError) as error:
        raise GGPYError(f"json is no JSON ({shown(error, 100)}); it must be {words}.") from None
    if not isinstance(found, dict):
        raise arguments.wrong("json", value, words)
    if n > _MOST_SCHEMA:
        raise GGPYError(f"json takes {n} bytes, but a schema may take {_MOST_SCHEMA}; make it shorter.")
    return found


_FEW = 16  # at most one in so many bytes of a mask allows a token: these are then told one by one


class Mask(NamedTuple):
    """Which tokens may follow: few, by their ids, as between the values of JSON; or many, by their bits."""

    allowed: Indices | None  # the ids of all that may
    bits: NDArray[np.int32] | None  # [n]: a bit a token; of tokens from 32 n on none may follow


class Grammar:
    """Tokens that may follow in one answer. Made for a model and parameters; raises GGPYError where these cannot be
    followed, or where llguidance is not installed."""

    def __init__(self, tokenizer: Tokenizer, params: StructuredOutputsParams) -> None:
        self.n_words = -(-tokenizer.n_vocab // 32)  # of a mask's bits, in int32
        self.matcher = _matcher(tokenizer, params)
        self._mask: Mask | None = None  # of the next token, once it is known
        self._forced: list[int] | None = None

    @property
    def finished(self) -> bool:
        """True where nothing but an end can follow. Raises GGPYError where the grammar grows too large to follow."""
        self._check()
        return bool(self.matcher.is_stopped())

    def forced(self) -> list[int]:
        """The tokens that follow whatever the model says: those that spell the only text possible, as the tokenizer
        spells it."""
        if self._forced is None:
            self._forced = list(self.matcher.compute_ff_tokens())
        return self._forced

    def accept(self, token: int) -> None:
        """Go on after a token. Raises GGPYError where the grammar grows too large to follow."""
        forced, self._mask, self._forced = self._forced, None, None
        if forced and forced[0] == token:
            self._forced = forced[1:] or None  # who asks again for each of 5000 waits for seconds
        if not self.matcher.consume_token(token):
            self._check()

    def learn(self, bits: NDArray[np.int32]) -> None:
        """Take the mask of the next token, int32 [n_words], a bit a token."""
        octets = bits.view(np.uint8)
        if np.count_nonzero(octets) * _FEW > octets.size:
            self._mask = Mask(None, bits)
            return
        some = np.flatnonzero(octets)
        rows, columns = np.nonzero(np.unpackbits(octets[some], bitorder="little").reshape(-1, 8))
        self._mask = Mask(8 * some[rows] + columns, None)

    def mask(self) -> Mask:
        """The mask of the next token. Raises GGPYError where the grammar grows too large to follow."""
        if self._mask is None:
            bits = np.empty(self.n_words, np.int32)
            self.matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
            self.learn(bits)
        self._check()
        assert self._mask is not None
        return self._mask

    def _check(self) -> None:
        if self.matcher.is_error():
            raise GGPYError(f"The structured output cannot go on ({shown(self.matcher.get_error(), 150)}).")


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = range(tokenizer.n_vocab)
        self.tokens = [tokenizer.token_bytes(token) for token in ids]
        # What shows nothing is no text, whatever the vocabulary calls it.
        self.special_token_ids = [token for token in ids if not tokenizer.token_bytes(token, special=False)]
        self.bos_token_id = tokenizer.bos
        self.eos_token_id = tokenizer.eos if tokenizer.eos is not None else min(tokenizer.eog, default=0)
        self._tokenizer = weakref.ref(tokenizer)  # which keeps what is made of this

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            raise TypeError("text, no bytes")  # how llguidance finds out what it may pass
        tokenizer = self._tokenizer()
        return tokenizer.tokenize(text, add_special=False, continues=True) if tokenizer is not None else []


@dataclass
class _Compiled:
    """A vocabulary, and the grammars compiled for it, the latest last."""

    vocabulary: LLTokenizer
    grammars: dict[str, LLMatcher]


_compiled: weakref.WeakKeyDictionary[Tokenizer, _Compiled] = weakref.WeakKeyDictionary()
_compiling = threading.Lock()  # requests are checked by whichever thread they come from


def _matcher(tokenizer: Tokenizer, params: StructuredOutputsParams) -> LLMatcher:
    """A matcher at the beginning of an answer. Raises GGPYError."""
    llguidance = _llguidance()
    grammar = params.compiled()
    with _compiling:
        known = _compiled.get(tokenizer)
        if known is None:
            ends = sorted(tokenizer.eog)
            if not ends:
                raise GGPYError("Structured outputs need a token that ends an answer, and the model's file names none.")
            vocabulary = llguidance.LLTokenizer(
                llguidance.TokenizerWrapper(_Vocabulary(tokenizer)), n_vocab=tokenizer.n_vocab, eos_token=ends,
                slices=[*_SLICES, *llguidance.LLTokenizer.general_slices()],
            )  # fmt: skip
            known = _compiled[tokenizer] = _Compiled(vocabulary, {})
        matcher = known.grammars.pop(grammar, None)
        if matcher is None:
            matcher = _compile(grammar, known.vocabulary, params)
        known.grammars[grammar] = matcher
        while len(known.grammars) > _KEPT:
            del known.grammars[next(iter(known.grammars))]
        return matcher.deep_copy()


def _compile(grammar: str, vocabulary: LLTokenizer, params: StructuredOutputsParams) -> LLMatcher:
    """A grammar's matcher, in a thread whose stack is deep enough for it. Raises GGPYError."""
    matchers: list[LLMatcher] = []
    errors: list[GGPYError] = []

    def compile() -> None:
        try:
            matchers.append(_compiled_here(grammar, vocabulary, params))
        except GGPYError as error:
            errors.append(error)

    before = threading.stack_size(max(16 << 20, _STACK * len(grammar)))
    try:
        thread = threading.Thread(target=compile, name="ggpy-grammar", daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    for error in errors:
        raise error
    return matchers[0]


def _compiled_here(grammar: str, vocabulary: LLTokenizer, params: StructuredOutputsParams) -> LLMatcher:
    llguidance = _llguidance()
    limits = llguidance.LLParserLimits(verbose_errors=False)  # else they are pages of its state
    wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, vocabulary, limits=limits)
    if wrong or messages:
        raise params.refused(messages[0])
    matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    # The first choice is tried: what is too large, or has no end, shows only there.
    trial = matcher.deep_copy()
    trial.consume_tokens(trial.compute_ff_tokens())
    trial.compute_bitmask()
    if not trial.is_error():
        return matcher
    message = trial.get_error()
    if "NoExtension" in message:
        message = "no text can follow it: a $ref or a rule leads to itself alone"
    elif "items" in message:
        message = f"too many properties or alternatives in one place: {message}"
    raise params.refused(message)


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise GGPYError("Structured outputs need the package llguidance: pip install 'ggpy[guided]'.") from None
    return llguidance
