"""`ggpy run --prompt-cache`: a prompt that was evaluated before is not evaluated again."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from ggpy.cli.main import main
from ggpy.convert.pipeline import convert
from tests.support.tiny import tiny_checkpoint


def test_a_prompt_cache_is_gone_on_from(tmp_path: Path) -> None:
    convert(tiny_checkpoint(tmp_path, "qwen3"), "q8_0", tmp_path / "model.gguf")
    state = tmp_path / "talk.state"
    args = ["run", "-m", str(tmp_path / "model.gguf"), "--raw", "-p", "a long prompt " * 9, "-n", "5", "--temp", "0"]
    args += ["--prompt-cache", str(state)]
    first, second = (CliRunner().invoke(main, args) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output + second.output
    assert first.stdout == second.stdout
    n_first, n_second = (int(re.findall(r"prompt (\d+) tok", r.stderr)[0]) for r in (first, second))
    assert n_second == 1 < n_first
    state.write_bytes(b"something else")
    refused = CliRunner().invoke(main, args)
    assert refused.exit_code == 1
    assert "is no saved state of ggpy" in refused.stderr
    assert state.read_bytes() == b"something else"
