"""Qwen3's rerankers, which answer "yes" or "no": of the output matrix the two rows of these words, as a classifier, and
the words that they are asked with. llama.cpp's converter writes the same.

Their config is that of a model that writes text. What tells them apart is the folder's README, its name, or the module
that newer versions of sentence-transformers list.
"""

from __future__ import annotations

import json
from typing import Any

from ggpy.convert.checkpoint import Checkpoint
from ggpy.errors import GGPYError
from ggpy.models.base import POOLINGS
from ggpy.models.hf import Layout, TensorRule
from ggpy.models.hf_sources import Stored
from ggpy.models.qwen3 import RERANK_TEMPLATE


def add_reranker(checkpoint: Checkpoint, layout: Layout, tokenizer: dict[str, Any]) -> None:
    """Make the layout one of a reranker, where the checkpoint is Qwen3's."""
    arch = layout.arch
    if arch != "qwen3" or f"{arch}.pooling_type" in layout.metadata or not _is_reranker(checkpoint):
        return
    tokens = tokenizer["tokenizer.ggml.tokens"]
    rows = [tokens.index(word) for word in ("yes", "no") if word in tokens]
    if len(rows) < 2:
        raise GGPYError(f"{checkpoint.folder} is a reranker, but its tokenizer has no tokens 'yes' and 'no'.")
    source = next(rule for rule in layout.tensors if rule.target == "output.weight")
    name = "model.embed_tokens.weight" if layout.tied else "lm_head.weight"
    layout.tensors = [rule for rule in layout.tensors if rule is not source]
    layout.tensors.append(TensorRule("cls.output.weight", Stored(name, source.shape).take(rows)))
    layout.metadata[f"{arch}.pooling_type"] = POOLINGS.index("rank")
    layout.metadata[f"{arch}.classifier.output_labels"] = ["yes", "no"]
    tokenizer["tokenizer.chat_template.rerank"] = RERANK_TEMPLATE
    if layout.tied:
        layout.left_out = (*layout.left_out, (r"lm_head\.", "the output matrix is left out but for two of its rows."))
    layout.notes.append("the checkpoint is a reranker: the file scores documents (ggpy rank) and writes no text.")


def _is_reranker(checkpoint: Checkpoint) -> bool:
    try:
        modules = json.loads(checkpoint.text("modules.json") or "[]")
    except (ValueError, RecursionError):
        modules = []
    if isinstance(modules, list) and any("LogitScore" in str(module) for module in modules):
        return True
    heading = next(iter((checkpoint.text("README.md") or "").split("# ", 1)[1:]), "")
    return "Qwen3-Reranker" in heading.split("\n")[0] or "qwen3-reranker" in checkpoint.folder.resolve().name.lower()
