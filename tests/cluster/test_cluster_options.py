"""The options of `--ray` before a cluster is looked for, and the keys of conversations: without Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ggpy.cli.batch import batch
from ggpy.cli.serve import serve
from ggpy.cluster.connect import on_its_machine, resources, takes_machine
from ggpy.cluster.conversations import conversation_key
from ggpy.errors import GGPYError
from ggpy.protocol import openai


def chat(*messages: tuple[str, str], **fields: Any) -> str:
    told = [{"role": role, "content": content} for role, content in messages]
    return conversation_key(openai.parse("POST", "/v1/chat/completions", {"messages": told, **fields}))  # type: ignore[arg-type]


def complete(prompt: Any) -> str:
    return conversation_key(openai.parse("POST", "/v1/completions", {"prompt": prompt}))  # type: ignore[arg-type]


def test_turns_of_a_conversation_have_one_key() -> None:
    begin = (("system", "Be brief."), ("user", "Hello"))
    turns = [chat(*begin), chat(*begin, ("assistant", "Hi"), ("user", "Why?"), temperature=0.5)]
    others = [chat(("user", "Hello")), chat(("system", "Be brief."), ("user", "Good day")), chat(("system", "Hello"))]
    assert len({*turns}) == 1
    assert len({*turns, *others}) == 4
    text = "word " * 100
    assert complete(text) == complete(text + "and so on") != complete("word")
    ids = list(range(300))
    assert complete(ids) == complete([*ids, 7]) != complete(ids[1:])


@pytest.mark.parametrize(
    ("options", "reserved", "device"),
    [
        ({"device": "cpu"}, {"num_cpus": 1}, "cpu"),
        ({"n_threads": 4}, {"num_cpus": 4}, None),
        ({"device": "cuda"}, {"num_cpus": 1, "num_gpus": 1}, "cuda:0"),
        ({"device": "cuda:3"}, {"num_cpus": 1, "num_gpus": 1}, "cuda:0"),
        ({"device": "cuda:2,5", "n_threads": 2}, {"num_cpus": 2, "num_gpus": 2}, "cuda:0,1"),
    ],
)
def test_a_replica_reserves_what_it_uses(options: dict[str, Any], reserved: dict[str, int], device: str | None) -> None:
    assert resources(options) == reserved
    assert on_its_machine(options).get("device") == device
    assert takes_machine(options) == (reserved == {"num_cpus": 1})


def test_files_are_named_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas run in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "小.jinja").touch()
    whole = str(tmp_path / "小.jinja")
    options = {"chat_template": "小.jinja", "draft_model": "小.jinja", "speculative_config": {"model": "小.jinja"}}
    assert on_its_machine(options) == {
        "chat_template": whole, "draft_model": whole, "speculative_config": {"model": whole}
    }  # fmt: skip
    assert on_its_machine({"chat_template": "chatml"}) == {"chat_template": "chatml"}


def test_what_is_wrong_with_an_option_is_said_before_a_cluster_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}')
    files = [str(tmp_path / name) for name in ("in.jsonl", "out.jsonl")]
    result = CliRunner().invoke(batch, ["--ray", "--gpu-layers", "many", *files])
    assert "many" in str(result.exception)


def test_a_device_that_differs_by_machine_is_refused() -> None:
    with pytest.raises(GGPYError, match="--device auto is not known on a cluster"):
        resources({"device": "auto"})


@pytest.mark.parametrize("command", [serve, batch])
def test_options_that_mean_nothing_are_refused(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["in.jsonl", "out.jsonl"] if command is batch else []
    for given, said in (
        (["--ray-replicas", "2"], "add --ray"),
        (["--ray", "--ray-replicas", "2:1"], "ends with less"),
        (["--ray", "--ray-replicas", "0"], "less than 1"),
        (["--ray", "--ray-replicas", "many"], "no number of replicas"),
        *([] if files else [(["--ray", "--keep-alive", "5m"], "do not go with --ray")]),
        *([] if files else [(["--ray", "--max-queue", "0"], "--max-queue 0 does not go with --ray")]),
    ):
        result = CliRunner().invoke(command, [*given, *files])
        assert result.exit_code == 2, result.output
        assert said in result.output


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ggpy.cluster.connect import connect

    for name in ("ray", "ray.serve"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GGPYError, match=r"pip install 'ggpy\[ray\]'"):
        connect("ray.serve")
