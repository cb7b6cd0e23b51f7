from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.converted import Make, make_in


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The GGUF file of a case."""
    return make_in(tmp_path)
