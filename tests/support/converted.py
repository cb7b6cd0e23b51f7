"""GGUF files of tiny checkpoints: made, read, and computed exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ggpy import LLM
from ggpy.convert.pipeline import convert
from ggpy.gguf.file import GGUFFile
from ggpy.graph.language import Graph
from ggpy.models import architecture_of
from tests.support.evaluate import evaluate
from tests.support.recorded import Case
from tests.support.tiny import tiny_checkpoint


class Make(Protocol):
    """The GGUF file of a case."""

    def __call__(self, case: Case, file_type: str = "f32", note: Callable[[str], None] = ...) -> Path: ...


def make_in(folder: Path) -> Make:
    """Files of cases, one after the other in this folder."""

    def made(case: Case, file_type: str = "f32", note: Callable[[str], None] = lambda text: None) -> Path:
        case.write(folder)
        convert(folder, file_type, folder / "out.gguf", n_threads=1, note=note)
        return folder / "out.gguf"

    return made


def tiny_model(path: Path) -> Path:
    """The path, where there is then a small model of random weights that writes text."""
    convert(tiny_checkpoint(path.parent, "qwen3", dtype="f32"), "f32", path)
    return path


def logits(path: Path, tokens: Sequence[int]) -> np.ndarray:
    """The logits [n, vocab] of tokens in the smallest context that holds them."""
    with LLM(path, n_ctx=-(-len(tokens) // 64) * 64, n_threads=1, n_parallel=1) as llm:
        return llm.logits(tokens)


def exact(path: Path, tokens: Sequence[int]) -> np.ndarray:
    """The logits of the file's own weights in float64."""
    with GGUFFile(path) as file:
        graph = Graph(file)
        result = architecture_of(file).build(graph)
        return evaluate(graph, result, np.array(tokens), np.arange(len(tokens)))


def metadata(path: Path) -> dict[str, Any]:
    """The architecture's own keys, without its name; arrays as lists."""
    with GGUFFile(path) as file:
        found = dict(file.metadata)
    arch = found["general.architecture"]
    return {
        key.removeprefix(arch + "."): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in found.items()
        if key.startswith(arch + ".")
    }
