"""OpenAI's own Python client against the server."""

from __future__ import annotations

import pytest

pytest.importorskip("openai")

from openai import OpenAI

from ggpy import LLM, SamplingParams
from tests.support.serving import Running

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_a_stream_says_what_the_whole_says(client: OpenAI, llm: LLM) -> None:
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "seed": 5, "temperature": 0.9}
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    chunks = list(client.chat.completions.create(**asked, stream=True))  # type: ignore[call-overload]
    (expected,) = llm.chat(HELLO, SamplingParams(max_tokens=12, seed=5, temperature=0.9))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content == expected.outputs[0].text
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == expected.outputs[0].finish_reason
    assert whole.usage.completion_tokens == len(expected.outputs[0].token_ids)
