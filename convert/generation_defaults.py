"""How a model is meant to be used: the chat template, and the sampling that its generation_config.json recommends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.vocabulary import Vocabulary
from ggpy.errors import GGPYError

#: The format Qwen's chat models were trained on (ChatML), which their folders do not ship.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_templates(
    checkpoint: Checkpoint, tokenizer_config: Mapping[str, Any], vocabulary: Vocabulary
) -> dict[str, Any]:
    """The chat template under its key, and named ones under theirs."""
    template: Any = checkpoint.text("chat_template.jinja")
    if template is None:
        template = tokenizer_config.get("chat_template") or checkpoint.json("chat_template.json").get("chat_template")
    if template is None:
        template = vocabulary.fallback_template
    if template is None:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": template}
    named = {}
    for entry in template if isinstance(template, list) else []:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str) or not name.replace("_", "").isalnum():
            raise GGPYError(f"The chat_template of {checkpoint.folder} holds {entry!r:.80}, not a name and a template.")
        named[name] = text
    if not named:
        raise GGPYError(f"The chat_template of {checkpoint.folder} is neither a text nor a list of named texts.")
    result: dict[str, Any] = {}
    if "default" in named:
        result["tokenizer.chat_template"] = named.pop("default")
    for name, text in named.items():
        result[f"tokenizer.chat_template.{name}"] = text
    if named:
        result["tokenizer.chat_templates"] = list(named)
    return result


def qwen_template(checkpoint: Checkpoint) -> str | None:
    """ChatML for a first-generation Qwen, unless its generation_config.json says that it is no chat model."""
    return None if checkpoint.json("generation_config.json").get("chat_format") == "raw" else CHATML


def sampling_metadata(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """`general.sampling.*` from generation_config.json, and notes on values that make no sense there."""
    generation = checkpoint.json("generation_config.json")
    result: dict[str, Any] = {}
    notes: list[str] = []
    for name, key, low, high in (
        ("top_k", "top_k", 0, 1 << 24),
        ("top_p", "top_p", 0.0, 1.0),
        ("min_p", "min_p", 0.0, 1.0),
        ("temperature", "temp", 0.0, 100.0),
        ("repetition_penalty", "penalty_repeat", 0.01, 100.0),
    ):
        value = generation.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            notes.append(
                f"generation_config.json gives {name!r} as {json.dumps(value)[:40]}, which makes no sense; left out."
            )
        elif name == "top_k":
            result[f"general.sampling.{key}"] = np.int32(value)
        else:
            result[f"general.sampling.{key}"] = float(value)
    if generation.get("do_sample") is False:
        result["general.sampling.temp"] = 0.0
    return result, notes
