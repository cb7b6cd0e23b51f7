"""`ggpy models` and the README list the architectures that the code knows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner

from ggpy.cli.models import models
from ggpy.models import HOMES, by_hf_name
from ggpy.models.hf_config import Config
from ggpy.models.hf_families import FAMILIES
from ggpy.models.hf_keys import known_config
from tests.support.families import CONFIGS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_every_architecture_is_listed_with_its_classes() -> None:
    known = json.loads(CliRunner().invoke(models, ["--json"]).output)
    assert list(known) == list(HOMES)
    classes = {cls for family in FAMILIES.values() for cls in family.classes}
    assert {cls for listed in known.values() for cls in listed} <= classes
    for config in CONFIGS.values():
        name, settings, _ = known_config(Config(config))
        assert name in known[by_hf_name(name, settings).name]
    lines = CliRunner().invoke(models).output.splitlines()
    assert [line.split()[0] for line in lines] == list(HOMES)
    assert "LlamaForCausalLM" in lines[0]


def test_the_readme_lists_every_architecture() -> None:
    rows = re.findall(r"^  \| (`.+?) \|", README, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted(HOMES)
