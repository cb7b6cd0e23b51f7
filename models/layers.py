"""The layers that architectures share, in the words of `ggpy.graph.language`. A weight's optional parts (bias, head
norms) are there if the file has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.pooled import decoded

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.operations import Temperature
    from ggpy.graph.rope import Rope
    from ggpy.models.base import HyperParameters


def self_attention(
    g: Graph,
    x: Value,
    layer: int,
    hp: HyperParameters,
    rope: Rope | None,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    causal: bool = True,
    head_norms: str = "head",
    alibi: float = 0.0,
    temperature: Temperature | None = None,
    chunked: bool = False,
) -> Value:
    """Grouped-query attention with rotary positions: x [n_tokens, n_embd] to [n_tokens, n_embd].

    Query, key and value come from three matrices or, where the file has `attn_qkv`, from one whose rows stand in that
    order. `rope`: None where positions stand elsewhere. `scale` of scores: None for 1 / sqrt(head_dim). `head_norms`:
    the norms of query and key, where the file has their weights: "head" by the root mean square of each head, "head
    after rope" behind rope, "layer" by mean and variance of each head, "wide" over the columns of all heads together,
    "wide layer" so by mean and variance; "unweighted" those of each head, which have no weights in any file.
    `alibi` and `temperature` as in `operations.Attention`; `chunked`: a layer's window is the length of its chunks.
    """
    at, size = f"blk.{layer}.", hp.layers[layer]
    n_q, n_kv = size.n_head * size.head_dim, size.n_head_kv * size.head_dim
    if g.has(at + "attn_qkv.weight"):
        qkv = g.linear(x, at + "attn_qkv", n_q + 2 * n_kv)
        q, k, v = qkv.columns(0, n_q), qkv.columns(n_q, n_kv), qkv.columns(n_q + n_kv, n_kv)
    else:
        q, k, v = g.linear(x, at + "attn_q", n_q), g.linear(x, at + "attn_k", n_kv), g.linear(x, at + "attn_v", n_kv)
    q_norm, k_norm, apart = at + "attn_q_norm", at + "attn_k_norm", head_norms in ("layer", "wide", "wide layer")
    if apart and g.has(q_norm + ".weight"):
        kind, width = "rms" if head_norms == "wide" else "layer", size.head_dim if head_norms == "layer" else 0
        q = g.norm(q, q_norm, hp.norm_eps, kind, width)
        k = g.norm(k, k_norm, hp.norm_eps, kind, width)
    if head_norms == "unweighted":
        q, k = (g.norm(value, None, hp.norm_eps, width=size.head_dim) for value in (q, k))
    attended = g.attention(
        q,
        k,
        v,
        layer=layer,
        n_head=size.n_head,
        n_head_kv=size.n_head_kv,
        rope=rope,
        q_norm=None if apart else q_norm,
        k_norm=None if apart else k_norm,
        eps=hp.norm_eps,
        scale=scale,
        softcap=softcap,
        window=0 if chunked else size.window,
        chunk=size.window if chunked else 0,
        causal=causal,
        norm_after_rope=head_norms == "head after rope",
        alibi=alibi,
        temperature=temperature,
    )
    return g.linear(attended, at + "attn_output", hp.n_embd)


def glu_ffn(g: Graph, x: Value, layer: int, hp: HyperParameters, activation: str = "silu") -> Value:
    """Gated feed-forward (arXiv 2002.05202): down(activation(gate(x)) * up(x)), x
    [n_tokens, n_embd] to [n_tokens, n_embd]. Where the file has no gate, the first half of `ffn_up` is."""
    at = f"blk.{layer}."
    n_ff = hp.layers[layer].n_ff
    if g.has(at + "ffn_gate.weight") or not g.has(at + "ffn_up.weight", rows=2 * n_ff):
        gate, up = g.linear(x, at + "ffn_gate", n_ff), g.linear(x, at + "ffn_up", n_ff)
    else:
        both = g.linear(x, at + "ffn_up", 2 * n_ff)
        gate, up = both.columns(0, n_ff), both.columns(n_ff, n_ff)
    return g.linear(g.glu(gate, up, activation), at + "ffn_down", hp.n_embd)


def plain_ffn(g: Graph, x: Value, layer: int, hp: HyperParameters, activation: str) -> Value:
    """Feed-forward without a gate: down(activation(up(x))), x [n_tokens, n_embd] to [n_tokens, n_embd]."""
    at = f"blk.{layer}."
    y = g.activation(g.linear(x, at + "ffn_up", hp.layers[layer].n_ff), activation)
    return g.linear(y, at + "ffn_down", hp.n_embd)


def pre_norm_decoder(g: Graph, hp: HyperParameters, rope: Rope) -> Value:
    """The decoder that Llama and Qwen share: RMS norm before attention and
    before the feed-forward, residual sums around both. Who builds with it has files that embed texts as well."""
    x = g.embed(hp.n_embd)
    for layer in g.layers(hp.n_layer):
        x = g.add(x, self_attention(g, g.norm(x, f"blk.{layer}.attn_norm", hp.norm_eps), layer, hp, rope))
        x = g.add(x, glu_ffn(g, g.norm(x, f"blk.{layer}.ffn_norm", hp.norm_eps), layer, hp))
    return decoded(g, x, hp)
