"""`--context-shift`: an answer goes on in a full context, and that is said."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from ggpy.cli.main import main
from ggpy.convert.pipeline import convert
from tests.support.tiny import tiny_checkpoint


def test_answers_go_on_where_that_is_asked_for(tmp_path: Path) -> None:
    convert(tiny_checkpoint(tmp_path, "qwen3"), "q8_0", tmp_path / "model.gguf")
    args = ["run", "-m", str(tmp_path / "model.gguf"), "--raw", "-p", "again and", "-c", "48", "-n", "100"]
    args += ["--ignore-eos", "--temp", "0"]
    plain = CliRunner().invoke(main, args)
    assert "stopped: the context of 48 tokens is full" in plain.stderr
    shifted = CliRunner().invoke(main, [*args, "--context-shift", "--keep", "3"])
    assert shifted.exit_code == 0, shifted.stderr
    assert shifted.stderr.count("context of 48 tokens is full: the answer goes on") == 1
    assert "after the first 3" in shifted.stderr
    assert "decode 100 tok" in shifted.stderr
    assert shifted.stdout.startswith(plain.stdout.rstrip())
    assert "ask for context_shift with it" in CliRunner().invoke(main, [*args, "--keep", "3"]).stderr
