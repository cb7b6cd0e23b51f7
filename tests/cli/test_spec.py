"""`--spec ngram` and `--draft`: the same answer, and a word on what was foreseen."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ggpy.cli.main import main
from ggpy.cli.terminal import timing_line
from ggpy.convert.pipeline import convert
from ggpy.engine.request import Timings
from tests.support.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spec")
    convert(tiny_checkpoint(folder, "qwen3"), "q8_0", folder / "model.gguf")
    return folder / "model.gguf"


def test_the_answer_is_the_same(model: Path) -> None:
    args = ["run", "-m", str(model), "--raw", "-p", "again and " * 20, "-n", "30", "--seed", "1"]
    ways = ["--spec", "ngram"], ["--draft", str(model)]
    plain, *drafted = (CliRunner().invoke(main, [*args, *more]) for more in ([], *ways))
    for found, way in zip(drafted, ways, strict=True):
        assert plain.exit_code == found.exit_code == 0, plain.output + found.output
        assert plain.stdout == found.stdout
        talk = CliRunner().invoke(main, ["chat", "-m", str(model), "-n", "9", *way], input="Hi\n")
        assert talk.exit_code == 0, talk.output


def test_drafts_in_the_line_of_timings() -> None:
    assert timing_line(Timings(3, 0, 1, 9, 1, 1, 8, 5)).endswith(" · 5 of 8 drafted tok accepted")
    assert "drafted" not in timing_line(Timings(3, 0, 1, 9, 1, 1))


def test_what_it_does_not_go_with(model: Path) -> None:
    args = ["run", "-m", str(model), "-p", "Hi", "--spec"]
    refused = CliRunner().invoke(main, [*args, "ngram", "--num-beams", "2"])
    assert refused.exit_code == 1
    assert "so --spec has no place" in refused.stderr
    refused = CliRunner().invoke(main, [*args, "ngram", "--draft", str(model)])
    assert refused.exit_code == 1
    assert "both say how to speculate" in refused.stderr
    refused = CliRunner().invoke(main, [*args[:-1], "--draft", str(model) + "x"])
    assert refused.exit_code == 1
    assert "model.ggufx" in refused.stderr
    assert CliRunner().invoke(main, [*args, "eagle"]).exit_code == 2
