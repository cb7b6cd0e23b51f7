"""Parameters for choosing tokens and stopping: their defaults and their ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ggpy import arguments
from ggpy.gguf.metadata import TypedMetadata

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
    """Parameters for choosing tokens and stopping. The names are vLLM's.

    `None` means "not given": `resolved` fills it from the model's file, then from `DEFAULTS`.

    temperature: 0 is greedy. top_k: 0 or -1 is off. top_p, typical_p: 1 is off. min_p: 0 is off.
    repetition_penalty, presence_penalty, frequency_penalty: over the last `repeat_last_n` tokens, prompt included
        (-1: the whole context).
    seed: the same seed gives the same text; None or -1 draws a new one.
    max_tokens: None means until an end token or the end of the context.
    stop: strings that end the text and are not part of it; control tokens may be written in them ("<|im_start|>user").
    stop_token_ids: tokens that end it.
    ignore_eos: end-of-generation tokens are never chosen.
    logit_bias: token id to a number added to its logit. n: answers per prompt.

    Raises GGPYError on a value out of its range or of the wrong kind.
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
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name, (low, high, words) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name != "n":
                continue
            shown = name + self._source
            if name not in _WHOLE:
                put(name, arguments.number(shown, value, low, high, words))
                continue
            if isinstance(value, (float, np.floating)) and value == value // 1:  # 40.0; neither NaN nor infinity
                value = int(value)
            put(name, arguments.whole(shown, value, int(low), int(high), words))
        if self.top_k == -1:
            put("top_k", 0)  # one word for off
        if self.seed is not None:
            seed = arguments.whole("seed", self.seed, -1, 2**64 - 1, "a whole number from 0, or -1 (a new one)")
            put("seed", None if seed == -1 else seed)
        put("stop", arguments.texts("stop", self.stop))
        ends = () if self.stop_token_ids is None else self.stop_token_ids
        put("stop_token_ids", tuple(arguments.token_ids("stop_token_ids", ends)))
        put("ignore_eos", arguments.flag("ignore_eos", self.ignore_eos))
        if self.logit_bias is not None:
            put("logit_bias", arguments.biases("logit_bias", self.logit_bias))

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


def params_or_default(name: str, value: Any) -> SamplingParams:
    """The parameters that a caller passed under that name, or the defaults for None. Raises GGPYError."""
    if value is None:
        return SamplingParams()
    if not isinstance(value, SamplingParams):
        raise arguments.wrong(name, value, "SamplingParams")
    return value


def file_sampling_defaults(metadata: Mapping[str, Any], where: str = "the model's file") -> dict[str, float]:
    """The sampling defaults that the metadata of the GGUF file `where` state, by parameter name."""
    typed = TypedMetadata(metadata, where)
    found = {name: typed.find(key, float) for name, key in FILE_KEYS.items()}
    return {name: value for name, value in found.items() if value is not None}
