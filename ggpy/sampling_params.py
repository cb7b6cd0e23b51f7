"""How to choose tokens and when to stop: the parameters, what holds where they are not given, and their ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ggpy.errors import GGPYError

# What holds where neither the caller nor the model's file says anything: llama.cpp's defaults.
DEFAULTS: dict[str, float | int] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}

# The GGUF keys that carry a model's own sampling defaults.
FILE_KEYS: dict[str, str] = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
    "repeat_last_n": "general.sampling.penalty_last_n",
}

# Inclusive ranges, and how a message words them.
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, 100.0, "from 0 (greedy) to 100"),
    "top_p": (0.0, 1.0, "from 0 to 1 (1 is off)"),
    "min_p": (0.0, 1.0, "from 0 (off) to 1"),
    "typical_p": (0.0, 1.0, "from 0 to 1 (1 is off)"),
    "top_k": (-1, 2**31 - 1, "a whole number from 1, or 0 (off)"),
    "repetition_penalty": (1e-3, 1e3, "above 0 (1 is off)"),
    "repeat_last_n": (-1, 2**31 - 1, "a whole number from 1, 0 (off) or -1 (the whole context)"),
    "presence_penalty": (-2.0, 2.0, "from -2 to 2 (0 is off)"),
    "frequency_penalty": (-2.0, 2.0, "from -2 to 2 (0 is off)"),
    "max_tokens": (1, 2**31 - 1, "a whole number from 1"),
    "n": (1, 1024, "a whole number from 1 to 1024"),
}
_WHOLE = {"top_k", "repeat_last_n", "max_tokens", "n"}


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. The names are vLLM's.

    `None` means "not said": `resolved` fills it from the model's file, then from `DEFAULTS`.

    temperature: 0 is greedy. top_k: 0 or -1 is off. top_p, typical_p: 1 is off. min_p: 0 is off.
    repetition_penalty, presence_penalty, frequency_penalty: over the last `repeat_last_n` tokens, prompt included
        (-1: the whole context).
    seed: the same seed gives the same text; None or -1 draws a new one.
    max_tokens: None means until an end token or the end of the context.
    stop: strings that end the text and are not part of it; control tokens may be written in them ("<|im_start|>user").
    stop_token_ids: tokens that end it.
    ignore_eos: end-of-generation tokens are never chosen.
    logit_bias: token id to a number added to its logit. n: answers per prompt.

    Raises GGPYError on a value out of its range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] | None = None
    n: int = 1
    # Where the unset values came from, so that a bad value in a file is blamed on the file.
    _source: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, (low, high, words) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name != "n":
                continue
            is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
            if name in _WHOLE and is_number and value != int(value if math.isfinite(value) else 0.5):
                is_number = False
            if not is_number or not low <= value <= high:
                raise GGPYError(f"{name} is {value!r}{self._source}, but it must be {words}.")
            object.__setattr__(self, name, int(value) if name in _WHOLE else float(value))
        if self.seed is not None:
            if not isinstance(self.seed, (int, np.integer)) or not -1 <= self.seed < 2**64:
                raise GGPYError(f"seed is {self.seed!r}, but it must be a whole number from 0, or -1 (a new one).")
            object.__setattr__(self, "seed", None if self.seed == -1 else int(self.seed))
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if not all(isinstance(text, str) and text for text in stop):
            raise GGPYError("stop holds an empty string or something that is no text; each needs a character.")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(int(token) for token in self.stop_token_ids or ()))
        if self.logit_bias is not None:
            try:
                bias = {int(token): float(value) for token, value in self.logit_bias.items()}
            except (AttributeError, TypeError, ValueError):
                raise GGPYError("logit_bias must map token ids to numbers.") from None
            if any(math.isnan(value) or value == math.inf for value in bias.values()):
                raise GGPYError("logit_bias holds NaN or infinity; a number, or -inf to forbid a token, is meant.")
            object.__setattr__(self, "logit_bias", bias)

    def resolved(self, file_defaults: Mapping[str, Any] | None = None) -> SamplingParams:
        """The same parameters with every number set: the caller's, else the file's, else `DEFAULTS`.

        file_defaults: what `file_sampling_defaults` returned. They say how to sample; a caller who sets the temperature
        to 0 wants the likeliest token as it is, so the file's penalties then play no part.
        """
        unset = {f.name for f in fields(self) if f.name in DEFAULTS and getattr(self, f.name) is None}
        from_file = {k: v for k, v in (file_defaults or {}).items() if k in unset and self.temperature != 0.0}
        checked = replace(SamplingParams(), **from_file, _source=" in the model's file") if from_file else None
        values: dict[str, Any] = {k: getattr(checked, k) if k in from_file else DEFAULTS[k] for k in unset}
        return replace(self, **values)


def file_sampling_defaults(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling defaults that a GGUF file's metadata states, by parameter name."""
    return {name: metadata[key] for name, key in FILE_KEYS.items() if key in metadata}
