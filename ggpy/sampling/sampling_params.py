"""Parameters for choosing tokens and stopping: their defaults and their ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ggpy import arguments
from ggpy.errors import GGPYError, quoted
from ggpy.gguf.metadata import TypedMetadata
from ggpy.sampling.structured import StructuredOutputsParams

# The stages, by llama.cpp's names, in its order.
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")

#: Samplers that play a part only where they are named.
NAMED_SAMPLERS = ("infill",)

# Other spellings that llama.cpp takes.
_SPELLINGS = {
    "top-n-sigma": "top_n_sigma",
    "top-k": "top_k",
    "top-p": "top_p",
    "nucleus": "top_p",
    "typical_p": "typ_p",
    "typical-p": "typ_p",
    "typical": "typ_p",
    "typ-p": "typ_p",
    "typ": "typ_p",
    "min-p": "min_p",
    "temp": "temperature",
}

# What holds where neither the caller nor the model's file says anything: llama.cpp's defaults.
DEFAULTS: dict[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "typical_p": 1.0,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.1,
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "repetition_penalty": 1.0,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": -1,
    "dry_sequence_breakers": ("\n", ":", '"', "*"),
    "samplers": SAMPLERS,
}

# The GGUF keys that carry a model's own sampling defaults.
FILE_KEYS: dict[str, str] = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "xtc_probability": "general.sampling.xtc_probability",
    "xtc_threshold": "general.sampling.xtc_threshold",
    "mirostat": "general.sampling.mirostat",
    "mirostat_tau": "general.sampling.mirostat_tau",
    "mirostat_eta": "general.sampling.mirostat_eta",
    "repetition_penalty": "general.sampling.penalty_repeat",
    "repeat_last_n": "general.sampling.penalty_last_n",
    "samplers": "general.sampling.sequence",
}

_MOST = 2**31 - 1

# Inclusive ranges, and how a message words them.
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, 100.0, "from 0 (greedy) to 100"),
    "top_p": (0.0, 1.0, "from 0 to 1 (1 is off)"),
    "min_p": (0.0, 1.0, "from 0 (off) to 1"),
    "typical_p": (0.0, 1.0, "from 0 to 1 (1 is off)"),
    "top_n_sigma": (-1.0, 1e6, "above 0, or -1 (off)"),
    "xtc_probability": (0.0, 1.0, "from 0 (off) to 1"),
    "xtc_threshold": (0.0, 1.0, "from 0 to 1 (above 0.5 is off)"),
    "dynatemp_range": (0.0, 100.0, "from 0 (off) to 100"),
    "dynatemp_exponent": (0.0, 100.0, "from 0 to 100"),
    "mirostat_tau": (0.0, 100.0, "from 0 to 100"),
    "mirostat_eta": (0.0, 100.0, "from 0 to 100"),
    "repetition_penalty": (1e-3, 1e3, "above 0 (1 is off)"),
    "presence_penalty": (-2.0, 2.0, "from -2 to 2 (0 is off)"),
    "frequency_penalty": (-2.0, 2.0, "from -2 to 2 (0 is off)"),
    "dry_multiplier": (0.0, 1e6, "from 0 (off)"),
    "dry_base": (1.0, 1e3, "from 1"),
}
_WHOLE_RANGES: dict[str, tuple[int, int, str]] = {
    "top_k": (-1, _MOST, "a whole number from 1, or 0 (off)"),
    "repeat_last_n": (-1, _MOST, "a whole number from 1, 0 (off) or -1 (the whole context)"),
    "dry_allowed_length": (0, _MOST, "a whole number from 0"),
    "dry_penalty_last_n": (-1, _MOST, "a whole number from 1, 0 (off) or -1 (the whole context)"),
    "mirostat": (0, 2, "0 (off), 1 or 2"),
    "max_tokens": (1, _MOST, "a whole number from 1"),
    "min_tokens": (0, _MOST, "a whole number from 0"),
    "logprobs": (-1, _MOST, "a whole number from 0, or -1 (every token of the vocabulary)"),
    "prompt_logprobs": (-1, _MOST, "a whole number from 0, or -1 (every token of the vocabulary)"),
    "truncate_prompt_tokens": (-1, _MOST, "a whole number from 1, or -1 (as many as the context holds)"),
    "n": (1, 1024, "a whole number from 1 to 1024"),
    "best_of": (1, 1024, "a whole number from 1 to 1024"),
}
_NEEDED = {"n", "min_tokens"}  # numbers that are never None


@dataclass(frozen=True)
class SamplingParams:
    """Parameters for choosing tokens and stopping. The names are vLLM's, and llama.cpp's where vLLM has none;
    docs/sampling.md defines every one.

    `None` means "not given": `resolved` fills it from the model's file, then from `DEFAULTS`.

    temperature: 0 is greedy: the likeliest token after biases, penalties and DRY. top_k: 0 or -1 is off.
    top_p, typical_p: 1 is off. min_p: 0 is off. top_n_sigma: logits within so many standard deviations of the largest;
        -1 is off.
    xtc_probability: how often all but the least likely of the tokens that reach `xtc_threshold` are left out; 0 is off.
    dynatemp_range, dynatemp_exponent: a temperature within so much of `temperature`, by the entropy; 0 is off.
    mirostat: 1 or 2 hold the surprise of the text at `mirostat_tau` bits, adapting by `mirostat_eta`, in place of every
        stage that leaves tokens out; 0 is off.
    repetition_penalty, presence_penalty, frequency_penalty: over the last `repeat_last_n` tokens, prompt included
        (-1: the whole context).
    dry_multiplier: a penalty on tokens that would prolong a repetition, times `dry_base` to the power of its length
        beyond `dry_allowed_length`, within the last `dry_penalty_last_n` tokens (-1: the whole context); no repetition
        reaches across one of `dry_sequence_breakers`. 0 is off.
    samplers: the stages in their order, a list or one text with semicolons; those left out play no part.
    seed: the same seed gives the same text; None or -1 draws a new one.
    max_tokens: None means until an end token or the end of the context. min_tokens: neither an end token nor one of
        `stop_token_ids` is chosen, and no stop string ends the text, before so many tokens.
    stop: strings that end the text; control tokens may be written in them ("<|im_start|>user"). They are no part of it
        unless `include_stop_str_in_output`, which also shows the token that ended it.
    stop_token_ids: tokens that end it. ignore_eos: end-of-generation tokens are never chosen.
    bad_words: texts that are not generated: the last token of one is never chosen after its others.
    skip_special_tokens: control tokens are no part of the text.
    logit_bias: token id to a number added to its logit. n: answers per prompt. best_of: answers that are generated for
        each prompt, of which the `n` of the highest mean log-probability are returned; None: `n`.
    logprobs: for each generated token, the natural logarithm of its probability and of the `logprobs` likeliest, by the
        model's own logits: before temperature, biases, penalties and every other stage; -1: of the whole vocabulary.
        prompt_logprobs: the same for each token of the prompt but the first.
    structured_outputs: the form that the answer has to have; forced tokens are taken without asking the model, and the
        answer ends where nothing may follow, whatever `min_tokens` says.
    truncate_prompt_tokens: only so many of the last tokens of the prompt are kept; -1: as many as the context holds.

    Raises GGPYError on a value out of its range or of the wrong kind.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: str | Sequence[str] | None = None
    samplers: str | Sequence[str] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    bad_words: str | Sequence[str] | None = ()
    skip_special_tokens: bool = True
    logit_bias: Mapping[int, float] | None = None
    n: int = 1
    best_of: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: StructuredOutputsParams | None = None
    # Where the unset values came from, so that a bad value in a file is blamed on the file.
    _source: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name, (low, high, words) in _RANGES.items():
            value = getattr(self, name)
            if value is not None:
                put(name, arguments.number(name + self._source, value, low, high, words))
        for name, (least, most, words) in _WHOLE_RANGES.items():
            value = getattr(self, name)
            if value is None and name not in _NEEDED:
                continue
            if isinstance(value, (float, np.floating)) and value == value // 1:  # 40.0; neither NaN nor infinity
                value = int(value)
            put(name, arguments.whole(name + self._source, value, least, most, words))
        if self.top_k == -1:
            put("top_k", 0)  # one word for off
        if self.truncate_prompt_tokens == 0:
            words = _WHOLE_RANGES["truncate_prompt_tokens"][2]
            raise arguments.wrong("truncate_prompt_tokens", 0, words)
        if self.seed is not None:
            seed = arguments.whole("seed", self.seed, -1, 2**64 - 1, "a whole number from 0, or -1 (a new one)")
            put("seed", None if seed == -1 else seed)
        for name in ("stop", "bad_words"):
            put(name, arguments.texts(name, getattr(self, name)))
        if self.dry_sequence_breakers is not None:
            put("dry_sequence_breakers", arguments.texts("dry_sequence_breakers", self.dry_sequence_breakers))
        if self.samplers is not None:
            put("samplers", _samplers("samplers" + self._source, self.samplers))
        ends = () if self.stop_token_ids is None else self.stop_token_ids
        put("stop_token_ids", tuple(arguments.token_ids("stop_token_ids", ends)))
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            put(name, arguments.flag(name, getattr(self, name)))
        if self.logit_bias is not None:
            put("logit_bias", arguments.biases("logit_bias", self.logit_bias))
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputsParams):
            raise arguments.wrong("structured_outputs", self.structured_outputs, "StructuredOutputsParams")
        self._check_together()

    def _check_together(self) -> None:
        """Raise GGPYError for values that contradict each other."""
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise GGPYError(
                f"min_tokens is {self.min_tokens}, but max_tokens is {self.max_tokens}; make one no larger than the"
                " other."
            )
        if self.best_of is not None and self.best_of < self.n:
            raise GGPYError(f"best_of is {self.best_of}, but n is {self.n}; generate at least as many as are returned.")
        if self.best_of is not None and self.best_of > self.n and self.temperature == 0.0:
            raise GGPYError("best_of needs answers that differ, but at temperature 0 all are the same; raise it.")

    def resolved(self, file_defaults: Mapping[str, Any] | None = None) -> SamplingParams:
        """The same parameters with every number set: the caller's, else the file's, else `DEFAULTS`.

        file_defaults: what `file_sampling_defaults` returned. They are meant for sampling; a caller who sets the
        temperature to 0 wants the likeliest token as it is, so the file's penalties are then ignored.
        """
        if file_defaults is not None and not isinstance(file_defaults, Mapping):
            raise arguments.wrong("file_defaults", file_defaults, "a dict of parameters and their values")
        unset = {f.name for f in fields(self) if f.name in DEFAULTS and getattr(self, f.name) is None}
        from_file = {k: v for k, v in (file_defaults or {}).items() if k in unset and self.temperature != 0.0}
        checked = replace(SamplingParams(), **from_file, _source=" in the model's file") if from_file else None
        values: dict[str, Any] = {k: getattr(checked, k) if k in from_file else DEFAULTS[k] for k in unset}
        return replace(self, **values)

    @property
    def penalizes(self) -> bool:
        """True where a penalty on seen tokens is on (resolved parameters)."""
        penalties = self.repetition_penalty, self.frequency_penalty, self.presence_penalty
        return bool(self.repeat_last_n) and penalties != (1.0, 0.0, 0.0)

    def active_samplers(self) -> tuple[str, ...]:
        """The samplers that change anything, in their order (resolved parameters).

        At temperature 0 only penalties and DRY do, which change which token is the likeliest. Mirostat takes the place
        of every sampler but these and the temperature.
        """
        on = {
            "penalties": self.penalizes,
            "dry": bool(self.dry_multiplier and self.dry_penalty_last_n),
            "top_n_sigma": (self.top_n_sigma or 0.0) > 0.0,
            "top_k": bool(self.top_k),
            "typ_p": self.typical_p != 1.0,
            "top_p": self.top_p != 1.0,
            "min_p": bool(self.min_p),
            "xtc": bool(self.xtc_probability) and (self.xtc_threshold or 0.0) <= 0.5,
            "temperature": self.temperature != 1.0 or bool(self.dynatemp_range),
            "infill": True,
        }
        named = [name for name in self.samplers or () if on[name]]
        if self.temperature and not self.mirostat:
            return tuple(named)
        first = [name for name in named if name in ("penalties", "dry")]
        if self.temperature and on["temperature"]:
            first.append("temperature")
        return tuple(first)


