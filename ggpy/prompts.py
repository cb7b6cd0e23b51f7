"""Prompts as callers of the Python API give them: text, token ids, dictionaries by vLLM's names, conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ggpy import arguments
from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Mapping[str, Any]


def encoded(prompt: Any, tokenizer: Tokenizer) -> tuple[str | None, list[int]]:
    """The text of a prompt, None where it came as token ids, and its token ids; raises GGPYError for what is no
    prompt."""
    if isinstance(prompt, Mapping):
        ids = prompt.get("prompt_token_ids")
        if ids is not None:
            return None, arguments.token_ids("prompt_token_ids", ids)
        prompt = prompt.get("prompt")
    if isinstance(prompt, str):
        if not prompt:
            raise GGPYError("The prompt is empty; give it some text.")
        return prompt, tokenizer.tokenize(prompt, add_special=True, parse_special=True)
    try:
        return None, arguments.token_ids("A prompt", prompt)
    except GGPYError:
        words = "a text, a list of token ids, or a dict with 'prompt' or 'prompt_token_ids'"
        raise arguments.wrong("A prompt", prompt, words) from None


def several(name: str, prompts: Any) -> list[Any]:
    """Prompts as a list: a single prompt becomes a list of one; a list of numbers is a single prompt."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    prompts = arguments.several(name, prompts, "a text, a list of token ids, or a list of these")
    return [prompts] if prompts and isinstance(prompts[0], (int, np.integer)) else prompts


def conversations(messages: Any) -> list[Any]:
    """Conversations as a list: a single one becomes a list of one. Raises GGPYError for what is none."""
    if isinstance(messages, (str, bytes, bytearray)) or not isinstance(messages, Sequence):
        raise arguments.wrong("messages", messages, 'a list of messages: [{"role": "user", "content": "…"}]')
    return list(messages) if messages and isinstance(messages[0], (list, tuple)) else [messages]
