"""The end of a model that embeds texts or ranks them: pooling, and the heads behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.base import HyperParameters


def pooled(g: Graph, x: Value, hp: HyperParameters, *, rank_rows: str = "cls", rank_activation: str = "tanh") -> Value:
    """One row a text of the last layer's x [n_tokens, n_embd]: its embedding, or, for "rank", its scores by the file's
    classifier, which reads `rank_rows` of a text; `rank_activation` stands between its two matrices.

    Where rows are not to be pooled ("none"), each wanted output is a row by itself.
    """
    if hp.pooling == "rank":
        return _classified(g, g.pool(x, rank_rows), hp, rank_activation)
    return g.pool(x, "last" if hp.pooling in (None, "none") else hp.pooling)


def decoded(g: Graph, x: Value, hp: HyperParameters) -> Value:
    """A decoder's result from its last layer's x [n_tokens, n_embd]: logits, or, where the file pools, one row a
    text. The last token alone has seen the text: it is taken as any wanted output is, in a step of its own."""
    if hp.pooling in ("mean", "cls"):
        return g.pool(g.norm(x, "output_norm", hp.norm_eps), hp.pooling)
    x = g.norm(g.select_outputs(x), "output_norm", hp.norm_eps)
    if hp.pooling is None:
        return g.output(x, hp.n_vocab)
    return _classified(g, x, hp, "tanh") if hp.pooling == "rank" else x


def _classified(g: Graph, x: Value, hp: HyperParameters, activation: str) -> Value:
    """Scores [n_texts, n_labels]: of `cls.output` alone, or behind `cls`, its activation and `cls.norm`."""
    if not g.has("cls.weight") and not g.has("cls.output.weight"):
        raise GGPYError(
            f"{g.file.path} ranks texts ('{hp.arch}.pooling_type' 4), but has no classifier: neither the tensor"
            " 'cls.weight' nor 'cls.output.weight'; convert the model again."
        )
    if g.has("cls.weight"):
        x = g.activation(g.linear(x, "cls", _n_rows(g, "cls")), activation)
    if g.has("cls.norm.weight"):
        x = g.norm(x, "cls.norm", hp.norm_eps, kind="layer")
    return g.linear(x, "cls.output", _n_rows(g, "cls.output")) if g.has("cls.output.weight") else x


def _n_rows(g: Graph, name: str) -> int:
    shape = g.file.tensors[name + ".weight"].shape
    return shape[0] if len(shape) > 1 else 1