def _samplers(name: str, value: Any) -> tuple[str, ...]:
    """The names of samplers, as llama.cpp writes them. Raises GGPYError."""
    known = (*SAMPLERS, *NAMED_SAMPLERS)
    words = f"names out of {';'.join(known)}, in the order wanted"
    names = value.split(";") if isinstance(value, str) else arguments.several(name, value, words)
    found = []
    for one in names:
        if not isinstance(one, str):
            raise arguments.wrong(name, value, words)
        one = one.strip()
        one = _SPELLINGS.get(one, one)
        if one and one not in known:
            raise GGPYError(f"{name} names {quoted(one, 40)}, which is no sampler here; write {words}.")
        found += [one] if one else []
    return tuple(found)


def params_or_default(name: str, value: Any) -> SamplingParams:
    """The parameters that a caller passed under that name, or the defaults for None. Raises GGPYError."""
    if value is None:
        return SamplingParams()
    if not isinstance(value, SamplingParams):
        raise arguments.wrong(name, value, "SamplingParams")
    return value


def file_sampling_defaults(metadata: Mapping[str, Any], where: str = "the model's file") -> dict[str, Any]:
    """The sampling defaults that the metadata of the GGUF file `where` state, by parameter name."""
    typed = TypedMetadata(metadata, where)
    found: dict[str, Any] = {}
    for name, key in FILE_KEYS.items():
        found[name] = typed.find(key, str) if name == "samplers" else typed.find(key, float)
    return {name: value for name, value in found.items() if value is not None}
