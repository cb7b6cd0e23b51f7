"""The table of keys of generation_config.json is whole, true to transformers, and says what happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ggpy.convert.checkpoint import Checkpoint
from ggpy.convert.generation_defaults import FOLLOWED, IGNORED, NOTED, SAMPLING, sampling_metadata
from tests.support.config_changes import RECORDED
from tests.support.tiny import tiny_checkpoint

SAMPLED = {name for name, *_ in SAMPLING}


def generation(tmp_path: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with Checkpoint(tmp_path) as checkpoint:
        return sampling_metadata(checkpoint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path, "smollm2")


def test_the_table_holds_every_key_of_generation(folder: Path) -> None:
    """Every field of transformers' GenerationConfig; at its default none changes the file or is noted."""
    defaults = RECORDED["GenerationConfig"]
    for key in defaults:
        assert key in SAMPLED or key in FOLLOWED or key in IGNORED or key in NOTED, key
    assert not (SAMPLED & NOTED.keys()) | (FOLLOWED & NOTED.keys()) | (IGNORED & NOTED.keys())
    unsampled = {key: value for key, value in defaults.items() if key not in SAMPLED | {"do_sample"}}
    assert generation(folder, unsampled) == ({}, [])
    published = {"_from_model_config": True, "transformers_version": "4.38", "chat_format": "chatml"}
    assert generation(folder, {**published, "max_window_size": 6144}) == ({}, [])


@pytest.mark.parametrize("key", NOTED)
def test_generation_that_gguf_cannot_say_is_noted(folder: Path, key: str) -> None:
    for value in NOTED[key]:
        assert generation(folder, {key: value}) == ({}, [])
    result, (note,) = generation(folder, {key: 3})
    assert result == {}
    assert f"no keys for, so readers will not do it: {key} 3." in note


def test_sampling_defaults(folder: Path) -> None:
    prefix = "general.sampling."
    settings = {"do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.75, "min_p": 0.25}
    expected = {"temp": 0.5, "top_k": 7, "top_p": 0.75, "min_p": 0.25}
    assert generation(folder, settings) == ({prefix + key: value for key, value in expected.items()}, [])
    # transformers penalizes the whole text, prompt included
    result, _ = generation(folder, {"do_sample": True, "repetition_penalty": 1.5})
    assert result == {prefix + "penalty_repeat": 1.5, prefix + "penalty_last_n": -1}
    assert generation(folder, {"do_sample": True, "repetition_penalty": 1.0})[0] == {prefix + "penalty_repeat": 1.0}
    # without sampling a temperature plays no part
    assert generation(folder, {"do_sample": False, "temperature": 0.5})[0] == {prefix + "temp": 0.0}
    result, (note,) = generation(folder, {"temperature": 0.5})
    assert result == {prefix + "temp": 0.5}
    assert "not 'do_sample'" in note
    result, notes = generation(folder, {"do_sample": True, "top_p": 7, "spin": 1})
    assert result == {}
    assert "'top_p' as 7, which makes no sense" in notes[0]
    assert "does not know; they play no part: 'spin'" in notes[1]
