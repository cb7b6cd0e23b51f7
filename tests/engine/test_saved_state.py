"""Conversations that lose their slot and come back, from host memory or from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, GGPYError, SamplingParams
from ggpy.convert.pipeline import convert
from ggpy.engine.engine import Engine
from ggpy.runtime.host_memory import HostMemory
from tests.engine.test_scheduler import GREEDY, KINDS, tokens
from tests.support.doubles import ByteTokenizer, finish
from tests.support.families import family_checkpoint

FAMILIES = ["qwen3", "gemma3_text", "qwen3_5_text", "lfm2"]


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_take_turns_in_one_slot(kind: str) -> None:
    runtime = KINDS[kind](n_slots=1, n_ctx=1000)
    engine = Engine(runtime, ByteTokenizer(), host_memory=HostMemory(parked=1 << 20))
    talks = [tokens(150, i) for i in range(3)]
    for turn in range(3):
        for i, talk in enumerate(talks):
            before = engine.n_evaluated
            request = engine.request([*talk, *tokens(5, 100 * turn + i)], GREEDY)
            finish(engine, request)
            fresh = Engine(KINDS[kind](n_ctx=1000), ByteTokenizer())
            alone = fresh.request(request.prompt, request.params)
            finish(fresh, alone)
            assert request.token_ids == alone.token_ids
            if turn:
                answered = GREEDY.max_tokens if kind == "by kind" else 0  # then part of a prompt
                assert engine.n_evaluated - before <= 5 + 2 * 8 + answered  # type: ignore[operator]
            talks[i] = request.tokens
    assert runtime.loaded > 0


def test_host_memory_is_bounded() -> None:
    engine = Engine(KINDS["full"](n_slots=1, n_ctx=1000), ByteTokenizer(), host_memory=HostMemory(parked=2000))
    for i in range(6):
        finish(engine, engine.request(tokens(150, i), GREEDY))
    kept = engine.cache.parked
    assert 0 < sum(parked.nbytes for parked in kept) <= 2000
    assert [parked.tokens[:150] for parked in kept] == [tokens(150, i) for i in range(5 - len(kept), 5)]


@pytest.fixture(params=FAMILIES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    convert(family_checkpoint(tmp_path, request.param), "f32", tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


@pytest.fixture
def open_model(path: Path) -> Iterator[Any]:
    opened: list[LLM] = []

    def make(**options: Any) -> LLM:
        opened.append(LLM(path, **{"n_ctx": 2304, "n_threads": 2, "n_parallel": 1, **options}))
        return opened[-1]

    yield make
    for llm in opened:
        llm.close()


def answer(llm: LLM, prompt: list[int]) -> tuple[list[int], int]:
    before = llm.engine.n_evaluated
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    (output,) = llm.generate(prompt_token_ids=[prompt], sampling_params=params)
    return output.outputs[0].token_ids, llm.engine.n_evaluated - before


def ids(llm: LLM, n: int, seed: int) -> list[int]:
    usable = [i for i in range(llm.n_vocab) if not llm.tokenizer.is_control(i)]
    return np.random.default_rng(seed).choice(usable, n).tolist()


def test_a_file_goes_on_in_another_model_object(open_model: Any, tmp_path: Path) -> None:
    first = open_model()
    prompt = ids(first, 1200, 0)
    said, _ = answer(first, prompt)
    file = tmp_path / "state"
    assert first.save_state(file) == len(prompt) + 5
    following = [*prompt, *said, *ids(first, 7, 1)]
    expected, _ = answer(first, following)
    second = open_model()
    assert second.load_state(file) == len(prompt) + 5
    found, n = answer(second, following)
    assert found == expected
    assert n == 1 + 7 + 5


def test_what_is_no_state_of_this_model_is_refused(open_model: Any, tmp_path: Path) -> None:
    llm = open_model()
    with pytest.raises(GGPYError, match="Nothing is evaluated yet"):
        llm.save_state(tmp_path / "none")
    answer(llm, ids(llm, 100, 0))
    file = tmp_path / "state"
    llm.save_state(file)
    whole = file.read_bytes()
    line, rest = whole.split(b"\n", 1)
    values = json.loads(line)

    def changed(**new: Any) -> bytes:
        return json.dumps({**values, **new}).encode() + b"\n" + rest

    flipped = bytearray(whole)
    flipped[-1] ^= 1
    cases = {
        b"": "is no saved state", b"{}\n": "is no saved state", b"\xff\xfe\n": "is no saved state",
        changed(version=2): "another version", changed(model="x"): "another model",
        changed(cache_type="q8_0"): "a cache of 'q8_0'", changed(tokens=[-1]): "makes no sense",
        changed(devices="2 layers on a GPU"): "saved with 2 layers on a GPU, but here are [0-9]+ layers on the CPU;",
        changed(tokens="no"): "makes no sense", changed(sizes=[1, "2"]): "makes no sense",
        changed(written=3): "makes no sense", changed(tokens=[1] * 3000, written=3000): "more than the context",
        whole[:-1]: "is damaged", whole + b"x": "is damaged", bytes(flipped): "are not those that were written",
    }  # fmt: skip
    for content, message in cases.items():
        file.write_bytes(content)
        with pytest.raises(GGPYError, match=message):
            llm.load_state(file)
    with pytest.raises(GGPYError, match="cannot be read"):
        llm.load_state(tmp_path / "missing")
    said, _ = answer(llm, ids(llm, 100, 0))
    assert len(said) == 6


def test_a_state_of_other_sizes_is_refused(open_model: Any, tmp_path: Path) -> None:
    llm = open_model()
    answer(llm, ids(llm, 100, 0))
    file = tmp_path / "state"
    llm.save_state(file)
    line, rest = file.read_bytes().split(b"\n", 1)
    values = json.loads(line)
    sizes = values["sizes"]
    values["sizes"] = [sizes[0] - 1, sizes[1] + 1, *sizes[2:]]
    file.write_bytes(json.dumps(values).encode() + b"\n" + rest)
    with pytest.raises(GGPYError, match="another context or step size"):
        llm.load_state(file)
    values["sizes"], values["crc32"] = [], 0
    file.write_bytes(json.dumps(values).encode() + b"\n")
    with pytest.raises(GGPYError, match="another context or step size"):
        llm.load_state(file)
