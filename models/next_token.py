"""Models' own heads that predict the token after the next one (multi-token prediction, arXiv 2412.19437; "nextn" in
GGUF): a further block over each token's hidden row and the embedding of the token after it.

The hidden row is the one that the model's own logits are made from, after the last norm, as Qwen's and GLM's heads were
trained (vLLM, and llama.cpp for Qwen, run them so). A head goes on from itself with the row that it leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.base import HyperParameters
    from ggpy.models.hf import TensorRule


def predictor(g: Graph, hp: HyperParameters, layer: int, block: Callable[[Value], Value]) -> Value | None:
    """The logits of a head whose block is `layer`, [n_outputs, n_vocab]; None where the file has none."""
    at = f"blk.{layer}.nextn."
    if not g.has(at + "eh_proj.weight"):
        return None
    hidden = g.norm(g.hidden(hp.n_embd), at + "hnorm", hp.norm_eps)
    own = at + "embed_tokens"
    embedded = g.embed(hp.n_embd, own if g.has(own + ".weight") else "token_embd")
    x = g.concat(g.norm(embedded, at + "enorm", hp.norm_eps), hidden)
    x = g.select_outputs(block(g.linear(x, at + "eh_proj", hp.n_embd)))
    x = g.norm(x, head_norm(g.file.tensors, layer), hp.norm_eps)
    own = at + "shared_head_head"
    return g.linear(x, own, hp.n_vocab) if g.has(own + ".weight") else g.output(x, hp.n_vocab)


def head_norm(names: Container[str], layer: int) -> str:
    """The name of the norm before a head's logits, in a file of tensors of these names: its own, or the model's."""
    own = f"blk.{layer}.nextn.shared_head_norm"
    return own if own + ".weight" in names else "output_norm"


def predictor_rules(
    layer: int, n_embd: int, norm: Callable[[str, str, int], TensorRule], names: tuple[str, str, str, str]
) -> list[TensorRule]:
    """The rules of the tensors that a head has beside its block. names: of the checkpoint's projection, its norms of
    embeddings and of hidden rows, and the norm before the logits. norm(target, source, n): the rule of a norm."""
    from ggpy.models.hf import TensorRule

    to = f"blk.{layer}.nextn."
    projection, of_embedding, of_hidden, last = names
    return [
        TensorRule(to + "eh_proj.weight", projection + ".weight", (n_embd, 2 * n_embd)),
        norm(to + "enorm", of_embedding, n_embd),
        norm(to + "hnorm", of_hidden, n_embd),
        norm(to + "shared_head_norm", last, n_embd),
    ]
