"""A server over a tiny model of random weights, on a real socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from ggpy import LLM
from ggpy.server.models import ModelSpec
from tests.support.converted import tiny_model
from tests.support.serving import Running


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("server") / "tiny.gguf")


@pytest.fixture(scope="session")
def llm(model_path: Path) -> Iterator[LLM]:
    """The model by itself, to compare with."""
    with LLM(model_path, n_ctx=256, n_threads=2) as llm:
        yield llm


@pytest.fixture(scope="session")
def server(model_path: Path) -> Iterator[Running]:
    """One server for all tests that leave it as it is."""
    with Running([ModelSpec("tiny", str(model_path), {"n_ctx": 256, "n_threads": 2, "n_parallel": 2})]) as running:
        yield running


@pytest.fixture
def serve(model_path: Path) -> Iterator[Callable[..., Running]]:
    """Start servers of a test's own."""
    started: list[Running] = []

    def start(specs: Sequence[ModelSpec] | None = None, **settings: Any) -> Running:
        given = specs or [ModelSpec("tiny", str(model_path), {"n_ctx": 256, "n_threads": 2, "n_parallel": 2})]
        started.append(Running(given, **settings))
        return started[-1].__enter__()

    yield start
    for running in started:
        running.__exit__()
