"""OpenAI's response bodies, of answers and vectors."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ggpy.protocol.openai import Answer, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def new_id(kind: str) -> str:
    """A name that no other object has, such as chatcmpl-1f…"""
    return f"{kind}{uuid.uuid4().hex}"


def chat_completion(model: str, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
    """The body for the answers to a conversation."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }
        for index, answer in enumerate(answers)
    ]
    return _body("chatcmpl-", "chat.completion", model, choices, usage)


def completion(model: str, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
    """The body for completions: all answers to the first prompt, then those to the next."""
    choices = [
        {"index": index, "text": answer.text, "logprobs": None, "finish_reason": answer.finish_reason}
        for index, answer in enumerate(answers)
    ]
    return _body("cmpl-", "text_completion", model, choices, usage)


def embeddings(
    model: str, vectors: Sequence[NDArray[np.float32]], usage: Usage, as_base64: bool = False
) -> dict[str, Any]:
    """The body for vectors, float32 [n_embd] each, in the order of the inputs."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    counts = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return {"object": "list", "data": data, "model": model, "usage": counts}


def _body(prefix: str, kind: str, model: str, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
    return {
        "id": new_id(prefix),
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage.body,
    }
