"""A key by which requests of one conversation are known, so that they go where its beginning is in a cache."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from ggpy.protocol.generation import ChatRequest, CompletionRequest

#: Characters, or tokens, of a prompt without messages. More would tell the turns of short conversations apart.
BEGINNING = 256


def conversation_key(asked: ChatRequest | CompletionRequest) -> str:
    """A name for the beginning of a request, the same in each turn of a conversation: its messages up to the first of
    the user. Conversations that share more than that, and the rest of a busy replica's, are Ray's to balance."""
    if isinstance(asked, ChatRequest):
        roles = [message.get("role") for message in asked.messages]
        first = roles.index("user") + 1 if "user" in roles else len(roles)
        beginning: Any = asked.messages[:first]
    else:
        beginning = asked.prompts[0][:BEGINNING]
    return sha256(json.dumps(beginning).encode()).hexdigest()
