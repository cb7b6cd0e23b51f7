"""Sentences for programs that a GPU has no kernels for, or no launches large enough; nothing is compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba_cuda")
pytest.importorskip("cuda.bindings")

from ggpy.cuda import executor as module
from ggpy.cuda.lower import unsupported
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.graph.language import Graph, Value
from tests.cuda.test_cuda_operations import AFTER, programmed
from tests.graph.test_operations import (
    CASES,
    EPS,
    N_EMBD,
    ROPE,
    SHAPES,
    Case,
    attention,
    convolution,
    delta,
    experts,
)
from tests.support.emulated_device import EmulatedDevice
from tests.support.tensors import write_tensors


def normed_for_heads(g: Graph, x: Value) -> Value:
    """A norm that products of heads read."""
    wide = g.norm(g.linear(x, "wide", 64), "heads_norm", EPS)
    return g.linear(g.head_linear(wide, "heads", 2, 32), "narrow", N_EMBD)


REFUSED = {
    "convolutions of 33 tokens": convolution(33, None),
    "matrices of 300 rows in recurrent layers": delta(1, 1, 300, 6, True),
    "heads of 578 dimensions": attention(1, 1, 578),
    "values of an odd number of dimensions": attention(2, 1, 16, 15),
    "norms after a rope that scales": attention(2, 1, 16, norm_after_rope=True, rope=replace(ROPE, magnitude=1.5)),
    "attention to later tokens in some layers": attention(2, 1, 16, n=2, causal=[True, False]),
    "norms that heads' own matrices read": Case(
        {"wide.weight": (64, N_EMBD), "heads_norm.weight": (64,), "heads.weight": (2, 32, 32),
         "narrow.weight": (N_EMBD, 64)}, normed_for_heads,
    ),
    "a choice among 1025 experts": experts(1025, 1, 1),
    "experts of weighed rows": CASES["experts of weighed rows"],
    "the operation MixStreams": CASES["streams"],
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_keeps_a_model_on_the_cpu_is_named(tmp_path: Path, reason: str) -> None:
    case = REFUSED[reason]
    write_tensors(tmp_path / "tensors.gguf", {**SHAPES, **case.shapes}, case.types)
    with GGUFFile(tmp_path / "tensors.gguf") as file:
        assert unsupported(programmed(case, file)[2]) == reason


def test_fewer_positions_than_the_context_are_told(tmp_path: Path) -> None:
    case = AFTER["norms"]
    write_tensors(tmp_path / "tensors.gguf", {**SHAPES, **case.shapes})
    device: Any = EmulatedDevice()
    with GGUFFile(tmp_path / "tensors.gguf") as file:
        program = programmed(case, file)[2]
        with pytest.raises(GGPYError, match="knows 100 positions"):
            module.CudaExecutor(program, file, n_ctx=101, n_slots=1, n_batch=8, notify=lambda _: None, device=device)


@pytest.mark.parametrize(("name", "most"), [("heads of odd width", 65535), ("experts by softmax", 65535 // 3)])
def test_steps_of_more_rows_than_a_launch_has_are_told(tmp_path: Path, name: str, most: int) -> None:
    write_tensors(tmp_path / "tensors.gguf", {**SHAPES, **CASES[name].shapes})
    device: Any = EmulatedDevice()
    with GGUFFile(tmp_path / "tensors.gguf") as file:
        program = programmed(CASES[name], file)[2]
        with pytest.raises(GGPYError, match=f"at most {most} tokens of this model in a step, fewer than {most + 1};"):
            module.CudaExecutor(program, file, n_ctx=9, n_slots=1, n_batch=most + 1, notify=print, device=device)
