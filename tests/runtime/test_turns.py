"""A conversation's next turn on models of every kind of state: what is evaluated again, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, SamplingParams
from ggpy.convert.pipeline import convert
from tests.cuda.test_cuda import gpu  # noqa: F401
from tests.support import hf_families_bert, hf_families_encoders
from tests.support.families import CONFIGS, family_checkpoint

KINDS = [kind for kind in CONFIGS if kind not in (*hf_families_bert.CONFIGS, *hf_families_encoders.CONFIGS)]
N_CTX = 2304  # more than the cells of a ring


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"folder": tmp_path_factory.mktemp("turns")}


def answer(llm: LLM, prompt: list[int], n: int) -> tuple[list[int], int]:
    """Tokens of an answer, and how many were evaluated for it."""
    before = llm.engine.n_evaluated
    params = SamplingParams(temperature=0, max_tokens=n, ignore_eos=True)
    (output,) = llm.generate(prompt_token_ids=[prompt], sampling_params=params)
    return output.outputs[0].token_ids, llm.engine.n_evaluated - before


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_turn_evaluates_what_is_new(kind: str, models: dict[str, Path]) -> None:
    two_turns(kind, models["folder"])


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["qwen3", "lfm2", "qwen3_5_text", "mamba", "mamba2"])
def test_the_next_turn_on_a_gpu(gpu: None, kind: str, models: dict[str, Path]) -> None:  # noqa: F811
    two_turns(kind, models["folder"], n_same=1, device="cuda")


def two_turns(kind: str, folder: Path, n_same: int = 8, **options: Any) -> None:
    """n_same: tokens of an answer that are the same whatever was evaluated before; few on a GPU, where prompts are
    rounded otherwise than generated tokens."""
    path = folder / f"{kind}.gguf"
    convert(family_checkpoint(folder, kind), "f32", path)
    rng = np.random.default_rng(0)
    options |= {"n_ctx": N_CTX, "n_threads": 2}
    with LLM(path, n_parallel=1, **options) as llm, LLM(path, **options) as fresh:
        ids = [i for i in range(llm.n_vocab) if not llm.tokenizer.is_control(i)]
        control = next(i for i in range(llm.n_vocab) if llm.tokenizer.is_control(i))
        prompt = [*rng.choice(ids, 1500).tolist(), control, *rng.choice(ids, 4).tolist()]
        said, n = answer(llm, prompt, 8)
        assert n == len(prompt) + 7

        following = [*prompt, *said, *rng.choice(ids, 30).tolist(), control, *rng.choice(ids, 4).tolist()]
        again, n = answer(llm, following, 8)
        assert n == len(following) - len(prompt) - 7 + 7  # what follows the last token that was evaluated
        assert again[:n_same] == answer(fresh, following, 8)[0][:n_same]

        # as where a template leaves thoughts out: the last answer is another one
        changed = [*following[:-2], *rng.choice(ids, 40).tolist()]
        found, n = answer(llm, changed, 8)
        carried = llm.runtime.reach.carried
        assert n == 40 + 7 + (3 if carried else 0)  # from before the control token
        assert found[:n_same] == answer(fresh, changed, 8)[0][:n_same]
        again, n = answer(llm, changed, 8)
        assert again[:n_same] == found[:n_same]
        assert n == 1 + 7  # the same again: its last token alone
