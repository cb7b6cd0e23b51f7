"""`ggpy run --num-beams`: the best text of a beam search."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ggpy import LLM, BeamSearchParams
from ggpy.cli.main import main
from ggpy.convert.pipeline import convert
from tests.support.tiny import tiny_checkpoint

PROMPT = "The capital of France"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beams")
    convert(tiny_checkpoint(folder, "qwen3"), "q8_0", folder / "model.gguf")
    return folder / "model.gguf"


def test_the_best_text_is_shown(model: Path) -> None:
    args = ["run", "-m", str(model), "--raw", "-p", PROMPT, "-n", "9", "--num-beams", "3", "--temp", "0", "-v"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    with LLM(model, n_threads=2) as llm:
        best = llm.beam_search(PROMPT, BeamSearchParams(3, 9))[0].sequences[0]
    assert result.stdout.removesuffix("\n") == best.output_text.removesuffix("\n")
    assert f"3 beams · {len(best.token_ids)} tok" in result.stderr
    assert f"log-probability {best.cum_logprob:.3f}" in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--temp", "0.7"), ("--seed", "3"), ("--repeat-penalty", "1.1")])
def test_options_that_a_search_does_not_follow(model: Path, option: str, value: str) -> None:
    result = CliRunner().invoke(main, ["run", "-m", str(model), "-p", PROMPT, "--num-beams", "2", option, value])
    assert result.exit_code == 1
    assert f"so {option} has no place" in result.stderr


def test_a_number_of_beams(model: Path) -> None:
    result = CliRunner().invoke(main, ["run", "-m", str(model), "-p", PROMPT, "--num-beams", "0"])
    assert result.exit_code == 2
