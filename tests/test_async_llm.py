"""`AsyncLLM` over a tiny model: many callers at once, several answers to one prompt, aborts and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ggpy import LLM, AsyncLLM, BeamSearchParams, GGPYError, SamplingParams
from ggpy.convert.pipeline import convert
from tests.support.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("async")
    convert(tiny_checkpoint(folder, "qwen3", dtype="f32"), "f32", folder / "model.gguf")
    return folder / "model.gguf"


def run(path: Path, what: Callable[[AsyncLLM], Awaitable[None]], **options: int) -> None:
    async def main() -> None:
        async with AsyncLLM(path, **{"n_ctx": 128, "n_threads": 2, "n_parallel": 2, **options}) as llm:
            await asyncio.wait_for(what(llm), 60)

    asyncio.run(main())


async def texts(llm: AsyncLLM, prompt: str, params: SamplingParams) -> list[str]:
    """The texts of the last output, which the ones before began with."""
    last: list[str] = []
    async for output in llm.generate(prompt, params):
        found = [one.text for one in output.outputs]
        assert all(text.startswith(before) for text, before in zip(found, last, strict=False))
        last = found
    assert output.finished
    return last


def test_callers_get_what_each_gets_alone(path: Path) -> None:
    prompts = [f"prompt {i} " * (i + 1) for i in range(7)]
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=9, ignore_eos=True)
    with LLM(path, n_ctx=128, n_threads=2) as llm:
        alone = [[output.outputs[0].text] for output in llm.generate(prompts, params)]

    async def many(llm: AsyncLLM) -> None:
        assert await asyncio.gather(*(texts(llm, prompt, params) for prompt in prompts)) == alone

    run(path, many)


def test_several_answers_to_one_prompt(path: Path) -> None:
    params = SamplingParams(temperature=0.9, seed=3, n=3, max_tokens=9, ignore_eos=True)
    with LLM(path, n_ctx=128, n_threads=2) as llm:
        (alone,) = llm.generate("a prompt", params)

    async def several(llm: AsyncLLM) -> None:
        assert await texts(llm, "a prompt", params) == [one.text for one in alone.outputs]
        with pytest.raises(GGPYError, match="best_of compares whole answers"):
            await texts(llm, "a prompt", SamplingParams(best_of=3))

    run(path, several)


def test_an_abort_by_name_ends_every_answer(path: Path) -> None:
    async def abort(llm: AsyncLLM) -> None:
        params = SamplingParams(temperature=0, n=2, max_tokens=110, ignore_eos=True)
        outputs = []
        async for output in llm.generate("x", params, request_id="mine"):
            outputs.append(output)
            await llm.abort("mine")
        assert [one.finish_reason for one in outputs[-1].outputs] == ["abort", "abort"]
        await llm.abort("mine")  # harmless
        assert not llm.llm.engine.has_work

    run(path, abort)


def test_a_prompt_that_cannot_run_is_its_callers_error(path: Path) -> None:
    async def wrong(llm: AsyncLLM) -> None:
        with pytest.raises(GGPYError, match="the context holds 128"):
            await texts(llm, "word " * 500, SamplingParams())
        assert len(await texts(llm, "x", SamplingParams(max_tokens=3, ignore_eos=True))) == 1

    run(path, wrong)


def test_a_full_queue_is_an_error_of_that_call(path: Path) -> None:
    async def full(llm: AsyncLLM) -> None:
        llm.llm.engine.scheduler.max_waiting = 0
        with pytest.raises(GGPYError, match="wait already"):
            await texts(llm, "x", SamplingParams(n=2, max_tokens=3))

    run(path, full)


def test_beams_beside_other_callers(path: Path) -> None:
    params, search = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True), BeamSearchParams(2, 8)
    with LLM(path, n_ctx=128, n_threads=2) as llm:
        (alone,) = llm.generate("a prompt", params)
        (beams,) = llm.beam_search("beams", search)

    async def both(llm: AsyncLLM) -> None:
        found, *others = await asyncio.gather(
            llm.beam_search("beams", search), *(texts(llm, "a prompt", params) for _ in range(2))
        )
        assert [one.token_ids for one in found.sequences] == [one.token_ids for one in beams.sequences]
        assert others == [[alone.outputs[0].text]] * 2
        with pytest.raises(GGPYError, match="BeamSearchParams"):
            await llm.beam_search("beams", params)  # type: ignore[arg-type]

    run(path, both, n_parallel=3)
