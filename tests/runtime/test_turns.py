"""A conversation's next turn on models of every kind of state: what is evaluated again, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggpy import LLM, SamplingParams
from ggpy.convert.pipeline import convert
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
    path = models["folder"] / f"{kind}.gguf"
    convert(family_checkpoint(models["folder"], kind), "f32", path)
    rng = np.random.default_rng(0)
    with LLM(path, n_ctx=N_CTX, n_threads=2, n_parallel=1) as llm, LLM(path, n_ctx=N_CTX, n_threads=2) as fresh:
        ids = [i for i in range(llm.n_vocab) if not llm.tokenizer.is_control(i)]
        control = next(i for i in range(llm.n_vocab) if llm.tokenizer.is_control(i))
        prompt = [*rng.choice(ids, 1500).tolist(), control, *rng.choice(ids, 4).tolist()]
        said, n = answer(llm, prompt, 8)
        assert n == len(prompt) + 7

        following = [*prompt, *said, *rng.choice(ids, 30).tolist(), control, *rng.choice(ids, 4).tolist()]
        again, n = answer(llm, following, 8)
        assert n == len(following) - len(prompt) - 7 + 7  # what follows the last token that was evaluated
        assert again == answer(fresh, following, 8)[0]

        # as where a template leaves thoughts out: the last answer is another one
        changed = [*following[:-2], *rng.choice(ids, 40).tolist()]
        found, n = answer(llm, changed, 8)
        carried = llm.runtime.reach.carried
        assert n == 40 + 7 + (3 if carried else 0)  # from before the control token
        assert found == answer(fresh, changed, 8)[0]
        assert answer(llm, changed, 8) == (found, 1 + 7)  # the same again: its last token alone
