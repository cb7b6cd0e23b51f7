"""Slots of different lengths in one budget on real kernels: answers are those of slots that have the whole context, and
what they share is what was planned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggpy import LLM, SamplingParams
from ggpy.convert.pipeline import convert
from ggpy.gguf.file import GGUFFile
from ggpy.runtime.placement import Placement
from tests.support.families import family_checkpoint

N_CTX = 1536  # more than a ring has, for steps of 64 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.mark.parametrize(("kind", "cache_type"), [("gemma3", "f16"), ("qwen3_5", "f16")])
def test_answers_are_those_of_whole_slots(kind: str, cache_type: str, folder: Path) -> None:
    path = folder / f"{kind}.gguf"
    convert(family_checkpoint(folder, kind, max_position_embeddings=N_CTX), "f32", path)
    rng = np.random.default_rng(1)
    notes: list[str] = []
    types = {"cache_type_k": cache_type, "cache_type_v": cache_type}
    with LLM(path, n_ctx=N_CTX, n_threads=2, n_parallel=4, **types) as whole:
        assert whole.runtime.kv_cells is None
        ids = [i for i in range(whole.n_vocab) if not whole.tokenizer.is_control(i)]
        base = rng.choice(ids, 300).tolist()
        prompts = [
            rng.choice(ids, 900).tolist(),
            *([*base, *rng.choice(ids, int(n)).tolist()] for n in (5, 70, 230)),
            *(rng.choice(ids, int(n)).tolist() for n in (3, 400)),
        ]
        sets = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (4, 20, 9, 30, 3, 6)]
        wanted = [
            output.outputs[0].token_ids for output in whole.generate(prompt_token_ids=prompts, sampling_params=sets)
        ]
    with GGUFFile(path) as file:
        place = Placement(file, n_slots=4, engine=True, cache_type_k=cache_type, cache_type_v=cache_type)
        stages, n_batch = place.place(N_CTX)
        (limit,) = place.uses(stages, N_CTX, n_batch, kv_cells=1600)
    with LLM(
        path,
        n_ctx=N_CTX,
        n_threads=2,
        n_parallel=4,
        kv_memory=limit.state,
        cache_ram=1 << 20,
        notify=notes.append,
        **types,
    ) as shared:
        assert shared.runtime.kv_cells == 1600
        assert any("4 sequences share a cache of 1600 tokens, up to 1536 each" in note for note in notes)
        found = shared.generate(prompt_token_ids=prompts, sampling_params=sets)
        assert [output.outputs[0].token_ids for output in found] == wanted
        with pytest.raises(ValueError, match="a position outside its slot's cells"):
            shared.runtime.step([1], [0], [N_CTX - 1], [])
