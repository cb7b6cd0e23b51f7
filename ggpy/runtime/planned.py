"""From a file to the program that evaluates its model on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.cpu.needed import activation_dtype as cpu_activation_dtype
from ggpy.errors import GGPYError
from ggpy.graph.language import Graph
from ggpy.graph.plan import plan
from ggpy.graph.program import Program
from ggpy.models import architecture_of
from ggpy.quant.formats import activation_dtype

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile
    from ggpy.graph.tensor_parallel import Rank


def planned(file: GGUFFile, device: str = "cpu", rank: Rank | None = None) -> Program:
    """The program that evaluates a file's model on a device, or a rank's share of it."""
    model = architecture_of(file)
    graph = Graph(file)
    logits = model.build(graph)
    if rank:
        from ggpy.graph.tensor_parallel import shard

        graph, logits = shard(graph, logits, rank)
    return plan(graph, logits, cpu_activation_dtype if device == "cpu" else activation_dtype)


def planned_predictor(file: GGUFFile) -> Program | None:
    """The program of a model's own head that predicts a further token, on the CPU; None where the file has none."""
    graph = Graph(file)
    logits = architecture_of(file).build_predictor(graph)
    return plan(graph, logits, cpu_activation_dtype) if logits else None


def needed_predictor(file: GGUFFile) -> Program:
    """The same, of a file that is to have one. Raises GGPYError."""
    program = planned_predictor(file)
    if program is None:
        raise GGPYError(
            f"{file.path.name} has no block that predicts further tokens, as some files of Qwen3.5, Qwen3-Next and"
            " GLM-4.5 do; take another way to speculate, such as ngram."
        )
    return program
