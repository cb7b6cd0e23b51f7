"""How a model is meant to be used: the chat template, and the sampling that its generation_config.json recommends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.vocabulary import Vocabulary
from ggpy.errors import GGPYError
from ggpy.models.hf_config import listed

_FOLDER = "additional_chat_templates"

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
    """The chat template under its key, and named ones under theirs.

    Files of their own win over what tokenizer_config.json holds, all together: chat_template.jinja is the default,
    those in additional_chat_templates have their file's name, which may be `default` too.
    """
    named: dict[str, str] = {}
    alone = checkpoint.text("chat_template.jinja")
    if alone is not None:
        named["default"] = alone
    for path in sorted((checkpoint.folder / _FOLDER).glob("*.jinja")):
        named[path.stem] = checkpoint.text(f"{_FOLDER}/{path.name}") or ""
    template: Any = named
    if not named:
        template = tokenizer_config.get("chat_template") or checkpoint.json("chat_template.json").get("chat_template")
    if template is None:
        template = vocabulary.fallback_template
    if template is None:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": template}
    if isinstance(template, Mapping) and template is not named:
        template = [{"name": name, "template": text} for name, text in template.items()]
    for entry in template if isinstance(template, list) else []:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise GGPYError(f"The chat_template of {checkpoint.folder} holds {entry!r:.80}, not a name and a template.")
        named[name] = text
    if not named:
        raise GGPYError(f"The chat_template of {checkpoint.folder} is neither a text nor a list of named texts.")
    for name in named:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise GGPYError(
                f"A chat template of {checkpoint.folder} has the name {name!r:.80}; letters and _ may be in it."
            )
    result: dict[str, Any] = {}
    if "default" in named:
        result["tokenizer.chat_template"] = named.pop("default")
    else:
        vocabulary.note(
            f"no chat template is the default; there are only {', '.join(named)}, and ggpy uses none of them."
        )
    for name, text in named.items():
        result[f"tokenizer.chat_template.{name}"] = text
    if named:
        result["tokenizer.chat_templates"] = list(named)
    return result


def qwen_template(checkpoint: Checkpoint) -> str | None:
    """ChatML for a first-generation Qwen, unless its generation_config.json says that it is no chat model."""
    return None if checkpoint.json("generation_config.json").get("chat_format") == "raw" else CHATML


#: generation_config.json's sampling under GGUF's keys, with the values that make sense: (name, key, least, most).
SAMPLING = (
    ("top_k", "top_k", 0, 1 << 24),
    ("top_p", "top_p", 0.0, 1.0),
    ("min_p", "min_p", 0.0, 1.0),
    ("temperature", "temp", 0.0, 100.0),
    ("repetition_penalty", "penalty_repeat", 0.01, 100.0),
)

#: Other keys that are followed: by the above, by the tokenizer's export, by the choice of a template.
FOLLOWED = frozenset(("do_sample", "eos_token_id", "bos_token_id", "pad_token_id", "chat_format"))

#: Keys that do not change which token comes next: lengths and stops by number, which are the user's to say, caches,
#: outputs, how the original drafts or compiles, what holds for encoders or several beams alone, where a file is from.
IGNORED = frozenset(
    key
    for keys in (
        "max_length max_new_tokens max_time num_return_sequences prefill_chunk_size max_window_size",
        "use_cache cache_implementation cache_config max_cache_len low_memory",
        "output_attentions output_hidden_states output_scores output_logits return_dict_in_generate",
        "is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold use_mtp",
        "prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind",
        "assistant_ensemble_weight speculation_type compile_config disable_compile continuous_batching_config",
        "decoder_start_token_id encoder_no_repeat_ngram_size encoder_repetition_penalty",
        "early_stopping length_penalty num_beam_groups diversity_penalty",
        "renormalize_logits remove_invalid_values transformers_version _from_model_config _commit_hash",
    )
    for key in keys.split()
)

#: Keys that change the text and have none in GGUF, with the values at which they do not.
NOTED: dict[str, tuple[Any, ...]] = {
    "min_length": (0, None),
    "min_new_tokens": (0, None),
    "stop_strings": (None, [], ""),
    "num_beams": (1, None),
    "top_h": (None,),
    "typical_p": (1.0, None),
    "epsilon_cutoff": (0.0, None),
    "eta_cutoff": (0.0, None),
    "presence_penalty": (0.0, None),
    "frequency_penalty": (0.0, None),
    "no_repeat_ngram_size": (0, None),
    "exponential_decay_length_penalty": (None,),
    "bad_words_ids": (None, []),
    "force_words_ids": (None, []),
    "constraints": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, [], {}),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (1.0, None),
    "penalty_alpha": (0.0, None),
    "dola_layers": (None,),
    "token_healing": (False, None),
    "watermarking_config": (None,),
}


def sampling_metadata(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """`general.sampling.*` from generation_config.json, and notes on what makes no sense there or cannot be said."""
    generation = checkpoint.json("generation_config.json")
    where = "generation_config.json"
    result: dict[str, Any] = {}
    notes: list[str] = []
    for name, key, low, high in SAMPLING:
        value = generation.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            notes.append(f"{where} gives {name!r} as {json.dumps(value)[:40]}, which makes no sense; left out.")
        elif name == "top_k":
            result[f"general.sampling.{key}"] = np.int32(value)
        else:
            result[f"general.sampling.{key}"] = float(value)
    if result.get("general.sampling.penalty_repeat", 1.0) != 1.0:
        # In transformers the penalty is on all of the text, prompt included; readers' own default is the last tokens.
        result["general.sampling.penalty_last_n"] = np.int32(-1)
    if generation.get("do_sample") is False:
        result["general.sampling.temp"] = 0.0
    elif generation.get("do_sample") is None and result:
        notes.append(
            f"{where} says how to sample, but not 'do_sample', so transformers takes the likeliest token; the file"
            " keeps the former as the model's defaults."
        )
    lost = [key for key, off in NOTED.items() if key in generation and not any(generation[key] == v for v in off)]
    if lost:
        said = ", ".join(f"{key} {json.dumps(generation[key], ensure_ascii=False)[:40]}" for key in lost)
        notes.append(f"{where} asks for what GGUF has no keys for, so readers will not do it: {said[:300]}.")
    known = {name for name, *_ in SAMPLING} | FOLLOWED | IGNORED | NOTED.keys()
    unknown = [key for key in generation if key not in known]
    if unknown:
        notes.append(f"{where} has keys that ggpy does not know; they play no part: {listed(unknown)}.")
    return result, notes
